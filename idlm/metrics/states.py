"""What several metrics do with the sums and lists they keep."""

from __future__ import annotations

import torch
from torch import Tensor


def standard_error(total: Tensor, squares: Tensor, count: Tensor) -> Tensor:
    """Of the mean of independent values, from their sum, sum of squares and number; nan below two.

    Args:
        total: sum, float64.
        squares: sum of squares, float64.
        count: how many.
    """
    n = count.double()
    variance = (squares / n - (total / n) ** 2).clamp(min=0) * n / (n - 1)
    return torch.where(n > 1, (variance / n).sqrt(), torch.nan)


def joined(state: list[Tensor] | Tensor) -> Tensor:
    """A list of batches as one tensor; it is one already once torchmetrics has gathered it."""
    return state if isinstance(state, Tensor) else torch.cat(state)
