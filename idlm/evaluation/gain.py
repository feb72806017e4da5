"""What a student gained over its teacher, at equal steps and at equal entropy, with intervals.

At equal steps a lower perplexity may be bought with entropy: lowering the temperature does the
same. So the verdict is made at equal entropy, against the curve that the teacher draws as its
temperature (or its nucleus) is swept. A student on that curve has gained nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from idlm.equal_entropy import OUTSIDE
from idlm.evaluation.compare import CONDITIONS, by_setting, conditions, setting
from idlm.evaluation.interpolate import Array, smooth, straight
from idlm.evaluation.resampling import NOTHING, Redrawn, redraw

LEVEL = 0.95
REPETITIONS = 1000
# more than these may not fall off the curve's ends, or the interval would be of the others only
_MOST_OUTSIDE = 0.05
GAIN, NO_GAIN, LOSS, UNDECIDED = VERDICTS = ("gain", "no gain", "loss", "undecided")
SWEEPS = {"temperature": "top_p", "nucleus": "temperature"}  # and what stays at 1 in each

Row = dict[str, Any]


def gains(
    cells: Iterable[Mapping[str, Any]],
    teacher: str,
    *,
    repetitions: int = REPETITIONS,
    seed: int = 0,
) -> dict[str, Any]:
    """Every setting of every other model against the teacher.

    Args:
        cells: measured, under one or several evaluators; those without a perplexity are left out
            and counted.
        teacher: label of the model whose sweeps are the yardstick.
        repetitions: resamplings behind each interval.
        seed: of the resampling.

    Returns:
        ``equal_steps``: one row for each student setting whose step count the teacher has at
        temperature 1 without a nucleus: ``ratio`` of GenPPL (below 1 the student's is lower) and
        ``entropy_difference`` (nats), each with ``_low`` and ``_high``. ``equal_entropy``: one row
        for each student setting and teacher curve, with ``ratio``, its interval and ``verdict``.
        Both say in ``interval`` what the interval is made from. Beside them ``level``,
        ``repetitions`` and ``left_out``.
    """
    groups = by_setting(cells)
    known = [group for group in groups if all(_usable(cell) for cell in group)]
    rng = np.random.default_rng(seed)
    settings = [(setting(group[0]), redraw(group, repetitions, rng)) for group in known]
    own = [(row, point) for row, point in settings if row["label"] == teacher]
    others = [(row, point) for row, point in settings if row["label"] != teacher]
    return {
        "level": LEVEL,
        "repetitions": repetitions,
        "left_out": len(groups) - len(known),
        "equal_steps": [
            _at_steps(row, point, plain)
            for row, point in others
            for found, plain in own
            if _is_plain(found) and found["steps"] == row["steps"] and _alike(found, row)
        ],
        "equal_entropy": [
            _at_entropy(row, point, steps, sweep, curve)
            for row, point in others
            for steps, sweep, curve in _curves(own, row)
        ],
    }


def _usable(cell: Mapping[str, Any]) -> bool:
    return bool(cell.get("gen_ppl")) and cell.get("entropy") is not None


def _is_plain(row: Mapping[str, Any]) -> bool:
    return row["temperature"] == 1.0 and row["top_p"] == 1.0


def _alike(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return conditions(one) == conditions(other)


def _curves(
    own: Sequence[tuple[Row, Redrawn]], row: Row
) -> Iterable[tuple[int, str, list[Redrawn]]]:
    """The teacher's sweeps of two or more points that a row may be compared with."""
    alike = [(found, point) for found, point in own if _alike(found, row)]
    for steps in sorted({found["steps"] for found, _ in alike}):
        for sweep, fixed in SWEEPS.items():
            curve = [p for found, p in alike if found["steps"] == steps and found[fixed] == 1.0]
            if len(curve) > 1:
                yield steps, sweep, curve


def _at_steps(row: Row, student: Redrawn, teacher: Redrawn) -> Row:
    """GenPPL and entropy beside the teacher's of the same step count."""
    logs = student.log_ppls - teacher.log_ppls
    differences = student.entropies - teacher.entropies
    source = _source([student, teacher])
    low, high = (None, None) if source == NOTHING else _ends([logs])
    less, more = (None, None) if source == NOTHING else _ends([differences])
    return {
        **_named(row),
        "gen_ppl": math.exp(student.log_ppl),
        "entropy": student.entropy,
        "teacher_gen_ppl": math.exp(teacher.log_ppl),
        "teacher_entropy": teacher.entropy,
        "ratio": math.exp(student.log_ppl - teacher.log_ppl),
        "ratio_low": None if low is None else math.exp(low),
        "ratio_high": None if high is None else math.exp(high),
        "entropy_difference": student.entropy - teacher.entropy,
        "entropy_difference_low": less,
        "entropy_difference_high": more,
        "interval": source,
    }


def _at_entropy(
    row: Row, student: Redrawn, steps: int, sweep: str, curve: Sequence[Redrawn]
) -> Row:
    """The ratio to the teacher's curve at the student's entropy, its interval and the verdict.

    log GenPPL is interpolated linearly in entropy. The interval spans that of straight lines and
    that of a smooth curve through the same points, so that a verdict does not hang on how the
    teacher's curve bends between two of its temperatures.
    """
    at = np.array([student.entropy])
    x, y = (np.array([[getattr(p, name) for p in curve]]) for name in ("entropy", "log_ppl"))
    centre = student.log_ppl - float(straight(x, y, at)[0])
    xs, ys = (np.stack([getattr(p, n) for p in curve], 1) for n in ("entropies", "log_ppls"))
    drawn = [student.log_ppls - rule(xs, ys, student.entropies) for rule in (straight, smooth)]
    outside = float(np.isnan(drawn[0]).mean())
    source = _source([student, *curve])
    found: Row = {
        **_named(row),
        "gen_ppl": math.exp(student.log_ppl),
        "entropy": student.entropy,
        "teacher_steps": steps,
        "sweep": sweep,
        "teacher_gen_ppl": None,
        "ratio": None,
        "ratio_low": None,
        "ratio_high": None,
        "interval": source,
        "outside_share": outside,
        "verdict": UNDECIDED,
        "note": "",
    }
    if math.isnan(centre):
        return found | {"note": OUTSIDE}
    found |= {"teacher_gen_ppl": math.exp(student.log_ppl - centre), "ratio": math.exp(centre)}
    if source == NOTHING:
        return found | {"note": "one sample or one seed has no spread"}
    if outside > _MOST_OUTSIDE:
        return found | {"note": f"{outside:.0%} of the repetitions are {OUTSIDE}"}
    bent = centre + float(straight(x, y, at)[0] - smooth(x, y, at)[0])
    low, high = _ends(drawn)
    low, high = min(low, centre, bent), max(high, centre, bent)
    verdict = GAIN if high < 0 else LOSS if low > 0 else NO_GAIN
    return found | {
        "ratio_low": math.exp(low),
        "ratio_high": math.exp(high),
        "verdict": verdict,
    }


def _ends(drawn: Sequence[Array]) -> tuple[float, float]:
    """The outer ends of the central intervals of several sets of repetitions."""
    tail = (1 - LEVEL) / 2
    kept = [values[~np.isnan(values)] for values in drawn]
    return (
        min(float(np.quantile(values, tail)) for values in kept),
        max(float(np.quantile(values, 1 - tail)) for values in kept),
    )


def _source(points: Sequence[Redrawn]) -> str:
    """What an interval is made from: all of its sources, or nothing if one point has none."""
    names = dict.fromkeys(point.source for point in points)
    return NOTHING if NOTHING in names else " and ".join(sorted(names))


def _named(row: Row) -> Row:
    own = ("label", "steps", "temperature", "top_p", *CONDITIONS)
    return {name: row[name] for name in own}
