"""Repetition inside a sequence: what a generator that has lost its way does."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from idlm.metrics.diversity import check_rows
from idlm.metrics.states import standard_error


class _PerSequence(Metric):
    """A mean over sequences of one number for each, with its standard error."""

    full_state_update = False
    higher_is_better = False
    value_sum: Tensor
    square_sum: Tensor
    sample_count: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for name in ("value_sum", "square_sum"):
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("sample_count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def _add(self, values: list[float]) -> None:
        found = torch.tensor(values, dtype=torch.float64, device=self.value_sum.device)
        self.value_sum += found.sum()
        self.square_sum += (found**2).sum()
        self.sample_count += len(found)

    def compute(self) -> Tensor:
        """The mean over sequences, a float64 scalar; nan without any."""
        return self.value_sum / self.sample_count

    def standard_error(self) -> Tensor:
        """Standard error of the mean over this process's sequences; nan below two."""
        return standard_error(self.value_sum, self.square_sum, self.sample_count)


class Repetition(_PerSequence):
    """seq-rep-n: the share of a sequence's n-grams that repeat an earlier one of it.

    ``1 - distinct n-grams / n-grams`` of each sequence, then the mean over sequences (Welleck et
    al., 2020, arXiv 1908.04319, section 6, there of the continuation of a prompt, with n = 4; here
    of the whole sequence and on the model's own tokens). 0 without a repeated n-gram, near 1 for
    one phrase over and over. It grows with the length of the sequences.

    Args:
        n: tokens in an n-gram, 1 or more.

    Raises:
        ValueError: if ``n`` is below 1.
    """

    def __init__(self, n: int = 4, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if n < 1:
            raise ValueError(f"n={n} must be 1 or more")
        self.n = n

    def update(self, tokens: Tensor) -> None:
        """Add rows of tokens ``[B, L]``; rows shorter than n have no n-gram and do not count.

        Raises:
            ValueError: if they are not integer rows.
        """
        tokens = check_rows(tokens)
        if tokens.shape[1] < self.n:
            return
        grams = tokens.unfold(1, self.n, 1)
        self._add([1 - len(torch.unique(row, dim=0)) / len(row) for row in grams])


class LongestRepeat(_PerSequence):
    """Tokens in the longest passage that a sequence holds twice, mean over sequences.

    The two may overlap, so that a sequence of one token L times has L - 1; a sequence whose
    tokens are all different has 0. It finds copied passages that are too few to move seq-rep-n.
    """

    def update(self, tokens: Tensor) -> None:
        """Add rows of tokens ``[B, L]``.

        Raises:
            ValueError: if they are not integer rows.
        """
        self._add([float(longest_repeat(row)) for row in check_rows(tokens)])


def longest_repeat(row: Tensor) -> int:
    """Length of the longest passage that occurs at two places of a row, overlapping or not.

    If a passage of n tokens occurs twice, so does one of n - 1: the length is doubled while there
    is one, and then bisected. Most rows repeat little, and short passages are cheap to compare.

    Args:
        row: ``[L]`` integers.
    """
    low, high = 0, len(row)  # a repeat of `low` tokens exists, one of `high` does not
    n = 1
    while high - low > 1:
        grams = row.unfold(0, n, 1)
        if len(torch.unique(grams, dim=0)) < len(grams):
            low, n = n, min(2 * n, (n + high) // 2)
        else:
            high, n = n, (low + n) // 2
    return low
