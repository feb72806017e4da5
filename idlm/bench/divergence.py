"""How far a sample is from a table, and how far the truth's own sample would be."""

from __future__ import annotations

import torch
from torch import Tensor


def total_variation(counts: Tensor, probs: Tensor) -> float:
    """Half the L1 distance of the sample's frequencies from the table, in [0, 1].

    Args:
        counts: of the sample in each cell and, last, outside all cells, ``[C + 1]``.
        probs: the table, float64 ``[C]``.
    """
    p, q = _pair(counts, probs)
    return float(0.5 * (p - q).abs().sum())


def jensen_shannon(counts: Tensor, probs: Tensor) -> float:
    """(KL(p | m) + KL(q | m)) / 2 with m = (p + q) / 2 in nats, between 0 and log 2.

    Arguments as :func:`total_variation`. The divergence itself, not its square root.
    """
    return float(_js_terms(*_pair(counts, probs)).sum())


def floor_tv(probs: Tensor, samples: int) -> float:
    """Expected total variation of that many samples of the table itself from the table.

    Each count is binomial, and half the sum of E|K / n - p| is exact by de Moivre's formula,
    E|K - np| = 2 m C(n, m) p^m (1 - p)^(n - m + 1) with m = floor(np) + 1.

    Args:
        probs: the table, float64 ``[C]``.
        samples: n.
    """
    p, n = probs[(probs > 0) & (probs < 1)].double(), float(samples)
    m = torch.floor(n * p) + 1.0
    # m C(n, m) = n C(n - 1, m - 1)
    choose = (
        torch.lgamma(torch.tensor(n, dtype=torch.float64))
        - torch.lgamma(m)
        - torch.lgamma(n - m + 1.0)
    )
    log = choose.double() + m * torch.log(p) + (n - m + 1.0) * torch.log1p(-p)
    return float(torch.exp(log).sum())


def floor_js(probs: Tensor, samples: int) -> float:
    """Expected Jensen-Shannon divergence of that many samples of the table itself from the table.

    In nats. The divergence is a sum over cells of a function of K / n and p alone, and K is
    binomial: the expectation is summed over all K within 12 standard deviations and 30 of n p,
    outside of which there is less than 1e-17. For many samples it is near (C - 1) / (8 n).

    Args:
        probs: the table, float64 ``[C]``.
        samples: n.
    """
    values, cells = probs[(probs > 0) & (probs < 1)].double().unique(return_counts=True)
    n = torch.tensor(float(samples), dtype=torch.float64)
    total = 0.0
    # one by one: the windows' widths differ
    for p, times in zip(values, cells.tolist(), strict=True):
        reach = 12.0 * torch.sqrt(n * p * (1.0 - p)) + 30.0
        low, high = (n * p - reach).clamp(min=0.0).floor(), torch.minimum(n * p + reach, n)
        k = torch.arange(float(low), float(high) + 1.0, dtype=torch.float64)
        log = torch.lgamma(n + 1.0) - torch.lgamma(k + 1.0) - torch.lgamma(n - k + 1.0)
        log = log + k * torch.log(p) + (n - k) * torch.log1p(-p)
        total += times * float(torch.exp(log) @ _js_terms(k / n, p))
    return total


def _js_terms(p: Tensor, q: Tensor) -> Tensor:
    """What each cell adds to the Jensen-Shannon divergence of p and q."""
    middle = 0.5 * (p + q)
    return 0.5 * (torch.xlogy(p, p) + torch.xlogy(q, q)) - torch.xlogy(middle, middle)


def _pair(counts: Tensor, probs: Tensor) -> tuple[Tensor, Tensor]:
    """Frequencies of the sample and the table over the same cells, the outside included."""
    sample = counts.double() / counts.sum()
    return sample, torch.cat([probs.double(), probs.new_zeros(1, dtype=torch.float64)])
