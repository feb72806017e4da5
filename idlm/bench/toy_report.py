"""Tables of the toys' records."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rich.table import Table

from idlm.bench.shared import markdown_table, wide_console
from idlm.bench.store import Record
from idlm.bench.toy_methods import METHODS, TEACHER_STEPS

Measure = Literal["tv", "js"]
_DIGITS = {"tv": 3, "js": 4}
_HEADER = ("data", "method", "process", "latent", "seeds")


@dataclass(frozen=True)
class Row:
    """A line of a table: a method on a data set, over its seeds.

    Attributes:
        who: data set, method, process, latent, number of seeds.
        far: mean distance from the truth for each number of steps.
        spread: its standard deviation over seeds, None for a single one.
        floor: what samples of the truth have.
        updates: of the student, or of the teacher in its place.
        seconds: mean length of the training.
        digits: behind the point of a distance.
    """

    who: tuple[str, ...]
    far: dict[int, float]
    spread: dict[int, float | None]
    floor: float
    updates: int
    seconds: float
    digits: int

    def at(self, steps: int) -> str:
        """Mean and spread at so many steps."""
        if steps not in self.far:
            return ""
        spread = self.spread[steps]
        mean = f"{self.far[steps]:.{self.digits}f}"
        return mean if spread is None else f"{mean} ± {spread:.{self.digits}f}"

    @property
    def values(self) -> list[str]:
        """What stands under :data:`COLUMNS`."""
        steps = [self.at(steps) for steps in TEACHER_STEPS]
        floor = f"{self.floor:.{self.digits}f}"
        return [*self.who, *steps, floor, str(self.updates), f"{self.seconds:.1f}"]


COLUMNS = (
    *_HEADER,
    *(f"{n} step{'s' * (n > 1)}" for n in TEACHER_STEPS),
    "floor",
    "updates",
    "training s",
)


def summarise(records: Sequence[Record], measure: Measure = "tv") -> list[Row]:
    """Means over seeds, in the order of the records; a row for settings of their own.

    Args:
        records: as ``idlm bench toys`` writes them.
        measure: ``tv``, total variation, or ``js``, Jensen-Shannon divergence.
    """
    groups: dict[Any, list[Record]] = {}
    for record in records:
        key = (record["dataset"], record["method"], record["process"], record["latent"])
        # seeds of before and after a change of the settings have no mean
        groups.setdefault((*key, json.dumps(record["settings"])), []).append(record)
    rows = []
    for (dataset, method, process, latent, _), group in groups.items():
        far: dict[int, list[float]] = {}
        for record in group:
            far.setdefault(record["steps"], []).append(record[measure])
        seeds = len({record["seed"] for record in group})
        rows.append(
            Row(
                who=(dataset, method, process, str(latent), str(seeds)),
                far={steps: statistics.fmean(found) for steps, found in far.items()},
                spread={
                    steps: statistics.stdev(found) if len(found) > 1 else None
                    for steps, found in far.items()
                },
                floor=group[0][f"floor_{measure}"],
                updates=group[0]["updates"],
                seconds=statistics.fmean(record["train_seconds"] for record in group),
                digits=_DIGITS[measure],
            )
        )
    return rows


def departures() -> str:
    """What of the toys' settings is ours and not the papers', for the foot of table and figure."""
    masked: Any = METHODS["idlm"].make(1)
    matched: Any = METHODS["dmmd"].make(1)
    return (
        f'Masked IDLM is run with fake_sees "{masked.fake_sees}", pure_noise {masked.pure_noise:g} '
        f'and {masked.weighting} weighting, masked D-MMD with fake_sees "{matched.fake_sees}" and '
        f"{matched.weighting} weighting. A masked student's latent enters in proportion to the "
        "other masked positions, a uniform one's in proportion to the noise (Perceptron._share). "
        "All of this is ours, not the papers'."
    )


def print_table(records: Sequence[Record]) -> None:
    """Print total variation against steps, a line per method, a section per data set."""
    caption = "Total variation from the exact table, ± sd over seeds; floor: of the truth's samples"
    table = Table(caption=caption, caption_justify="left", caption_style="")
    for title in COLUMNS:
        text = title in _HEADER[:3]
        table.add_column(title, justify="left" if text else "right", no_wrap=title in _HEADER)
    before = None
    for row in summarise(records):
        if before not in (None, row.who[0]):
            table.add_section()
        before = row.who[0]
        table.add_row(*row.values)
    wide_console().print(table)


def markdown(records: Sequence[Record]) -> str:
    """A table of total variation and one of the Jensen-Shannon divergence, in Markdown."""

    def table(measure: Measure) -> str:
        return markdown_table(COLUMNS, [row.values for row in summarise(records, measure)])

    about = "from the exact table, mean ± sd over seeds; floor: of as many samples of the table"
    return (
        f"Total variation {about}.\n\n{table('tv')}\n"
        f"Jensen-Shannon divergence in nats {about}.\n\n{table('js')}\n{departures()}\n"
    )
