"""Pictures of a training: losses, the collapse monitor, and quality at equal entropy."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING

from idlm.report.findings import Training
from idlm.report.pictures import COLOURS, INK, Picture, draw

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D

Curve = Sequence[tuple[float, float]]
_POINTS = 240  # of a line; more would only be a band of ink
_PANELS = (
    ("student's loss", ("train/student_loss", "val/student_loss")),
    ("fake model's loss", ("train/fake_loss",)),
    ("NELBO (nats per token)", ("train/nelbo", "val/nelbo")),
    ("loss (nats per token)", ("train/loss", "val/loss")),
)
_COLLAPSE = ("train/student_entropy", "val/student_entropy")
_WATCHED = ("val/frontier_ratio", "val/gen_ppl", "val/entropy")


def curves(name: str, run: Training) -> Picture | None:
    """Losses over the updates and, of a distillation, the collapse monitor.

    Args:
        name: of the picture.
        run: the log.
    """
    panels = [(title, [k for k in keys if k in run.curves]) for title, keys in _PANELS]
    panels = [(title, keys) for title, keys in panels if keys]
    watched = [key for key in _COLLAPSE if key in run.curves]
    if watched:
        panels.append(("entropy at masked\npositions (nats)", watched))
    if not panels:
        return None

    def paint(axes: Sequence[Axes]) -> list[Line2D]:
        for panel, (title, keys) in zip(axes, panels, strict=True):
            for key in keys:
                _line(panel, run.curves[key], held_out=key.startswith("val/"))
            panel.set_ylabel(title)
        if run.floor is not None and watched:
            axes[-1].axhline(run.floor, color=COLOURS[1], linestyle="--", linewidth=1.3)
            axes[-1].set_ylim(bottom=min(0.0, *axes[-1].get_ylim()))
        axes[-1].set_xlabel(run.counter)
        return _handles(panels, run.floor is not None and bool(watched))

    longest = max((len(curve) for curve in run.curves.values()), default=0)
    joined = -(-longest // _POINTS)
    about = f"Training values are means of {joined} updates. " if joined > 1 else ""
    guard = (
        "The collapse monitor is the entropy of the student's prediction at masked positions: a "
        "student that collapses loses it while its loss keeps falling."
    )
    return draw(
        name,
        "Training curves" + (" and collapse monitor" if watched else ""),
        f"Line plots over {run.counter} of {', '.join(_flat(title) for title, _ in panels)}.",
        paint,
        height=1.25 + 1.15 * len(panels),
        panels=(1.0,) * len(panels),
        caption=about + (guard if watched else ""),
    )


def at_equal_entropy(name: str, run: Training) -> Picture | None:
    """What FrontierMonitor saw: the ratio at equal entropy, GenPPL and entropy.

    Args:
        name: of the picture.
        run: the log.
    """
    if not all(key in run.curves for key in _WATCHED):
        return None

    def paint(axes: Sequence[Axes]) -> list[Line2D]:
        titles = ("GenPPL over the\nteacher's", "GenPPL", "entropy (nats)")
        for panel, key, title in zip(axes, _WATCHED, titles, strict=True):
            # outside the teacher's curve there is no ratio
            curve = [(x, y) for x, y in run.curves[key] if math.isfinite(y)]
            if curve:
                panel.plot(*zip(*curve, strict=True), color=COLOURS[0], marker="o", markersize=5)
            panel.set_ylabel(title)
        axes[0].axhline(1.0, color=INK, linestyle="--", linewidth=1)
        axes[-1].set_xlabel(run.counter)
        return []

    return draw(
        name,
        "Quality at the teacher's entropy",
        f"Three line plots over {run.counter}: the ratio of GenPPL to the teacher's at equal "
        "entropy, GenPPL, and entropy in nats; the numbers are in the table below.",
        paint,
        height=4.4,
        panels=(1.0, 1.0, 1.0),
        caption="Of the averaged student, at every validation. Below 1 (dashed) it beats every "
        "temperature of its teacher; a missing point lies outside the teacher's curve.",
    )


def _flat(title: str) -> str:
    return title.replace("\n", " ")


def _line(panel: Axes, curve: Curve, *, held_out: bool) -> None:
    """Means of neighbours for training, points for validation; a value that is infinite is not."""
    finite = [(x, y) for x, y in curve if math.isfinite(y)]
    if not finite:
        return
    if held_out:
        panel.plot(*zip(*finite, strict=True), color=COLOURS[1], marker="o", markersize=4.5)
        return
    size = -(-len(finite) // _POINTS)
    pieces = [finite[start : start + size] for start in range(0, len(finite), size)]
    means = [tuple(map(statistics.fmean, zip(*piece, strict=True))) for piece in pieces]
    panel.plot(*zip(*means, strict=True), color=COLOURS[0], linewidth=1.1)


def _handles(panels: Sequence[tuple[str, list[str]]], floored: bool) -> list[Line2D]:
    from matplotlib.lines import Line2D

    keys = [key for _, keys in panels for key in keys]
    found = []
    if any(key.startswith("train/") for key in keys):
        found.append(Line2D([], [], color=COLOURS[0], label="training"))
    if any(key.startswith("val/") for key in keys):
        found.append(Line2D([], [], color=COLOURS[1], marker="o", label="validation"))
    if floored:
        found.append(Line2D([], [], color=COLOURS[1], linestyle="--", label="guard's floor"))
    return found
