"""How far a setting's entropy and perplexity could have come out otherwise.

Entropy and log perplexity of the same samples go together, so both are redrawn together.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

SAMPLES, SEEDS, ERRORS, NOTHING = "samples", "seeds", "standard errors", "nothing"
_AT_ONCE = 1 << 20  # indices: repetitions times samples of large sets would fill a memory


@dataclass(frozen=True)
class Redrawn:
    """A setting of a frontier, and what repetitions of it could have given.

    Attributes:
        entropy: mean over seeds, nats.
        log_ppl: log of the mean GenPPL over seeds, nats per token.
        entropies: of the repetitions, ``[R]``.
        log_ppls: of the repetitions, ``[R]``.
        source: what they are made from: "samples" (resampled with replacement within each seed),
            "seeds" (their spread), "standard errors" (of a single seed), or "nothing".
    """

    entropy: float
    log_ppl: float
    entropies: Array
    log_ppls: Array
    source: str


def redraw(
    cells: Sequence[Mapping[str, Any]], repetitions: int, rng: np.random.Generator
) -> Redrawn:
    """Repeat the measurement of cells that differ in the seed alone.

    Args:
        cells: with ``gen_ppl`` and ``entropy``, and ``per_sample`` where samples are to be
            resampled.
        repetitions: R.
        rng: decides the repetitions.
    """
    entropy = float(np.mean([cell["entropy"] for cell in cells]))
    log_ppl = math.log(float(np.mean([cell["gen_ppl"] for cell in cells])))
    if all(_per_sample(cell) for cell in cells):
        entropies, log_ppls = _samples(cells, repetitions, rng)
        return Redrawn(entropy, log_ppl, entropies, log_ppls, SAMPLES)
    errors = [(cell.get("entropy_stderr"), cell.get("gen_ppl_stderr")) for cell in cells]
    if len(cells) > 1:
        points = np.array([[cell["entropy"], math.log(cell["gen_ppl"])] for cell in cells])
        noise, source = _seeds(points, repetitions, rng), SEEDS
    elif None not in errors[0]:
        widths = np.array([errors[0][0], errors[0][1] / cells[0]["gen_ppl"]])
        noise, source = rng.standard_normal((repetitions, 2)) * widths, ERRORS
    else:
        noise, source = np.zeros((repetitions, 2)), NOTHING
    return Redrawn(entropy, log_ppl, entropy + noise[:, 0], log_ppl + noise[:, 1], source)


def _per_sample(cell: Mapping[str, Any]) -> bool:
    return len((cell.get("per_sample") or {}).get("entropy", ())) > 1


def _samples(
    cells: Sequence[Mapping[str, Any]], repetitions: int, rng: np.random.Generator
) -> tuple[Array, Array]:
    """Samples of each seed drawn anew with replacement, as many as there are.

    A sample whose nats were not finite (null in the file) has an entropy and no part in GenPPL.
    """
    entropies, ppls = np.zeros(repetitions), np.zeros(repetitions)
    for cell in cells:
        kept = {name: np.asarray(values, float) for name, values in cell["per_sample"].items()}
        scored = np.isfinite(kept["nats"])
        kept |= {name: np.where(scored, kept[name], 0.0) for name in ("nats", "tokens")}
        count = len(kept["entropy"])
        size = max(1, _AT_ONCE // count)
        for start in range(0, repetitions, size):
            here = slice(start, min(start + size, repetitions))
            chosen = rng.integers(count, size=(here.stop - start, count))
            tokens = np.maximum(kept["tokens"][chosen].sum(1), 1)
            entropies[here] += kept["entropy"][chosen].mean(1) / len(cells)
            ppls[here] += np.exp(kept["nats"][chosen].sum(1) / tokens) / len(cells)
    return entropies, np.log(ppls)


def _seeds(points: Array, repetitions: int, rng: np.random.Generator) -> Array:
    """Deviations of the mean of ``[n, 2]`` points: Student's t with their covariance, n - 1.

    With two or three seeds a bootstrap over seeds would be far too narrow.
    """
    n = len(points)
    deviations = points - points.mean(0)
    normal = rng.standard_normal((repetitions, n)) @ deviations / math.sqrt(n * (n - 1))
    return normal * np.sqrt((n - 1) / rng.chisquare(n - 1, size=(repetitions, 1)))
