"""Table and figure of the oracle language's records."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from idlm.bench.shared import markdown_table, save_png, wide_console
from idlm.bench.store import Record

Line = tuple[str, str, int]  # method, process and latent
# one for each method: with more lines than colours, matplotlib would begin again
_COLOURS = tuple(f"C{number}" for number in range(10))
_DASHES = ("-", ":", "--", "-.")
_MARKERS = {"absorbing": "o", "uniform": "s"}

_HEADER = ("method", "latent", "seed")
_COLUMNS = (
    ("steps", "steps", "d"),
    ("cross_entropy", "cross-entropy", ".3f"),
    ("cross_entropy_se", "± se", ".3f"),
    ("violations", "violations", ".2f"),
    ("impossible", "impossible", ".3f"),
    ("ngram_tv", "trigram TV", ".3f"),
    ("bigram_entropy", "bigram entropy", ".3f"),
    ("overlap", "overlap", ".4f"),
    ("train_seconds", "training s", ".0f"),
)


def print_table(records: Sequence[Record]) -> None:
    """Print one row per record, in the order of the file, and the truth below.

    Args:
        records: as ``idlm bench oracle`` writes them.
    """
    table = Table(caption=_caption(records), caption_justify="left", caption_style="")
    for title in _HEADER:
        table.add_column(title, justify="left" if title == "method" else "right")
    for _, title, _ in _COLUMNS:
        table.add_column(title, justify="right")
    before = None
    for record in records:
        who = [str(record[key]) for key in _HEADER]
        if before not in (None, who):
            table.add_section()
        before = who
        table.add_row(*who, *_values(record))
    wide_console().print(table)


def markdown(records: Sequence[Record]) -> str:
    """The same in Markdown."""
    titles = [*_HEADER, *(title for _, title, _ in _COLUMNS)]
    rows = [[*(str(record[key]) for key in _HEADER), *_values(record)] for record in records]
    return f"{_caption(records)}\n\n{markdown_table(titles, rows)}"


def _values(record: Record) -> list[str]:
    return [format(record[key], how) for key, _, how in _COLUMNS]


def _caption(records: Sequence[Record]) -> str:
    if not records:
        return ""
    one = records[0]
    return (
        f"Scores of {one['samples']} texts of {one['plan']['length']} tokens: cross-entropy in "
        "nats per token, violations per text, share of impossible texts, entropy of bigrams in "
        f"nats. The source: cross-entropy (its entropy rate) {one['entropy_rate']:.3f}, violations "
        f"0, bigram entropy {one['source_bigram_entropy']:.3f}, overlap "
        f"{one['source_overlap']:.4f}; trigram TV of as many exact texts "
        f"{one['floor_ngram_tv']:.3f}.\nA cross-entropy below the entropy "
        "rate, a lower bigram entropy or a higher overlap is lost diversity. Impossible texts "
        f"are scored with the source smoothed by {one['epsilon']:g}."
    )


def drawn(method: str) -> bool:
    """Whether the figure has a line for it; the source is the line that others are held to."""
    return method != "source"


def save_figure(records: Sequence[Record], path: Path) -> Path:
    """Cross-entropy, violations and overlap against steps, a line for each method and latent.

    Args:
        records: as ``idlm bench oracle`` writes them; several seeds are averaged.
        path: the PNG; it appears only when complete.

    Raises:
        UserError: if the file cannot be written.
    """
    from matplotlib.figure import Figure

    panels = (
        ("cross_entropy", "cross-entropy (nats per token)", "entropy_rate"),
        ("violations", "broken rules per text", None),
        ("overlap", "overlap of two texts", "source_overlap"),
    )
    figure = Figure(figsize=(13.5, 3.8), layout="constrained")
    lines: dict[Line, dict[int, list[Record]]] = {}
    for record in records:
        if drawn(record["method"]):
            who = (record["method"], record["process"], record["latent"])
            lines.setdefault(who, {}).setdefault(record["steps"], []).append(record)
    looks = _looks(list(lines))
    for axes, (key, title, exact) in zip(figure.subplots(1, 3), panels, strict=True):
        for line, points in lines.items():
            steps = sorted(points)
            values = [sum(r[key] for r in points[s]) / len(points[s]) for s in steps]
            axes.plot(steps, values, **looks[line])
        if exact and records:
            axes.axhline(records[0][exact], color="0.85", linewidth=3, label="exact", zorder=0)
        axes.set_xscale("log", base=2)
        ticks = sorted({step for points in lines.values() for step in points})
        axes.set_xticks(ticks, map(str, ticks))
        axes.set_xlabel("sampling steps")
        axes.set_title(title, fontsize=10)
    if lines:
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, fontsize=7, loc="outside right center")
    return save_png(figure, path)


def _looks(lines: Sequence[Line]) -> dict[Line, dict[str, Any]]:
    """How each line is drawn, no two alike: a method has a colour, its latent the dashes.

    Markers tell processes apart. Teachers are black, with dashes of their own. Where a method
    stands with several latents, its label says which.
    """
    methods = list(dict.fromkeys(method for method, _, _ in lines))
    teachers = [method for method in methods if method.startswith("teacher")]
    students = [method for method in methods if method not in teachers]
    looks: dict[Line, dict[str, Any]] = {}
    for method, process, latent in lines:
        sizes = sorted({size for other, _, size in lines if other == method}, reverse=True)
        told = f", latent {latent}" if latent else ", no latent"
        if method in teachers:
            colour, dashes = "black", teachers.index(method)
        else:
            colour = _COLOURS[students.index(method) % len(_COLOURS)]
            dashes = sizes.index(latent)
        looks[method, process, latent] = {
            "label": method + (told if len(sizes) > 1 else ""),
            "color": colour,
            "linestyle": _DASHES[dashes % len(_DASHES)],
            "marker": _MARKERS.get(process, "x"),
            "markerfacecolor": colour if latent == sizes[0] else "white",
            "markersize": 4,
            "linewidth": 1.2,
        }
    return looks
