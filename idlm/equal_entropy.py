"""Generative perplexity at equal entropy: a student beside its teacher's temperature curve."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

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
