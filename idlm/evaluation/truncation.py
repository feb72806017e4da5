"""What a float32 race draws, exactly: one token of half the mass against a flat half.

A float32 uniform is k / 2^24 for whole k, so each exponential of a race takes one of 2^24 values,
of which 6e-8 is the smallest. All chances follow by sums over them (methods A.7).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from idlm.sampling.float32 import race

Array = NDArray[np.float64]

BITS = 24  # of a uniform float32
_TINY = 1e-10  # as in the published race
_CHUNK = 1 << 20
_NUMBERS_AT_ONCE = 1 << 20


@dataclass(frozen=True)
class Case:
    """A prediction at a masked position, and how much of it a step may reveal.

    Attributes:
        tokens: equal tokens that share the mass which the heavy one leaves.
        heavy: probability of the heavy token.
        steps: a position is revealed with chance 1 / steps, as in the first of N steps.
    """

    tokens: int = 50_256
    heavy: float = 0.5
    steps: int = 1

    def weights(self) -> tuple[float, float, float]:
        """Of the heavy token, of each other one, and of the mask."""
        show = 1.0 / self.steps
        return show * self.heavy, show * (1.0 - self.heavy) / self.tokens, 1.0 - show


def race_law(case: Case, *, bits: int = BITS) -> tuple[float, float]:
    """Chances that a race with uniforms of few bits draws the heavy token, and any of the others.

    Exact but for ties, which one value in 2^24 makes rare, and for the rounding of a logarithm.

    Args:
        case: the weights.
        bits: of the uniforms.

    Returns:
        The two chances; what is left is the mask's.
    """
    heavy, other, mask = case.weights()
    heavy_wins = others_win = 0.0
    share = 2.0**-bits
    for k, value in _values(bits):
        beaten = _above(value * (other / heavy), bits) ** case.tokens
        heavy_wins += float((share * _above(value * (mask / heavy), bits) * beaten).sum())
        if (float(k[-1]) * share) ** case.tokens < 1e-300:
            continue  # some other token is sure to have drawn a smaller exponential
        # the smallest of all the others' exponentials is this value
        here = ((k + 1) * share) ** case.tokens - (k * share) ** case.tokens
        chance = _above(value * (heavy / other), bits) * _above(value * (mask / other), bits)
        others_win += float((here * chance).sum())
    return heavy_wins, others_win


def _values(bits: int) -> Iterator[tuple[Array, Array]]:
    """All k, and the exponential -log(k / 2^bits) as the published code computes it."""
    for start in range(0, 1 << bits, _CHUNK):
        k = np.arange(start, min(start + _CHUNK, 1 << bits), dtype=np.float64)
        yield k, _TINY - np.log(k * 2.0**-bits + _TINY)


def _above(value: Array, bits: int) -> Array:
    """The chance that an exponential of the race exceeds ``value``."""
    levels = 2.0**bits * (1.0 + np.expm1(_TINY - value) - _TINY)
    return np.clip(np.ceil(levels), 0.0, 2.0**bits) * 2.0**-bits


def simulate(
    case: Case, races: int, *, dtype: torch.dtype = torch.float32, seed: int = 0
) -> tuple[int, int]:
    """How often the race of :mod:`idlm.sampling.float32` draws the heavy token, and any other."""
    heavy, other, mask = case.weights()
    weights = torch.full((case.tokens + 2,), other, dtype=dtype)
    weights[0], weights[1] = heavy, mask
    generator = torch.Generator().manual_seed(seed)
    heavy_wins = others_win = 0
    rows = max(1, _NUMBERS_AT_ONCE // len(weights))
    for start in range(0, races, rows):
        shape = min(rows, races - start), len(weights)
        winner = race(weights, torch.rand(shape, generator=generator, dtype=dtype))
        heavy_wins += int((winner == 0).sum())
        others_win += int((winner > 1).sum())
    return heavy_wins, others_win


def demonstration(
    steps: tuple[int, ...] = (1, 4, 16, 64, 256, 1024),
    *,
    simulated: tuple[int, ...] = (256,),
    races: int = 60_000,
    tokens: int = Case.tokens,
) -> dict[str, Any]:
    """The share of the flat half among revealed tokens, exact and simulated, for each step count.

    Args:
        steps: step counts of the exact law.
        simulated: those of them that are also raced, in both precisions.
        races: of each simulation.
        tokens: of the flat half.

    Returns:
        ``vocabulary``, ``races`` and one row for each step count: ``cutoff``, the probability
        N / 2^24 below which a token hardly ever wins; ``token_probability`` of a token of the
        flat half; ``exact_share`` and ``exact_revealed``, the share of the half and the chance to
        reveal, in float32, beside ``true_share`` 1/2 and ``true_revealed`` 1/N; and of a
        simulation in either precision ``revealed``, ``share``, its standard error and
        ``chi_square`` of one degree of freedom against the true 1/2.
    """
    rows = []
    for count in steps:
        case = Case(tokens=tokens, steps=count)
        heavy, others = race_law(case)
        row: dict[str, Any] = {
            "steps": count,
            "cutoff": count * 2.0**-BITS,
            "token_probability": (1.0 - case.heavy) / tokens,
            "exact_share": others / (heavy + others),
            "exact_revealed": heavy + others,
            "true_share": 1.0 - case.heavy,
            "true_revealed": 1.0 / count,
        }
        for dtype in (torch.float32, torch.float64) if count in simulated else ():
            name = str(dtype).removeprefix("torch.")
            row[name] = _counted(*simulate(case, races, dtype=dtype, seed=count))
        rows.append(row)
    return {"vocabulary": tokens + 2, "races": races, "case": asdict(Case(tokens)), "rows": rows}


def _counted(heavy: int, others: int) -> dict[str, Any]:
    """A share with its standard error, and how far it is from one half."""
    total = heavy + others
    if total == 0:
        return {"revealed": 0, "share": None, "stderr": None, "chi_square": None}
    share = others / total
    return {
        "revealed": total,
        "share": share,
        "stderr": math.sqrt(share * (1.0 - share) / total),
        "chi_square": (others - heavy) ** 2 / total,
    }
