"""From measured cells to a comparison: means over seeds, and perplexity at equal entropy."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

NUMBERS = (
    "gen_ppl",
    "entropy",
    "distinct_2_per_sequence",
    "network_calls",
    "tokens_per_call",
    "seconds",
)
OUTSIDE = "outside the curve"
Point = tuple[float, float]


@dataclass(frozen=True)
class Matched:
    """A student against a teacher's temperature curve at the student's entropy.

    Attributes:
        ratio: student's GenPPL over the curve's; below 1 the student is better. None when the
            curve does not reach the student's entropy.
        teacher_gen_ppl: of the curve, at that entropy.
        note: empty, or why there is no number.
    """

    ratio: float | None
    teacher_gen_ppl: float | None
    note: str = ""


def matched_entropy(teacher_points: Iterable[Point], student_point: Point) -> Matched:
    """Compare at equal entropy, since a lower temperature lowers GenPPL and entropy together.

    log GenPPL of the teacher is interpolated linearly in entropy between the two neighbouring
    points of its curve. Nothing is extrapolated: outside the curve there is no number.

    Args:
        teacher_points: (entropy in nats, GenPPL) of one step count at several temperatures.
        student_point: (entropy in nats, GenPPL).
    """
    entropy, gen_ppl = student_point
    curve = sorted(teacher_points)
    for low, high in zip(curve, curve[1:] or curve, strict=False):
        if low[0] <= entropy <= high[0]:
            width = high[0] - low[0]
            weight = (entropy - low[0]) / width if width else 0.5
            log_ppl = (1.0 - weight) * math.log(low[1]) + weight * math.log(high[1])
            return Matched(gen_ppl / math.exp(log_ppl), math.exp(log_ppl))
    return Matched(None, None, OUTSIDE)


def summarise(cells: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean and standard deviation over seeds for each (label, steps, temperature, top_p).

    Returns:
        One row per group in order of first appearance: the group, ``seeds``, ``num_samples`` per
        seed, and ``X_mean`` and ``X_sd`` (n - 1; None for a single seed) for each number X. A
        number that a cell lacks makes its mean None: nothing is left out in silence.
    """
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for cell in cells:
        key = (cell["label"], cell["steps"], cell["temperature"], cell["top_p"])
        groups.setdefault(key, []).append(cell)
    rows = []
    for (label, steps, temperature, top_p), members in groups.items():
        row: dict[str, Any] = {
            "label": label,
            "steps": steps,
            "temperature": temperature,
            "top_p": top_p,
            "seeds": sorted(cell["seed"] for cell in members),
            "num_samples": min(cell["num_samples"] for cell in members),
        }
        for name in NUMBERS:
            values = [cell[name] for cell in members]
            row[f"{name}_mean"], row[f"{name}_sd"] = _mean_sd(values)
        rows.append(row)
    return rows


def _mean_sd(values: Sequence[float | None]) -> tuple[float | None, float | None]:
    present = [value for value in values if value is not None]
    if len(present) < len(values) or not present:
        return None, None
    sd = float(np.std(present, ddof=1)) if len(present) > 1 else None
    return float(np.mean(present)), sd


def matched_table(summary: Sequence[dict[str, Any]], teacher: str) -> list[dict[str, Any]]:
    """Every row of another model against the teacher's temperature curve of every step count.

    Args:
        summary: what :func:`summarise` returns.
        teacher: label of the model whose temperature curves are the yardstick.
    """
    known = [row for row in summary if row["gen_ppl_mean"] is not None]
    curves: dict[int, list[Point]] = {}
    for row in known:
        if row["label"] == teacher and row["top_p"] == 1.0:
            curves.setdefault(row["steps"], []).append((row["entropy_mean"], row["gen_ppl_mean"]))
    table = []
    for row in known:
        if row["label"] == teacher:
            continue
        for steps, curve in sorted(curves.items()):
            found = matched_entropy(curve, (row["entropy_mean"], row["gen_ppl_mean"]))
            table.append(
                {
                    "label": row["label"],
                    "steps": row["steps"],
                    "temperature": row["temperature"],
                    "teacher_steps": steps,
                    "ratio": found.ratio,
                    "teacher_gen_ppl": found.teacher_gen_ppl,
                    "note": found.note,
                }
            )
    return table
