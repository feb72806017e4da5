"""Exact categorical draws.

fp32 Gumbel noise has 24 bits: tokens of small probability are never drawn, which silently lowers
temperature, generative perplexity and entropy (arXiv 2409.02908; methods A.7). Here one float64
uniform of 53 bits is inverted through the float64 cumulative sum: the same distribution as an
exact race, with one random number per draw instead of V.
"""

from __future__ import annotations

import torch
from torch import Tensor


def draw(log_probs: Tensor, noise: Tensor) -> Tensor:
    """Draw one token per row by inverting the cumulative distribution.

    Args:
        log_probs: natural-log weights ``[..., V]``, need not be normalised.
        noise: float64 uniforms in ``[0, 1)``, ``[...]``.

    Returns:
        int64 ``[...]``; a token of zero weight is never drawn.
    """
    wide = log_probs.double()
    weights = torch.exp(wide - wide.amax(-1, keepdim=True))
    cumulative = weights.cumsum(-1)
    total = cumulative[..., -1:].contiguous()
    # right=True skips tokens of zero weight: the draw is the first with cumulative > u * total
    token = torch.searchsorted(cumulative, noise.double().unsqueeze(-1) * total, right=True)
    # noise that was rounded up to 1 would run off the end: the last token of positive weight it is
    last = torch.searchsorted(cumulative, total)
    return torch.minimum(token, last).squeeze(-1)


def temper(log_probs: Tensor, temperature: float) -> Tensor:
    """Divide the logits by the temperature: p to the power 1/temperature, renormalised.

    Args:
        log_probs: natural-log probabilities ``[..., V]``; ``-inf`` stays ``-inf``.
        temperature: above 0; 1 returns the input.

    Returns:
        Log-probabilities ``[..., V]``.
    """
    if temperature == 1.0:
        return log_probs
    return torch.log_softmax(log_probs / temperature, dim=-1)


def nucleus(log_probs: Tensor, top_p: float) -> Tensor:
    """Keep the smallest set of most probable tokens whose mass reaches ``top_p``, renormalised.

    Args:
        log_probs: natural-log probabilities ``[..., V]``.
        top_p: in ``(0, 1]``; 1 returns the input.

    Returns:
        Log-probabilities ``[..., V]`` with ``-inf`` outside the nucleus.
    """
    if top_p >= 1.0:
        return log_probs
    ordered, order = log_probs.sort(dim=-1, descending=True)
    mass = ordered.exp().cumsum(-1)
    # a token stays if the mass before it has not reached top_p: the first always stays
    drop = (mass - ordered.exp()) >= top_p
    outside = torch.zeros_like(drop).scatter(-1, order, drop)
    return torch.log_softmax(log_probs.masked_fill(outside, float("-inf")), dim=-1)
