"""Losses over all positions of a vocabulary without ever holding ``[B, L, V]``."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

# Numbers in one table of a chunk: 64 MiB in fp32, 333 positions of GPT-2's vocabulary.
NUMBERS = 2**24


def over_positions(
    fn: Callable[..., tuple[Tensor, ...]], *tensors: Tensor, vocab_size: int
) -> tuple[Tensor, ...]:
    """``fn(*tensors)`` for a function that treats each position alike, a chunk of them at a time.

    What a chunk computes on the way is dropped and computed again in the backward pass, so no
    more than one chunk's tables of V columns are ever alive.

    Args:
        fn: takes slices ``[B, l, ...]`` of the tensors, returns tensors ``[B, l, ...]``. It must
            not draw random numbers.
        tensors: ``[B, L, ...]`` each; gradient flows through them and through parameters in ``fn``.
        vocab_size: V; a chunk has at most :data:`NUMBERS` / V sequences times positions, or one
            position of all sequences.

    Returns:
        What ``fn`` would return, ``[B, L, ...]`` each.
    """
    batch, length = tensors[0].shape[:2]
    step = max(1, NUMBERS // (vocab_size * max(1, batch)))
    parts = []
    for start in range(0, length, step):
        slices = [tensor[:, start : start + step] for tensor in tensors]
        if torch.is_grad_enabled():
            parts.append(checkpoint(fn, *slices, use_reentrant=False, preserve_rng_state=False))
        else:
            parts.append(fn(*slices))
    return tuple(torch.cat(columns, 1) for columns in zip(*parts, strict=True))
