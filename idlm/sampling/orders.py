"""Which masked positions are revealed first, beyond the random order of training.

``random`` reveals each position by a coin of its own, as the ancestral sampler does; it is the
order the network was trained for and the only one whose samples follow the model's distribution.
The others rank the masked positions by how sure the prediction is, and reveal the surest first:

* ``confidence``: largest probability of any token (MaskGIT, arXiv 2202.04200, without its noise);
* ``entropy``: lowest entropy;
* ``margin``: largest gap between the two most probable tokens (arXiv 2502.06768).

Their risk: easy tokens are easy because they repeat what is there, so the surest positions copy
their neighbours, text loops and diversity collapses, the more so the more steps there are. A lower
generative perplexity then says nothing; look at entropy and distinct n-grams beside it. Ranks also
compare positions with one another, so that a last digit of the network, which may depend on the
batch, changes a sample more often than in random order.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from idlm.sampling.base import RANDOM


def _confidence(p: Tensor) -> Tensor:
    return p.amax(-1)


def _entropy(p: Tensor) -> Tensor:
    return -torch.special.entr(p).sum(-1)


def _margin(p: Tensor) -> Tensor:
    best = p.topk(2, dim=-1).values
    return best[..., 0] - best[..., 1]


CERTAINTY: dict[str, Callable[[Tensor], Tensor]] = {
    "confidence": _confidence,
    "entropy": _entropy,
    "margin": _margin,
}
ORDERS = (RANDOM, *CERTAINTY)


def rank(order: str, p: Tensor, dtype: torch.dtype) -> Tensor:
    """How sure a prediction is, in whole steps that the network's rounding cannot cross.

    Equal predictions are common, and after rounding no longer quite equal: where all is masked the
    network without a latent says the same everywhere. Noise shall order them, not the last digit,
    which depends on the batch.

    Args:
        order: a name of :data:`CERTAINTY`.
        p: probabilities of the clean token, ``[R, V]``.
        dtype: of the network; a step is the square root of its resolution, 3e-4 in fp32.

    Returns:
        ``[R]``, larger for surer.
    """
    return (CERTAINTY[order](p) / torch.finfo(dtype).eps ** 0.5).round()


def due(total: Tensor, before: float, after: float) -> Tensor:
    """How many positions a step reveals when their number is not left to chance.

    After the step ``round(total * after)`` positions are visible, so equal steps reveal equal
    numbers: 1024 tokens in 16 steps are 64 a call.

    Args:
        total: positions to write per row, int64 ``[B]``.
        before: chance that a position is visible before the step.
        after: the same after the step.

    Returns:
        int64 ``[B]``.
    """
    wide = total.double()
    return ((wide * after).round() - (wide * before).round()).long()


def surest(certainty: Tensor, masked: Tensor, count: Tensor, noise: Tensor) -> Tensor:
    """The ``count`` masked positions of each row with the largest certainty.

    Args:
        certainty: ``[B, L]``; read at masked positions only.
        masked: bool ``[B, L]``.
        count: int64 ``[B]``, at most the number of masked positions.
        noise: ``[B, L]``, the order among equals.

    Returns:
        bool ``[B, L]``.
    """
    shuffled = noise.argsort(-1)
    ranked = certainty.masked_fill(~masked, -torch.inf).gather(-1, shuffled)
    position = shuffled.gather(-1, ranked.argsort(dim=-1, descending=True, stable=True))
    first = torch.arange(masked.shape[1], device=masked.device) < count.unsqueeze(-1)
    return torch.zeros_like(masked).scatter(-1, position, first)
