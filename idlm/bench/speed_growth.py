"""How the costs of ``idlm bench speed`` grow with one size, and the power law through them."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass, replace
from typing import Any

from idlm.bench.speed_run import LossCase, SamplerCase
from idlm.bench.store import Record


@dataclass(frozen=True)
class GrowthCase:
    """How a cost grows with one size, the others fixed.

    Attributes:
        case: with the smallest size.
        size: the attribute that grows; ``vocab`` is the network's.
        factors: what the smallest is multiplied by.
    """

    case: SamplerCase | LossCase
    size: str
    factors: tuple[int, ...] = (1, 2, 4)

    def grown(self) -> list[tuple[int, SamplerCase | LossCase]]:
        """Sizes, and the case with each."""
        if self.size == "vocab":
            first = self.case.network.vocab
            sizes = [first * factor for factor in self.factors]
            networks = [replace(self.case.network, vocab=size) for size in sizes]
            return [
                (size, replace(self.case, network=network))
                for size, network in zip(sizes, networks, strict=True)
            ]
        sizes = [getattr(self.case, self.size) * factor for factor in self.factors]
        changes: list[dict[str, Any]] = [{self.size: size} for size in sizes]
        return [
            (size, replace(self.case, **change))
            for size, change in zip(sizes, changes, strict=True)
        ]


def growth_record(case: GrowthCase, found: list[Record]) -> Record:
    """Costs against a size, and the exponent of the power law through them.

    Args:
        case: what was grown.
        found: a record of each size, in its order.
    """
    sizes = [size for size, _ in case.grown()]
    kind = found[0]["case"]
    keep = ("network", "vocab_size", "batch", "length", "steps", "objective")
    names = {"vocab": "vocab_size"}
    out: Record = {
        "case": "growth",
        "of": kind,
        "against": names.get(case.size, case.size),
        **{k: found[0][k] for k in keep if k in found[0] and k != names.get(case.size, case.size)},
        "sizes": sizes,
    }
    for cost in ("lean_seconds", "backbone_seconds", "beyond_bytes"):
        values: list[Any] = [record.get(cost) for record in found]
        # the peak of a tiny work may hide behind what the process had before
        if all(value is not None and value > 0 for value in values):
            out[cost] = values
            out[f"{cost}_exponent"] = exponent(sizes, values)
    return out


def exponent(sizes: list[int], costs: list[float]) -> float:
    """p of the least-squares fit of cost = c size^p."""
    x, y = [math.log(size) for size in sizes], [math.log(cost) for cost in costs]
    return statistics.linear_regression(x, y).slope
