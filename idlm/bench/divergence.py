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
    p, q = _pair(counts, probs)
    middle = 0.5 * (p + q)
    entropy = -torch.xlogy(middle, middle).sum()
    return float(entropy + 0.5 * (torch.xlogy(p, p).sum() + torch.xlogy(q, q).sum()))


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


def _pair(counts: Tensor, probs: Tensor) -> tuple[Tensor, Tensor]:
    """Frequencies of the sample and the table over the same cells, the outside included."""
    sample = counts.double() / counts.sum()
    return sample, torch.cat([probs.double(), probs.new_zeros(1, dtype=torch.float64)])
