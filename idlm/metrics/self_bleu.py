"""Self-BLEU: how much the samples of a set repeat one another."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from idlm.metrics.diversity import check_rows
from idlm.metrics.states import joined

# What an order without a match has instead of 0 matches (method 1 of Chen and Cherry, 2014).
SMOOTHING = 0.1


class SelfBLEU(Metric):
    """Mean BLEU of each sample against all others: 1 when all are equal, near 0 when unrelated.

    Zhu et al., 2018 (Texygen, arXiv 1802.01886). BLEU is that of Papineni et al. (2002) for each
    sample by itself, with all other samples of the set as references:

    - ``BLEU = BP * exp(mean of log p_k over k = 1 .. n)``, the orders weighted equally;
    - ``p_k``: k-grams of the sample, each counted at most as often as in the one other sample
      that has it most often, divided by the number of k-grams of the sample;
    - smoothing: an order without a match has 0.1 matches; a sample without a matching token has
      BLEU 0;
    - ``BP = min(1, exp(1 - r / c))`` for a sample of c tokens, r the nearest length among the
      others (the shorter of two equally near).

    They count words; we count the model's own tokens. A sample shorter than n is a reference and
    is not scored itself. The value grows with the number of samples, since each has more
    references: compare it at equal numbers.

    Args:
        n: largest n-gram, 1 or more.

    Raises:
        ValueError: if ``n`` is below 1.
    """

    full_state_update = False
    higher_is_better = False
    tokens: list[Tensor]
    lengths: list[Tensor]

    def __init__(self, n: int = 4, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if n < 1:
            raise ValueError(f"n={n} must be 1 or more")
        self.n = n
        for name in ("tokens", "lengths"):
            self.add_state(name, [], dist_reduce_fx="cat")
        self.reset()

    def reset(self) -> None:
        """Forget all samples."""
        super().reset()
        # An empty list would be gathered as floats; a process may have no rows.
        for state in (self.tokens, self.lengths):
            state.append(torch.empty(0, dtype=torch.int64, device=self.device))

    def update(self, tokens: Tensor) -> None:
        """Add rows of tokens ``[B, L]``.

        Raises:
            ValueError: if they are not integer rows.
        """
        tokens = check_rows(tokens)
        self.tokens.append(tokens.flatten().to(self.device))
        self.lengths.append(torch.full((len(tokens),), tokens.shape[1], device=self.device))

    def compute(self) -> Tensor:
        """A number in [0, 1], a float64 scalar; nan below two samples or when all are too short."""
        lengths = joined(self.lengths)
        if len(lengths) < 2:
            return torch.tensor(torch.nan, dtype=torch.float64)
        scores = _scores(joined(self.tokens), lengths, self.n)
        return scores[lengths >= self.n].mean()


def _scores(tokens: Tensor, lengths: Tensor, n: int) -> Tensor:
    """BLEU of every sample against all others, float64 ``[N]``; arbitrary below n tokens.

    Args:
        tokens: all samples one after the other, ``[sum of lengths]``.
        lengths: tokens of each sample, ``[N]``.
        n: largest n-gram.
    """
    owner = torch.repeat_interleave(torch.arange(len(lengths), device=lengths.device), lengths)
    grams = torch.unique(tokens, return_inverse=True)[1]  # the unigram that starts at each place
    unigrams = grams
    log_sum = torch.zeros(len(lengths), dtype=torch.float64, device=lengths.device)
    for k in range(1, n + 1):
        if k > 1:
            # The k-gram that starts at a place is its (k-1)-gram and the token after that; names
            # are numbered anew at each order, so that they stay small.
            inside = owner[: -(k - 1)] == owner[k - 1 :]
            pairs = grams[: len(inside)] * (int(unigrams.max()) + 1) + unigrams[k - 1 :]
            pairs[~inside] = -1  # reaches into the next sample
            grams = torch.unique(pairs, return_inverse=True)[1]
        whole = owner[: len(grams)] == owner[k - 1 :]
        matches = _clipped_matches(owner[: len(grams)][whole], grams[whole], len(lengths))
        possible = (lengths - k + 1).clamp(min=1)
        log_sum += (torch.where(matches > 0, matches, SMOOTHING) / possible).log()
        if k == 1:
            log_sum[matches == 0] = -torch.inf
    return (log_sum / n).exp() * _brevity(lengths)


def _clipped_matches(owner: Tensor, grams: Tensor, samples: int) -> Tensor:
    """For each sample, matches of its k-grams in the others, float64 ``[samples]``.

    A k-gram counts ``min(its count here, its largest count in another sample)``. The largest count
    elsewhere is the largest of all, or the second largest for the sample that holds the largest;
    so that one pass over the k-grams does for all pairs of samples.

    Args:
        owner: sample of each k-gram, ``[M]``.
        grams: name of each k-gram, ``[M]``, 0 or more.
        samples: how many there are.
    """
    matches = torch.zeros(samples, dtype=torch.float64, device=grams.device)
    if not len(grams):
        return matches
    keys, counts = torch.unique(grams * samples + owner, return_counts=True)
    gram, sample = keys // samples, keys % samples
    # by k-gram, and within one by falling count
    order = torch.argsort(counts, descending=True, stable=True)
    order = order[torch.argsort(gram[order], stable=True)]
    gram, sample, counts = gram[order], sample[order], counts[order]
    first = torch.ones_like(gram, dtype=torch.bool)
    first[1:] = gram[1:] != gram[:-1]
    start = first.nonzero().flatten()[first.long().cumsum(0) - 1]  # of this k-gram's group
    second = start + 1
    shared = (second < len(gram)) & (gram[second.clamp(max=len(gram) - 1)] == gram)
    runner_up = torch.where(shared, counts[second.clamp(max=len(gram) - 1)], 0)
    elsewhere = torch.where(first, runner_up, counts[start])
    return matches.index_add(0, sample, torch.minimum(counts, elsewhere).double())


def _brevity(lengths: Tensor) -> Tensor:
    """Brevity penalty of every sample against the nearest length among the others, ``[N]``."""
    sizes, of, counts = torch.unique(lengths, return_inverse=True, return_counts=True)
    distance = (sizes[:, None] - sizes[None, :]).abs().double()
    distance[counts == 1, counts == 1] = torch.inf  # the only one of its length is no reference
    # argmin takes the first of equals, and sizes rise: the shorter one
    nearest = sizes[distance.argmin(1)].double()
    return torch.exp(1 - nearest / sizes.double()).clamp(max=1)[of]
