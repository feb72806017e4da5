"""Table and figure of the oracle language's records."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from idlm.bench.shared import Record, markdown_table, save_png, wide_console

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
        f"Nats per token of {one['samples']} texts of {one['plan']['length']} tokens. The source: "
        f"cross-entropy (its entropy rate) {one['entropy_rate']:.3f}, violations 0, bigram entropy "
        f"{one['source_bigram_entropy']:.3f}, overlap {one['source_overlap']:.4f}; trigram TV of "
        f"as many exact texts {one['floor_ngram_tv']:.3f}.\nA cross-entropy below the entropy "
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
    figure = Figure(figsize=(12, 3.8), layout="constrained")
    lines: dict[tuple[str, int], dict[int, list[Record]]] = {}
    for record in records:
        if drawn(record["method"]):
            line = lines.setdefault((record["method"], record["latent"]), {})
            line.setdefault(record["steps"], []).append(record)
    for axes, (key, title, exact) in zip(figure.subplots(1, 3), panels, strict=True):
        for (method, latent), points in lines.items():
            steps = sorted(points)
            values = [sum(r[key] for r in points[s]) / len(points[s]) for s in steps]
            style = "k--" if method.startswith("teacher") else "o-"
            label = f"{method}, no latent" if _bare(method, latent, lines) else method
            axes.plot(steps, values, style, label=label, markersize=3)
        if exact and records:
            axes.axhline(records[0][exact], color="grey", linewidth=1, label="exact")
        axes.set_xscale("log", base=2)
        axes.set_xlabel("network calls")
        axes.set_title(title, fontsize=10)
    if lines:
        figure.axes[-1].legend(fontsize=7)
    return save_png(figure, path)


def _bare(method: str, latent: int, lines: Any) -> bool:
    """Whether a line is the run without a latent of a method that has one elsewhere."""
    return latent == 0 and any(other == method and size for other, size in lines)
