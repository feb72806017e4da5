"""The table of gains: a student beside its teacher at equal steps and at equal entropy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

# Wide enough for every column when stdout is a file or a pipe, whose width rich takes for 80.
_PLAIN_WIDTH = 170
_USUAL = {"sampler": "ancestral", "sampling_dtype": "float64", "network_dtype": "float32"}


def print_gains(gains: Mapping[str, Any], teacher: str) -> None:
    """Print both comparisons of :func:`idlm.evaluation.gain.gains`.

    Args:
        gains: what that function returned.
        teacher: label of the yardstick.
    """
    console = Console()
    if not console.is_terminal:
        console = Console(width=_PLAIN_WIDTH)
    steps, entropy = gains["equal_steps"], gains["equal_entropy"]
    shown = _conditions((*steps, *entropy))
    if steps:
        console.print(_equal_steps(steps, teacher, shown))
    if entropy:
        console.print(_equal_entropy(entropy, teacher, shown, gains["level"]))
    else:
        console.print(
            f"No gain at equal entropy can be told: it takes two temperatures of {teacher!r} and "
            "another model, sampled and judged alike."
        )
    if gains["left_out"]:
        console.print(f"{gains['left_out']} settings without a perplexity are left out.")


def _equal_steps(rows: Sequence[Mapping[str, Any]], teacher: str, shown: Sequence[str]) -> Table:
    table = _table("At equal steps (a lower GenPPL may be bought with entropy)", shown)
    for title in ("GenPPL", f"{teacher}'s", "ratio", "entropy (nats)", f"over {teacher}'s"):
        table.add_column(title, justify="right")
    table.add_column("interval from")
    for row in rows:
        table.add_row(
            *_first(row, shown),
            f"{row['gen_ppl']:.2f}",
            f"{row['teacher_gen_ppl']:.2f}",
            _interval(row, "ratio"),
            f"{row['entropy']:.3f}",
            _interval(row, "entropy_difference"),
            row["interval"],
        )
    return table


def _equal_entropy(
    rows: Sequence[Mapping[str, Any]], teacher: str, shown: Sequence[str], level: float
) -> Table:
    table = _table(
        f"At equal entropy: GenPPL over that of {teacher}'s curve ({level:.0%} interval)", shown
    )
    for title in ("GenPPL", "entropy (nats)", f"{teacher}'s steps"):
        table.add_column(title, justify="right")
    table.add_column("curve of its")
    table.add_column("GenPPL there", justify="right")
    table.add_column("ratio", justify="right", no_wrap=True)
    table.add_column("verdict")
    table.add_column("interval from")
    for row in rows:
        there = row["teacher_gen_ppl"]
        table.add_row(
            *_first(row, shown),
            f"{row['gen_ppl']:.2f}",
            f"{row['entropy']:.3f}",
            str(row["teacher_steps"]),
            row["sweep"],
            "-" if there is None else f"{there:.2f}",
            _interval(row, "ratio"),
            row["verdict"] + (f" ({row['note']})" if row["note"] else ""),
            row["interval"],
        )
    return table


def _conditions(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Conditions that must be shown: those that differ between rows or are not the usual ones."""
    names = [n for n, usual in _USUAL.items() if any(row[n] != usual for row in rows)]
    several = len({row["evaluator"] for row in rows}) > 1
    return names + ["evaluator"] * several


def _table(title: str, shown: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left", title_style="")
    table.add_column("model", overflow="fold")
    for name in ("steps", "T", "top-p"):
        table.add_column(name, justify="right")
    for name in shown:
        table.add_column(name.replace("_", " "))
    return table


def _first(row: Mapping[str, Any], shown: Sequence[str]) -> list[str]:
    own = [row["label"], str(row["steps"]), f"{row['temperature']:g}", f"{row['top_p']:g}"]
    return own + [str(row[name]) for name in shown]


def _interval(row: Mapping[str, Any], name: str) -> str:
    value, low, high = (row[f"{name}{end}"] for end in ("", "_low", "_high"))
    if value is None:
        return "-"
    return f"{value:.3f}" + ("" if low is None else f" [{low:.3f}, {high:.3f}]")
