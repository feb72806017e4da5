"""The figure of the toys: heat maps of what each method draws in one step."""

from __future__ import annotations

import textwrap
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from torch import Tensor

from idlm.bench import toys
from idlm.bench.shared import save_png
from idlm.bench.store import Record
from idlm.bench.toy_methods import METHODS, PROCESSES, TEACHER
from idlm.bench.toy_report import departures, summarise
from idlm.bench.toy_run import Cell, Plan, cell_of
from idlm.errors import UserError
from idlm.samples import replace_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_TITLES = {
    "idlm": "IDLM",
    "dmmd": "D-MMD",
    "instant": "instant MM",
    "vadd": "VADD",
    "di4c": "Di4C",
    "sdtt": "SDTT",
    "dmmd-uniform": "D-MMD",
    "instant-uniform": "instant MM",
    "idlm-duo": "IDLM-Duo",
    "duo-dcd": "Duo-DCD",
    "mm": "MM",
    "mm-instant": "instant MM",
    "dmd2": "DMD2",
}
_HEADINGS = {"absorbing": "masked", "uniform": "uniform", "gaussian": "Gaussian"}
# Panels side by side, so that each is a thumb wide where a page shows the figure.
_ACROSS = 8
# inches: of a panel, between panels, between groups, left of all, above a band, of a line of text
_PANEL, _SPACE, _GROUP, _LEFT, _ABOVE, _LINE = 1.38, 0.05, 0.14, 0.24, 0.52, 0.16

Column = tuple[str, str]  # method and process


class Counts:
    """How often each cell of a table was sampled in one step: what the figure shows.

    Kept in an ``.npz`` file beside the records, which it is too large for.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._held = self._read()

    def add(self, cell: Cell, plan: Plan, counts: Tensor) -> None:
        """Keep the counts of a cell.

        Raises:
            UserError: if the file cannot be written.
        """
        # another run may have added its own in the meantime
        self._held = {**self._read(), self._key(cell, plan): counts.int().numpy()}
        held: Any = self._held
        replace_bytes(self.path, lambda file: np.savez(file, **held))

    def get(self, cell: Cell, plan: Plan) -> np.ndarray | None:
        """The counts of a cell ``[C + 1]``, if they were kept."""
        return self._held.get(self._key(cell, plan))

    def _read(self) -> dict[str, np.ndarray]:
        if not self.path.exists():
            return {}
        try:
            with np.load(self.path, allow_pickle=False) as found:
                return dict(found)
        except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
            raise UserError(f"{self.path} cannot be read ({error}); remove it") from error

    @staticmethod
    def _key(cell: Cell, plan: Plan) -> str:
        return repr(cell.key(plan))


def shown(cells: Iterable[Cell]) -> dict[tuple[str, Column], Cell]:
    """Which cells the figure shows for each data set and column.

    Those of the plane alone, the first seed of each, with the largest latent where there are
    several. Of the teachers the masked one stands for all.
    """
    found: dict[tuple[str, Column], Cell] = {}
    planar = {name: toys.load(name).planar for name in toys.NAMES}
    for cell in cells:
        known = cell.method in METHODS or (cell.method, cell.process) == (TEACHER, PROCESSES[0])
        if not known or not planar.get(cell.dataset):
            continue
        key = (cell.dataset, (cell.method, cell.process))
        if key not in found or found[key].latent < cell.latent:
            found[key] = cell
    return found


class _Band(NamedTuple):
    """Groups of columns side by side, to the right of the truth."""

    groups: list[list[Column]]

    @property
    def columns(self) -> list[Column]:
        return [column for group in self.groups for column in group]

    @property
    def places(self) -> list[float]:
        """Left edges of the panels in inches, the truth's first."""
        places = [_LEFT]
        for group in self.groups:
            start = places[-1] + _PANEL + _SPACE + _GROUP
            places += [start + number * (_PANEL + _SPACE) for number in range(len(group))]
        return places

    @property
    def width(self) -> float:
        return self.places[-1] + _PANEL + _SPACE


def _bands(columns: Iterable[Column]) -> list[_Band]:
    """Columns in the order of processes and methods, a group for each process."""
    order, found = [TEACHER, *METHODS], dict.fromkeys(columns)
    bands: list[_Band] = []
    for process in PROCESSES:
        group = sorted((c for c in found if c[1] == process), key=lambda c: order.index(c[0]))
        if not group:
            continue
        if not bands or 1 + len(bands[-1].columns) + len(group) > _ACROSS:
            bands.append(_Band([]))
        bands[-1].groups.append(group)
    return bands


