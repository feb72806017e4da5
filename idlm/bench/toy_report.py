"""Table and figure of the toys' records."""

from __future__ import annotations

import os
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.table import Table
from torch import Tensor

from idlm.bench import toys
from idlm.bench.toy_methods import TEACHER, TEACHER_STEPS
from idlm.bench.toy_run import Cell, Plan, Record
from idlm.errors import UserError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# wide enough for every column when stdout is a file or a pipe
_PLAIN_WIDTH = 150
_HEADER = ("data", "method", "process", "latent", "seeds")


@dataclass(frozen=True)
class Row:
    """A line of the table: a method on a data set, over its seeds.

    Attributes:
        who: data set, method, process, latent, number of seeds.
        tv: mean total variation for each number of steps.
        spread: its standard deviation over seeds, None for a single one.
        floor: what samples of the truth have.
        seconds: mean length of the training.
    """

    who: tuple[str, ...]
    tv: dict[int, float]
    spread: dict[int, float | None]
    floor: float
    seconds: float

    def at(self, steps: int) -> str:
        """Mean and spread at so many steps."""
        if steps not in self.tv:
            return ""
        spread = self.spread[steps]
        return f"{self.tv[steps]:.3f}" + ("" if spread is None else f" ± {spread:.3f}")


def summarise(records: Sequence[Record]) -> list[Row]:
    """Means over seeds, in the order of the records."""
    groups: dict[Any, list[Record]] = {}
    for record in records:
        key = (record["dataset"], record["method"], record["process"], record["latent"])
        groups.setdefault(key, []).append(record)
    rows = []
    for (dataset, method, process, latent), group in groups.items():
        tv: dict[int, list[float]] = {}
        for record in group:
            tv.setdefault(record["steps"], []).append(record["tv"])
        seeds = len({record["seed"] for record in group})
        rows.append(
            Row(
                who=(dataset, method, process, str(latent), str(seeds)),
                tv={steps: statistics.fmean(found) for steps, found in tv.items()},
                spread={
                    steps: statistics.stdev(found) if len(found) > 1 else None
                    for steps, found in tv.items()
                },
                floor=group[0]["floor_tv"],
                seconds=statistics.fmean(record["train_seconds"] for record in group),
            )
        )
    return rows


def print_table(records: Sequence[Record]) -> None:
    """Print total variation against steps, a line per method, a section per data set."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=_PLAIN_WIDTH)
    caption = "Total variation from the exact table, ± sd over seeds; floor: of the truth's samples"
    table = Table(caption=caption, caption_justify="left", caption_style="")
    for title in _HEADER:
        text = title in _HEADER[:3]
        table.add_column(title, justify="left" if text else "right", no_wrap=True)
    for title in _columns():
        table.add_column(title, justify="right")
    before = None
    for row in summarise(records):
        if before not in (None, row.who[0]):
            table.add_section()
        before = row.who[0]
        table.add_row(*row.who, *_values(row))
    console.print(table)


def markdown(records: Sequence[Record]) -> str:
    """The same table in Markdown."""
    titles = [*_HEADER, *_columns()]
    lines = [titles, ["---"] * len(titles)]
    lines += [[*row.who, *_values(row)] for row in summarise(records)]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def _columns() -> list[str]:
    return [*(f"{n} step{'s' * (n > 1)}" for n in TEACHER_STEPS), "floor", "training s"]


def _values(row: Row) -> list[str]:
    return [*(row.at(steps) for steps in TEACHER_STEPS), f"{row.floor:.3f}", f"{row.seconds:.1f}"]


class Counts:
    """How often each cell of a table was sampled in one step: what the figure shows.

    Kept in an ``.npz`` file beside the records, which it is too large for.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._held = self._read()

    @classmethod
    def beside(cls, output: Path) -> Counts:
        """Of the records in the file ``output``."""
        return cls(output.with_name(f"{output.stem}.counts.npz"))

    def add(self, cell: Cell, plan: Plan, counts: Tensor) -> None:
        """Keep the counts of a cell.

        Raises:
            UserError: if the file cannot be written.
        """
        self._held[self._key(cell, plan)] = counts.int().numpy()
        temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}.tmp")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("wb") as file:
                np.savez(file, **self._held)  # type: ignore[arg-type]
            os.replace(temporary, self.path)
        except OSError as error:
            raise UserError(f"{self.path} cannot be written ({error.strerror})") from error
        finally:
            temporary.unlink(missing_ok=True)

    def get(self, cell: Cell, plan: Plan) -> np.ndarray | None:
        """The counts of a cell ``[C + 1]``, if they were kept."""
        return self._held.get(self._key(cell, plan))

    def _read(self) -> dict[str, np.ndarray]:
        if not self.path.exists():
            return {}
        try:
            with np.load(self.path, allow_pickle=False) as found:
                return dict(found)
        except (OSError, ValueError) as error:
            raise UserError(f"{self.path} cannot be read ({error}); remove it") from error

    @staticmethod
    def _key(cell: Cell, plan: Plan) -> str:
        return repr(cell.key(plan))


