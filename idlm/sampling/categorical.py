"""Exact categorical draws.

fp32 Gumbel noise has 24 bits: tokens of small probability are never drawn, which silently lowers
temperature, generative perplexity and entropy (arXiv 2409.02908; methods A.7). Here uniforms
of 53 bits are inverted through float64 cumulative sums: the same distribution as an exact race,
with one random number per draw instead of V.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_BRANCHES = 12  # about: enough for few levels, and few boundaries on each


def draw(log_probs: Tensor, noise: Tensor) -> Tensor:
    """Draw one token per row, down a tree whose inner nodes hold the weight below them.

    Inverting one cumulative sum over V tokens would let the last digit of a logit, which depends
    on the batch its row was computed in, move each of V boundaries: at V = 2049 one draw in 8,000
    came out differently. In a tree a draw meets a few boundaries on each of log V levels.

    Args:
        log_probs: natural-log weights ``[..., V]``, need not be normalised.
        noise: float64 uniforms in ``[0, 1)``, ``[...]``, one per draw: its bits are mixed anew for
            every level.

    Returns:
        int64 ``[...]``; a token of zero weight is never drawn.
    """
    size = log_probs.shape[-1]
    depth = max(1, round(math.log(size, _BRANCHES)))
    branches = math.ceil(size ** (1 / depth) - 1e-9)  # a whole root must not round up
    # one table of float64, worked on in place: it is what a draw spends most of its time on
    leaves = log_probs.new_zeros((*log_probs.shape[:-1], branches**depth), dtype=torch.float64)
    weights = leaves[..., :size].copy_(log_probs)
    weights.sub_(log_probs.amax(-1, keepdim=True)).exp_()
    levels = [leaves]
    for _ in range(depth - 1):  # strided sums: neighbours in memory are of different nodes
        levels.append(levels[-1].unflatten(-1, (branches, -1)).sum(-2))
    node = torch.zeros((*weights.shape[:-1], 1), dtype=torch.int64, device=weights.device)
    for level, below in enumerate(reversed(levels)):
        nodes = branches**level
        children = below.unflatten(-1, (branches, nodes)).take_along_dim(node.unsqueeze(-2), -1)
        cumulative = children.squeeze(-1).cumsum(-1)
        node = node + nodes * _invert(cumulative, _mixed(noise.double(), level).unsqueeze(-1))
    return node.squeeze(-1)


def _invert(cumulative: Tensor, noise: Tensor) -> Tensor:
    """The first entry whose cumulative weight exceeds noise times the total, ``[..., 1]``."""
    total = cumulative[..., -1:].contiguous()
    # right=True skips entries of zero weight
    entry = torch.searchsorted(cumulative, noise * total, right=True)
    # noise that was rounded up to 1 would run off the end: the last entry of positive weight it is
    return torch.minimum(entry, torch.searchsorted(cumulative, total))


def _mixed(noise: Tensor, level: int) -> Tensor:
    """The uniform itself at level 0; below, fresh ones made of its 53 bits and the level.

    The finaliser of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014), whose outputs for consecutive
    inputs pass as independent; int64 products wrap as its unsigned ones do.
    """
    if level == 0:
        return noise
    z = (noise * 2.0**53).long() + _signed(level * 0x9E3779B97F4A7C15)
    z = (z ^ ((z >> 30) & (2**34 - 1))) * _signed(0xBF58476D1CE4E5B9)
    z = (z ^ ((z >> 27) & (2**37 - 1))) * _signed(0x94D049BB133111EB)
    z = z ^ ((z >> 31) & (2**33 - 1))
    return ((z >> 11) & (2**53 - 1)).double() * 2.0**-53


def _signed(word: int) -> int:
    """A 64-bit word as int64 holds it."""
    word %= 2**64
    return word - 2**64 if word >= 2**63 else word


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
    # the largest becomes 0 first: a denormal temperature would make every one of them -inf
    best = log_probs.amax(-1, keepdim=True)
    return torch.log_softmax((log_probs - best) / temperature, dim=-1)


def nucleus(log_probs: Tensor, top_p: float) -> Tensor:
    """Keep the smallest set of most probable tokens whose mass reaches ``top_p``, renormalised.

    Among equals, which half precision makes common, the smaller id comes first.

    Args:
        log_probs: natural-log probabilities ``[..., V]``.
        top_p: in ``(0, 1]``; 1 returns the input.

    Returns:
        Log-probabilities ``[..., V]`` with ``-inf`` outside the nucleus.
    """
    if top_p >= 1.0:
        return log_probs
    ordered, order = log_probs.sort(dim=-1, descending=True, stable=True)
    mass = ordered.exp().cumsum(-1)
    # a token stays if the mass before it has not reached top_p: the first always stays
    drop = (mass - ordered.exp()) >= top_p
    outside = torch.zeros_like(drop).scatter(-1, order, drop)
    return torch.log_softmax(log_probs.masked_fill(outside, float("-inf")), dim=-1)