def save_figure(records: Sequence[Record], plan: Plan, counts: Counts, path: Path) -> Path:
    """Heat maps in one step: a row for each planar data set, a column for each method.

    Methods stand in groups by process, the true density at the head of each band of them. Shades
    are of the true density's range, the same along a row; the number in a corner is the mean
    over seeds of the total variation.

    Args:
        records: of one plan, some of them to be shown, see :func:`shown`.
        plan: of the records.
        counts: of the records; a cell without says so.
        path: the PNG; it appears only when complete.

    Raises:
        UserError: if the file cannot be written.
    """
    from matplotlib.figure import Figure

    cells = shown(cell_of(record) for record in records)
    datasets = [name for name in toys.NAMES if any(key[0] == name for key in cells)]
    bands = _bands(column for _, column in cells)
    rows = {row.who[:4]: row for row in summarise(records)}
    width = max(band.width for band in bands)
    foot = _foot([row.floor for who, row in rows.items() if who[0] in datasets], width)
    below, tall = _LINE * (len(foot) + 1), _ABOVE + len(datasets) * (_PANEL + _SPACE)
    height = len(bands) * tall + below
    figure = Figure(figsize=(width, height))
    left, top = _LEFT / width, (below - 0.5 * _LINE) / height
    figure.text(left, top, "\n".join(foot), va="top", fontsize=8)
    for number, band in enumerate(bands):
        top = height - number * tall
        _head(figure, band, top)
        for line, dataset in enumerate(datasets, start=1):
            bottom = top - _ABOVE - line * (_PANEL + _SPACE) + _SPACE
            truth = toys.load(dataset, bins=plan.bins).probs.numpy()
            axes = _panel(figure, _LEFT, bottom)
            _map(axes, truth, truth.max(), plan.bins)
            axes.set_ylabel(dataset, fontsize=8, labelpad=3)
            for left, column in zip(band.places[1:], band.columns, strict=True):
                cell = cells.get((dataset, column))
                if cell is not None:
                    axes, drawn = _panel(figure, left, bottom), counts.get(cell, plan)
                    who = (dataset, *column, str(cell.latent))
                    _fill(axes, drawn, rows[who].far[1], truth.max(), plan.bins)
    return save_png(figure, path)


def _head(figure: Figure, band: _Band, top: float) -> None:
    """Names above a band: of processes, under a line as wide as the group, and of methods."""
    from matplotlib.lines import Line2D

    width, height = figure.get_size_inches()
    places = band.places
    titles = ["truth", *(_TITLES.get(method, method) for method, _ in band.columns)]
    for left, title in zip(places, titles, strict=True):
        middle = (left + _PANEL / 2) / width
        figure.text(middle, (top - _ABOVE + 0.05) / height, title, ha="center", fontsize=8)
    first = 1
    for group in band.groups:
        left, right = places[first], places[first + len(group) - 1] + _PANEL
        first += len(group)
        line = (top - _ABOVE + 0.24) / height
        figure.add_artist(
            Line2D([left / width, right / width], [line, line], color="0.6", linewidth=0.8)
        )
        name = _HEADINGS[group[0][1]]
        middle = (left + right) / 2 / width
        figure.text(middle, line + 0.05 / height, name, ha="center", fontsize=9)


def _foot(floors: Sequence[float], width: float) -> list[str]:
    """What is to be seen, in lines for a figure of so many inches."""
    ends = dict.fromkeys(f"{end(floors):.2f}" for end in (min, max))
    text = (
        "Samples of one step. Numbers: total variation from the exact density, mean over seeds; "
        f"as many samples of the density itself have {' to '.join(ends)}. {departures()}"
    )
    return textwrap.wrap(text, round(15.5 * width))  # letters of 8 points to an inch


def _panel(figure: Figure, left: float, bottom: float) -> Axes:
    width, height = figure.get_size_inches()
    axes = figure.add_axes((left / width, bottom / height, _PANEL / width, _PANEL / height))
    axes.set_xticks([])
    axes.set_yticks([])
    for side in axes.spines.values():
        side.set_visible(False)
    return axes


def _map(axes: Axes, density: np.ndarray, top: float, bins: int) -> None:
    image: Any = density.reshape(bins, bins).T
    axes.imshow(image, origin="lower", cmap="magma", vmin=0.0, vmax=top, interpolation="nearest")


def _fill(axes: Axes, drawn: np.ndarray | None, far: float, top: float, bins: int) -> None:
    """Samples, and in the corner how far they are from the truth."""
    if drawn is None:
        axes.text(0.5, 0.5, "counts\nnot kept", ha="center", va="center", fontsize=8)
        return
    _map(axes, drawn[:-1] / drawn.sum(), top, bins)
    axes.text(
        0.96,
        0.04,
        f"{far:.2f}",
        transform=axes.transAxes,
        ha="right",
        va="bottom",
        fontsize=8,
        color="white",
        bbox={"facecolor": "black", "alpha": 0.6, "pad": 1.5, "linewidth": 0},
    )
