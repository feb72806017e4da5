"""Stateless random numbers: every draw is a pure function of the keys that name it.

Noise keyed by ``(seed, step, sample, stream)`` is the same whatever the batch size, the device,
the number of processes or the moment of a resume, and no generator state has to be saved.
The generator is Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3",
SC 2011), written in int64 tensor arithmetic; the tests hold it to the published known answers.
"""

from __future__ import annotations

import math
from enum import IntEnum

import torch
from torch import Tensor

_M0, _M1 = 0xD2511F53, 0xCD9E8D57
_W0, _W1 = 0x9E3779B9, 0xBB67AE85
_LOW = 0xFFFFFFFF
_ROUNDS = 10
# Counters that are worked on at once: on a CPU what its cache holds, else what fills the device.
_AT_ONCE = {"cpu": 2**16}
_AT_ONCE_ELSEWHERE = 2**20


class Stream(IntEnum):
    """What a number is used for, so that no two uses share their randomness."""

    TIME = 0
    CORRUPT = 1
    LATENT_GLOBAL = 2
    LATENT_POSITION = 3
    TOKEN = 4
    RENOISE = 5
    TIME_2 = 6
    PERMUTE = 7
    REVEAL = 8
    DROPOUT = 9
    LATENT_MIX = 10
    RELAX = 11
    RELAX_RENOISE = 12
    NOISE = 13
    POSTERIOR = 14
    RECOGNITION = 15
    TEACHER = 16
    CHOICE = 17


def philox(counter: list[Tensor], key: tuple[int, int]) -> list[Tensor]:
    """Philox4x32-10: four 32-bit words for each four-word counter under a two-word key.

    Args:
        counter: four int64 tensors of one shape, each holding values in ``[0, 2**32)``.
        key: two integers in ``[0, 2**32)``.

    Returns:
        Four int64 tensors of that shape with values in ``[0, 2**32)``.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        # The int64 product wraps but keeps the right 64 bits; masking undoes the sign extension.
        low0, low1 = c0 * _M0, c2 * _M1
        high0, high1 = (low0 >> 32).bitwise_and_(_LOW), (low1 >> 32).bitwise_and_(_LOW)
        # in place where the tensor is ours: new memory costs as much as the arithmetic
        c0 = high1.bitwise_xor_(c1).bitwise_xor_(k0)
        c2 = high0.bitwise_xor_(c3).bitwise_xor_(k1)
        c1, c3 = low1.bitwise_and_(_LOW), low0.bitwise_and_(_LOW)
        k0, k1 = (k0 + _W0) & _LOW, (k1 + _W1) & _LOW
    return [c0, c1, c2, c3]


def _words(items: range, sample: Tensor, seed: int, step: int, stream: int) -> list:
    """Counter = (item within the sample, sample, step, stream), key = the seed's 64 bits."""
    item = torch.arange(items.start, items.stop, device=sample.device)
    rows = sample.to(torch.int64).reshape(-1, 1)
    ones = torch.ones_like(rows) * torch.ones_like(item)
    high = (rows >> 32) & 0xFFF
    counter = [
        ones * item,
        ones * (rows & _LOW),
        ones * (step & _LOW),
        # stream, the sample's and the step's high bits share the last word
        ones * stream + ones * (high << 8) + ones * (((step >> 32) & 0xFFF) << 20),
    ]
    return philox(counter, (seed & _LOW, (seed >> 32) & _LOW))


def uniform(
    *shape: int, sample: Tensor, seed: int, step: int, stream: int, dtype: torch.dtype | None = None
) -> Tensor:
    """Uniform numbers in ``[0, 1)`` with 53 random bits, one block of ``shape`` per sample.

    Args:
        shape: shape of one sample's block.
        sample: running numbers of the samples, int64 ``[B]``, each in ``[0, 2**44)``.
        seed: the run's seed.
        step: the step the numbers belong to.
        stream: a :class:`Stream`.
        dtype: float64 by default; float32 rounds, and may then return exactly 1.

    Returns:
        ``[B, *shape]`` on the device of ``sample``.
    """
    w0, w1, _, _ = _words(range(math.prod(shape)), sample, seed, step, stream)
    value = ((w0 >> 5) * 67108864 + (w1 >> 6)).to(torch.float64) * (1.0 / 9007199254740992.0)
    return value.reshape(sample.shape[0], *shape).to(dtype or torch.float64)


def normal(
    *shape: int, sample: Tensor, seed: int, step: int, stream: int, dtype: torch.dtype | None = None
) -> Tensor:
    """Standard normal numbers (Box-Muller on 32-bit words), one block of ``shape`` per sample.

    Arguments as :func:`uniform`; ``[B, *shape]``, float32 by default.
    """
    w0, w1, _, _ = _words(range(math.prod(shape)), sample, seed, step, stream)
    value, _ = _box_muller(w0, w1)
    return value.reshape(sample.shape[0], *shape).to(dtype or torch.float32)


def dense_normal(
    *shape: int,
    sample: Tensor,
    seed: int,
    step: int,
    stream: int,
    dtype: torch.dtype | None = None,
    first: int = 0,
) -> Tensor:
    """Standard normal numbers for large blocks: both halves of two Box-Muller pairs per counter.

    Four numbers where :func:`normal` makes one, so other numbers than its own; arguments alike,
    and ``first``, by which a slice is made without the whole: ``dense_normal(l, K, first=p)`` are
    the rows p to p + l of ``dense_normal(L, K)``, bit for bit. Beside the result no more is held
    than the words of some counters.
    """
    items, begin = math.prod(shape), first * math.prod(shape[1:])
    out = torch.empty(len(sample), items, dtype=dtype or torch.float32, device=sample.device)
    at_once = _AT_ONCE.get(sample.device.type, _AT_ONCE_ELSEWHERE) // max(1, len(sample))
    end, at_once = -(-(begin + items) // 4), max(1, at_once)
    for low in range(begin // 4, end, at_once):
        words = _words(range(low, min(end, low + at_once)), sample, seed, step, stream)
        pairs = [half for two in (words[:2], words[2:]) for half in _box_muller(*two)]
        value = torch.stack(pairs, -1).flatten(1)
        # of the first and the last counter perhaps not all four
        start = 4 * low - begin
        value = value[:, max(0, -start) : items - start]
        start = max(0, start)
        out[:, start : start + value.shape[1]] = value
    return out.reshape(len(sample), *shape)


def _box_muller(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Two independent normals, float64, from two 32-bit words of any one shape."""
    # u in (0, 1]: the logarithm stays finite.
    radius = torch.sqrt(-2.0 * torch.log((first.to(torch.float64) + 1.0) / 4294967296.0))
    angle = (2.0 * math.pi / 4294967296.0) * second.to(torch.float64)
    return radius * torch.cos(angle), radius * torch.sin(angle)


def permutation(size: int, *, seed: int, step: int, stream: int = Stream.PERMUTE) -> Tensor:
    """A permutation of ``range(size)`` that every process computes alike, int64 ``[size]``."""
    keys = uniform(
        size, sample=torch.zeros(1, dtype=torch.int64), seed=seed, step=step, stream=stream
    )
    return torch.argsort(keys[0], stable=True)
