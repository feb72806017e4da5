"""Table and figure of the study of precision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from idlm.samples import replace_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's palette; shapes differ as well
_STYLES = {"float64": ("#0072B2", "o"), "float32": ("#D55E00", "s")}


def markdown(content: Mapping[str, Any]) -> str:
    """Both tables of :func:`idlm.evaluation.precision.study`, with their conditions."""
    protocol, race = content["protocol"], content["race"]
    lines = [
        "# float32 draws against float64 draws",
        "",
        (
            f"Samples of {protocol['length']} tokens, judged by {protocol['evaluator']}, "
            f"eos rule {protocol['eos']}. Intervals are of 95%, from resampled samples unless "
            "said otherwise."
        ),
        "",
        (
            "| model | steps | samples | GenPPL float64 | float32 | ratio | entropy float64 (nats) "
            "| float32 | difference |"
        ),
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    lines += [_measured(row) for row in content["precision"]]
    lines += [
        "",
        (
            f"The law of one race over {race['vocabulary']:,} entries: a token of probability 1/2, "
            f"{race['case']['tokens']:,} equal ones that share the other half, and the mask, which "
            "keeps all but 1/N. The flat half should be half of what is revealed. Simulated are "
            f"{race['races']:,} races each; chi-square has one degree of freedom (3.8 is its 95% "
            "point)."
        ),
        "",
        (
            "| steps N | cut-off N / 2^24 | share of the flat half, exact law of float32 "
            "| simulated float32 | chi-square | simulated float64 | chi-square |"
        ),
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    lines += [_raced(row) for row in race["rows"]]
    return "\n".join(lines) + "\n"


def _measured(row: Mapping[str, Any]) -> str:
    cells = [
        row["label"],
        str(row["steps"]),
        str(row["samples"]),
        f"{row['gen_ppl_float64']:.1f}",
        f"{row['gen_ppl_float32']:.1f}",
        _interval(row, "ratio") + _unusual(row["interval"]),
        f"{row['entropy_float64']:.3f}",
        f"{row['entropy_float32']:.3f}",
        _interval(row, "entropy_difference"),
    ]
    return f"| {' | '.join(cells)} |"


def _unusual(source: str) -> str:
    return "" if source == "samples" else f" (from {source})"


def _interval(row: Mapping[str, Any], name: str) -> str:
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    return f"{row[name]:.3f}" + ("" if low is None else f" [{low:.3f}, {high:.3f}]")


def _raced(row: Mapping[str, Any]) -> str:
    shown = []
    for name in ("float32", "float64"):
        found = row.get(name)
        if found is None or found["share"] is None:
            shown += ["-", "-"]
        else:
            shown.append(f"{found['share']:.3f} ± {found['stderr']:.3f} of {found['revealed']:,}")
            shown.append(f"{found['chi_square']:.1f}")
    cells = [str(row["steps"]), f"{row['cutoff']:.1e}", f"{row['exact_share']:.4f}", *shown]
    return f"| {' | '.join(cells)} |"


def plot_precision(content: Mapping[str, Any], path: str | Path) -> Path:
    """Three panels against steps: GenPPL, entropy, and the share of the flat half.

    Args:
        content: of :func:`idlm.evaluation.precision.study`.
        path: the PNG; it appears only when complete.

    Raises:
        UserError: if it cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    left, middle, right = figure.subplots(1, 3)
    rows, protocol = content["precision"], content["protocol"]
    for axes, name, title in (
        (left, "gen_ppl", "generative perplexity"),
        (middle, "entropy", "entropy (nats)"),
    ):
        steps = [row["steps"] for row in rows]
        for dtype in _STYLES:
            values = [row[f"{name}_{dtype}"] for row in rows]
            bars = _bars(rows, name) if dtype == "float32" else None
            _line(axes, steps, values, dtype, line="-", errors=bars)
        _finish(axes, sorted({row["steps"] for row in rows}), title)
    _race_panel(right, content["race"]["rows"])
    figure.supxlabel(
        f"{_counts(rows)} samples of {protocol['length']} tokens, judged by "
        f"{protocol['evaluator']}; bars: 95% of the ratio or difference to float64",
        fontsize=8.5,
    )
    return replace_bytes(path, lambda file: figure.savefig(file, dpi=150, format="png"))


def _counts(rows: Sequence[Mapping[str, Any]]) -> str:
    """How many samples the points have: one number, or the range."""
    counts = sorted({row["samples"] for row in rows})
    return str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"


def _bars(rows: Sequence[Mapping[str, Any]], name: str) -> list[list[float]] | None:
    """Ends of float32's bars below and above its points, from the interval to float64."""
    compared = "ratio" if name == "gen_ppl" else "entropy_difference"
    if any(row[f"{compared}_low"] is None for row in rows):
        return None
    ends = [[row[f"{compared}_{end}"] - row[compared] for row in rows] for end in ("low", "high")]
    scale = [row["gen_ppl_float64"] if name == "gen_ppl" else 1.0 for row in rows]
    low, high = ([e * s for e, s in zip(side, scale, strict=True)] for side in ends)
    return [[-value for value in low], high]


def _race_panel(axes: Axes, rows: Sequence[Mapping[str, Any]]) -> None:
    steps = [row["steps"] for row in rows]
    axes.axhline(0.5, color="black", linestyle="--", linewidth=1, label="true share")
    axes.plot(steps, [row["exact_share"] for row in rows], color=_STYLES["float32"][0],
              label="float32, exact law")  # fmt: skip
    for dtype in _STYLES:
        known = [row for row in rows if row.get(dtype) and row[dtype]["share"] is not None]
        _line(axes, [row["steps"] for row in known], [row[dtype]["share"] for row in known],
              f"{dtype}, simulated", line="",
              errors=[2 * row[dtype]["stderr"] for row in known])  # fmt: skip
    axes.set_ylim(0.0, 0.7)
    _finish(axes, steps, "share of the flat half (bars: 2 standard errors)")


def _line(
    axes: Axes,
    x: Sequence[float],
    y: Sequence[float],
    label: str,
    *,
    line: str,
    errors: Sequence[Any] | None = None,
) -> None:
    colour, marker = _STYLES[label.split(",")[0]]
    axes.errorbar(x, y, yerr=errors, color=colour, marker=marker, linestyle=line, capsize=3,
                  label=label)  # fmt: skip


def _finish(axes: Axes, steps: Sequence[int], title: str) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xticks(steps)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_xlabel("sampler steps")
    axes.set_title(title, fontsize=10.5)
    axes.grid(visible=True, color="#DDDDDD", linewidth=0.6)
    axes.legend(fontsize=8.5)
