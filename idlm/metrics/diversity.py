"""Entropy and distinct n-grams of generated tokens: what a low perplexity must not cost."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from idlm.errors import UserError
from idlm.metrics.states import joined, standard_error

MODES = ("per_sequence", "pooled")
# 2 MB of counters; holds every vocabulary in use today and adds up across processes.
LARGEST_VOCABULARY = 1 << 18


def _check_mode(mode: str) -> str:
    if mode not in MODES:
        raise UserError(f"mode={mode!r} is unknown: use one of {', '.join(MODES)}")
    return mode


def check_rows(tokens: Tensor) -> Tensor:
    """Rows ``[B, L]`` as int64.

    Raises:
        ValueError: if they are not integer rows of one or more tokens.
    """
    if tokens.ndim != 2 or tokens.is_floating_point() or tokens.shape[1] == 0:
        raise ValueError(
            f"tokens have shape {tuple(tokens.shape)} and dtype {tokens.dtype}: give integer rows "
            "[B, L] with L of 1 or more"
        )
    return tokens.detach().long()


def sequence_entropies(tokens: Tensor) -> Tensor:
    """Entropy of each row's own unigram distribution: ``H = -sum p log p`` over its unique ids.

    Args:
        tokens: ``[B, L]`` integers, L of 1 or more; a mask left in the sample counts as a token.

    Returns:
        Nats, float64 ``[B]``, at most ``log L``.
    """
    result = torch.zeros(len(tokens), dtype=torch.float64, device=tokens.device)
    for i, row in enumerate(tokens):
        result[i] = _entropy(torch.unique(row, return_counts=True)[1])
    return result


def _entropy(counts: Tensor) -> Tensor:
    p = counts.double() / counts.sum()
    return torch.special.entr(p).sum()


class Entropy(Metric):
    """Unigram entropy in nats, on the model's own tokens, before any decoding.

    "per_sequence" is the mean over rows of each row's entropy, at most ``log L``: what the Duo and
    IDLM code reports. "pooled" is the entropy of the counts of all rows together, as IDLM's text
    describes it, a larger number. Both depend on the length of the rows and on the tokenizer.

    Args:
        mode: "per_sequence" or "pooled".
        vocab_size: for "pooled", one more than the largest token id.

    Raises:
        UserError: if ``mode`` is unknown.
    """

    full_state_update = False
    higher_is_better = True
    entropy_sum: Tensor
    square_sum: Tensor
    sample_count: Tensor
    counts: Tensor

    def __init__(
        self,
        mode: str = "per_sequence",
        *,
        vocab_size: int = LARGEST_VOCABULARY,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.mode = _check_mode(mode)
        for name in ("entropy_sum", "square_sum"):
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("sample_count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        size = vocab_size if mode == "pooled" else 0
        self.add_state("counts", torch.zeros(size, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, tokens: Tensor) -> None:
        """Add rows of tokens ``[B, L]``.

        Raises:
            ValueError: if they are not integer rows, or exceed ``vocab_size``.
        """
        tokens = check_rows(tokens)
        self.sample_count += len(tokens)
        if self.mode == "per_sequence":
            entropies = sequence_entropies(tokens).to(self.entropy_sum.device)
            self.entropy_sum += entropies.sum()
            self.square_sum += (entropies**2).sum()
            return
        counted = torch.bincount(tokens.flatten(), minlength=len(self.counts))
        if len(counted) > len(self.counts):
            raise ValueError(
                f"token {len(counted) - 1} does not fit vocab_size={len(self.counts)}: give "
                f"Entropy('pooled', vocab_size={len(counted)}) or more"
            )
        self.counts += counted.to(self.counts.device)

    def compute(self) -> Tensor:
        """Nats, a float64 scalar; nan without samples."""
        if self.mode == "per_sequence":
            return self.entropy_sum / self.sample_count
        return _entropy(self.counts) if bool(self.counts.any()) else self.entropy_sum / 0

    def standard_error(self) -> Tensor:
        """Standard error of a per-sequence mean over this process's rows; nan below two, or pooled.

        The pooled entropy is no mean over rows and has none.
        """
        found = standard_error(self.entropy_sum, self.square_sum, self.sample_count)
        return found if self.mode == "per_sequence" else torch.full_like(found, torch.nan)


class DistinctN(Metric):
    """Distinct n-grams as a share of all n-grams (Li et al., 2016, arXiv 1510.03055).

    They divide by the number of tokens; we divide by the number of n-grams, so that text without
    a repetition has 1. "pooled" counts over all samples together and therefore falls as samples
    are added: compare it at equal sample counts. "per_sequence" is the mean over rows.

    Args:
        n: tokens in an n-gram, 1 or more.
        mode: "pooled" or "per_sequence".

    Raises:
        UserError: if ``mode`` is unknown.
        ValueError: if ``n`` is below 1.
    """

    full_state_update = False
    higher_is_better = True
    grams: list[Tensor]
    share_sum: Tensor
    sample_count: Tensor
    gram_count: Tensor

    def __init__(self, n: int = 2, *, mode: str = "pooled", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if n < 1:
            raise ValueError(f"n={n} must be 1 or more")
        self.n, self.mode = n, _check_mode(mode)
        self.add_state("grams", [], dist_reduce_fx="cat")
        self.add_state("share_sum", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        for name in ("sample_count", "gram_count"):
            self.add_state(name, torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        self.reset()

    def reset(self) -> None:
        """Forget all samples."""
        super().reset()
        # An empty list would be gathered as floats of another shape; a process may have no rows.
        self.grams.append(torch.empty(0, self.n, dtype=torch.int64, device=self.device))

    def update(self, tokens: Tensor) -> None:
        """Add rows of tokens ``[B, L]``; rows shorter than n have no n-gram and do not count.

        Raises:
            ValueError: if they are not integer rows.
        """
        tokens = check_rows(tokens)
        if tokens.shape[1] < self.n or not len(tokens):
            return
        grams = tokens.unfold(1, self.n, 1)
        self.sample_count += len(tokens)
        self.gram_count += grams.shape[0] * grams.shape[1]
        if self.mode == "pooled":
            self.grams.append(torch.unique(grams.flatten(0, 1), dim=0))
            return
        for row in grams:
            self.share_sum += len(torch.unique(row, dim=0)) / len(row)

    def compute(self) -> Tensor:
        """A share in (0, 1], a float64 scalar; nan without n-grams."""
        if self.mode == "per_sequence":
            return self.share_sum / self.sample_count
        grams = joined(self.grams)
        # torch.unique(dim=0) refuses a tensor without rows.
        distinct = len(torch.unique(grams, dim=0)) if len(grams) else 0
        return torch.tensor(distinct, dtype=torch.float64) / self.gram_count