def save_figure(
    cells: Iterable[Cell], plan: Plan, records: Sequence[Record], counts: Counts, path: Path
) -> Path:
    """Heat maps in one step: a row for each planar data set, a column for each method.

    The first column is the true density. Shades are of the true density's range, the same along a
    row; the number in a corner is the total variation of all seeds' mean.

    Args:
        cells: what to draw; one seed of each, methods with a latent where there are both.
        plan: of the cells.
        records: of the cells.
        counts: of the cells.
        path: the PNG; it appears only when complete.

    Raises:
        UserError: if nothing can be drawn, or the file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    found: dict[Any, float] = {row.who[:4]: row.tv[1] for row in summarise(records)}
    columns: dict[tuple[str, str], int] = {}
    shown: dict[tuple[str, str, str], Cell] = {}
    for cell in cells:
        if cell.method == TEACHER and cell.process != "absorbing":
            continue  # in one step all teachers are products of marginals
        column = (cell.method, cell.process)
        columns[column] = max(columns.get(column, 0), cell.latent)
    for cell in cells:
        largest = columns.get((cell.method, cell.process))
        if largest == cell.latent and toys.load(cell.dataset, bins=plan.bins).planar:
            shown.setdefault((cell.dataset, cell.method, cell.process), cell)
    datasets = [name for name in toys.NAMES if any(key[0] == name for key in shown)]
    if not datasets:
        raise UserError("there is nothing to draw: the figure shows data sets of the plane")
    size = (1.25 * (len(columns) + 1), 1.25 * len(datasets) + 0.35)
    layout = ConstrainedLayoutEngine(w_pad=0.02, h_pad=0.02, wspace=0.0, hspace=0.0)
    figure = Figure(figsize=size, layout=layout)
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(datasets), len(columns) + 1, squeeze=False)
    for line, dataset in zip(grid, datasets, strict=True):
        truth = toys.load(dataset, bins=plan.bins).probs.numpy()
        _map(line[0], truth, truth.max(), plan.bins)
        line[0].set_ylabel(dataset, fontsize=8)
        for axes, (method, process) in zip(line[1:], columns, strict=True):
            one = shown.get((dataset, method, process))
            drawn = None if one is None else counts.get(one, plan)
            if one is None or drawn is None:
                axes.set_axis_off()
                continue
            _map(axes, drawn[:-1] / drawn.sum(), truth.max(), plan.bins)
            _corner(axes, f"{found[(dataset, method, process, str(one.latent))]:.2f}")
    grid[0, 0].set_title("truth", fontsize=8)
    for axes, (method, _) in zip(grid[0, 1:], columns, strict=True):
        axes.set_title(method, fontsize=8)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.png")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(temporary, dpi=150)
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}): name another") from error
    finally:
        temporary.unlink(missing_ok=True)
    return path


def _map(axes: Axes, density: np.ndarray, top: float, bins: int) -> None:
    image = density.reshape(bins, bins).T
    axes.imshow(image, origin="lower", cmap="magma", vmin=0.0, vmax=top, interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([])
    for side in axes.spines.values():
        side.set_visible(False)


def _corner(axes: Axes, text: str) -> None:
    axes.text(
        0.96,
        0.04,
        text,
        transform=axes.transAxes,
        ha="right",
        va="bottom",
        fontsize=7,
        color="white",
        bbox={"facecolor": "black", "alpha": 0.55, "pad": 1.2, "linewidth": 0},
    )
