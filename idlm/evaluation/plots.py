"""The frontier as a picture: GenPPL against entropy, and against steps.

``python -m idlm.evaluation.plots eval/results/frontier.json eval/results/frontier.png``
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from idlm.errors import UserError, reason
from idlm.evaluation.held_out import draw_held_out, halo
from idlm.samples import replace_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Row = Mapping[str, Any]

# Okabe and Ito's palette, told apart by every kind of colour vision; shapes differ as well.
_MODEL_COLOURS = ("#D55E00", "#009E73", "#CC79A7", "#E69F00")
_MODEL_MARKERS = ("o", "s", "D", "P")
_TEACHER_MARKERS = ("v", "^", "<", ">", "d", "X", "h", "p")
_TEACHER_COLOUR = "#0072B2"
_INK = "#444444"
_USUAL = {"sampling_dtype": "float64", "network_dtype": "float32"}


def plot_frontier(
    summary: Sequence[Row],
    path: str | Path,
    *,
    teacher: str,
    reference: Row | None = None,
    note: str = "",
) -> Path:
    """Draw two panels and write a PNG of 150 dpi.

    Left: GenPPL against entropy; the teacher's temperature curve of each step count is a line,
    the other models are markers with their steps, held-out text is a star. Lower is better at
    equal entropy. Right: GenPPL against steps at temperature 1. Bars are the standard deviation
    over seeds, or the standard error over the samples of a single seed.

    Args:
        summary: rows of :func:`idlm.evaluation.compare.summarise`.
        path: the PNG to write; it appears only when complete.
        teacher: label of the model whose temperature curves are drawn.
        reference: held-out text with ``gen_ppl`` and ``entropy``.
        note: one line of conditions under the panels.

    Returns:
        ``path``.

    Raises:
        UserError: if no row has a perplexity, or the file cannot be written.
    """
    rows = [row for row in summary if row["gen_ppl_mean"] is not None]
    if not rows:
        raise UserError("there is nothing to plot: no row of the summary has a perplexity")
    # A figure of its own canvas, no pyplot: no window system and no global state.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12.5, 5.6), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, width_ratios=(1.25, 1))
    _entropy_panel(left, rows, teacher, reference)
    _steps_panel(right, rows, teacher, reference)
    if note:
        figure.supxlabel(note, fontsize=8.5, color=_INK)
    return replace_bytes(path, lambda file: figure.savefig(file, dpi=150, format="png"))


def _entropy_panel(axes: Axes, rows: Sequence[Row], teacher: str, reference: Row | None) -> None:
    own = [row for row in rows if row["label"] == teacher]
    axes.margins(x=0.1)  # the temperatures stand left of their points
    shades = _shades(sorted({row["steps"] for row in own}))
    told = False
    for number, (steps, colour) in enumerate(shades.items()):
        curve = sorted((r for r in own if r["steps"] == steps), key=lambda r: r["temperature"])
        marker = _TEACHER_MARKERS[number % len(_TEACHER_MARKERS)]
        _points(
            axes,
            curve,
            "entropy_mean",
            colour=colour,
            marker=marker,
            line="-",
            size=5,
            label=f"{teacher}, {steps} steps",
        )
        if len(curve) > 1 and not told:  # one curve is enough to show which way T goes
            told = True
            for row in curve:
                _tag(axes, row, f"T={row['temperature']:g}", _INK, offset=(-32, 6))
    for number, name in enumerate(_others(rows, teacher)):
        colour, marker = _style(number)
        points = sorted((r for r in rows if r["label"] == name), key=lambda r: r["steps"])
        _points(
            axes,
            points,
            "entropy_mean",
            colour=colour,
            marker=marker,
            line="",
            size=9,
            label=f"{name} (steps beside it)",
            hollow=number > 0,
        )
        for row in points:
            hot = "" if row["temperature"] == 1.0 else f", T={row['temperature']:g}"
            _tag(axes, row, f"{row['steps']}{hot}", colour, offset=(8, 5), bold=True)
    axes.set_yscale("log")
    if reference is not None and reference["gen_ppl"] is not None:
        draw_held_out(axes, reference["entropy"], reference["gen_ppl"])
    axes.set_xlabel("entropy of a sample's tokens (nats)")
    axes.set_title("At equal entropy, lower is better", fontsize=11)
    _finish(axes, legend="upper left")


def _steps_panel(axes: Axes, rows: Sequence[Row], teacher: str, reference: Row | None) -> None:
    plain = [row for row in rows if row["temperature"] == 1.0]
    styles = {teacher: (_TEACHER_COLOUR, "v")}
    styles |= {name: _style(i) for i, name in enumerate(_others(rows, teacher))}
    for name, (colour, marker) in styles.items():
        points = sorted((r for r in plain if r["label"] == name), key=lambda r: r["steps"])
        if points:
            _points(
                axes,
                points,
                "steps",
                colour=colour,
                marker=marker,
                line="-",
                size=7,
                label=name,
                hollow=name in _others(rows, teacher)[1:],
            )
    if reference is not None and reference["gen_ppl"] is not None:
        axes.axhline(reference["gen_ppl"], linestyle="--", color="black", label="held-out text")
    axes.set_xscale("log", base=2)
    axes.set_xticks(sorted({row["steps"] for row in plain}))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_xlabel("sampler steps (network calls), temperature 1")
    axes.set_title("Fewer calls", fontsize=11)
    _finish(axes, legend="upper right")


def _points(
    axes: Axes,
    rows: Sequence[Row],
    x: str,
    *,
    colour: Any,
    marker: str,
    line: str,
    size: float,
    label: str,
    hollow: bool = False,
) -> None:
    """Means with bars: one standard deviation over seeds, or of one seed the standard error."""

    def bars(name: str) -> list[float]:
        return [row.get(f"{name}_sd") or row.get(f"{name}_stderr") or 0.0 for row in rows]

    axes.errorbar(
        [row[x] for row in rows],
        [row["gen_ppl_mean"] for row in rows],
        yerr=bars("gen_ppl"),
        xerr=bars("entropy") if x == "entropy_mean" else None,
        color=colour,
        marker=marker,
        linestyle=line,
        markersize=size,
        linewidth=1.5,
        elinewidth=1,
        capsize=2,
        # open shapes: a point behind another one can be seen through it
        markerfacecolor="none" if hollow else colour,
        markeredgewidth=2 if hollow else 1,
        label=label,
        zorder=4 if line == "" else 3,
    )


def _tag(
    axes: Axes, row: Row, text: str, colour: Any, *, offset: tuple[int, int], bold: bool = False
) -> None:
    axes.annotate(
        text,
        (row["entropy_mean"], row["gen_ppl_mean"]),
        xytext=offset,
        textcoords="offset points",
        fontsize=8,
        color=colour,
        fontweight="bold" if bold else "normal",
        path_effects=halo(),
        zorder=6,
    )


def _finish(axes: Axes, *, legend: Literal["upper left", "upper right"]) -> None:
    from matplotlib.ticker import LogLocator

    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    low, high = axes.get_ylim()
    long = high / low > 6
    digits = "2346" if long else "123456789"  # more would overlap on a long axis
    if not long:  # a short axis may have no power of ten and few multiples of one
        axes.yaxis.set_minor_locator(LogLocator(subs=(1.2, 1.4, 1.6, 1.8, 2, 3, 4, 5, 6, 7, 8, 9)))
    axes.yaxis.set_minor_formatter(
        lambda value, _: f"{value:g}" if f"{value:.0e}"[0] in digits else ""
    )
    axes.tick_params(axis="y", which="both", labelsize=9)
    axes.set_ylabel("generative perplexity (log scale)")
    axes.grid(visible=True, which="both", color="#DDDDDD", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.legend(loc=legend, fontsize=8.5, framealpha=0.9)


def _others(rows: Sequence[Row], teacher: str) -> list[str]:
    return [name for name in dict.fromkeys(row["label"] for row in rows) if name != teacher]


def _style(number: int) -> tuple[str, str]:
    return (
        _MODEL_COLOURS[number % len(_MODEL_COLOURS)],
        _MODEL_MARKERS[number % len(_MODEL_MARKERS)],
    )


def _shades(steps: Sequence[int]) -> dict[int, Any]:
    """From light to dark blue with the steps: an order that needs no colour vision."""
    from matplotlib import colormaps

    shade = colormaps["Blues"]
    return {n: shade(0.45 + 0.5 * i / max(1, len(steps) - 1)) for i, n in enumerate(steps)}


def main(argv: Sequence[str] | None = None) -> None:
    """Draw a results file of ``idlm evaluate --protocol``."""
    parser = argparse.ArgumentParser(prog="python -m idlm.evaluation.plots", description=__doc__)
    parser.add_argument("results", help="JSON of idlm evaluate --protocol")
    parser.add_argument("output", help="PNG to write")
    args = parser.parse_args(argv)
    try:
        print(_draw(args.results, args.output))
    except UserError as error:
        print(f"idlm: error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


def _is_usual(row: Row) -> bool:
    return row["top_p"] == 1.0 and all(
        row.get(name, usual) == usual for name, usual in _USUAL.items()
    )


def _draw(results: str, output: str) -> Path:
    try:
        found = json.loads(Path(results).read_text(encoding="utf-8"))
        summary, protocol, reference = found["summary"], found["protocol"], found["reference"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{results} is no results file ({reason(error)}); make one with "
            "idlm evaluate --protocol"
        ) from error
    # one judge, and draws as they should be: other rows would look like other models
    judge = protocol["evaluator"]
    summary = [r for r in summary if r.get("evaluator", judge) == judge and _is_usual(r)]
    # what was measured, which may be less than the protocol asks for
    counts = sorted({len(row["seeds"]) for row in summary})
    seeds = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    note = (
        f"judged by {protocol['evaluator']}; {protocol['num_samples']} samples of "
        f"{protocol['length']} tokens per seed, {seeds} seeds; bars: 1 sd over seeds, "
        "of one seed 1 standard error"
    )
    return plot_frontier(
        summary, output, teacher=protocol["teacher"], reference=reference, note=note
    )


if __name__ == "__main__":
    main()
