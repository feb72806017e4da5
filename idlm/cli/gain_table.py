"""The table of gains: a student beside its teacher at equal steps and at equal entropy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

# Wide enough for every column when stdout is a file or a pipe, whose width rich takes for 80.
_PLAIN_WIDTH = 140


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
    judged = len({row["evaluator"] for row in (*steps, *entropy)}) > 1
    if steps:
        console.print(_equal_steps(steps, teacher, judged))
    if entropy:
        console.print(_equal_entropy(entropy, teacher, judged, gains["level"]))
    else:
        console.print(
            f"No gain at equal entropy can be told: it takes two temperatures of {teacher!r} and "
            "another model, sampled and judged alike."
        )
    if gains["left_out"]:
        console.print(f"{gains['left_out']} settings without a perplexity are left out.")


def _equal_steps(rows: Sequence[Mapping[str, Any]], teacher: str, judged: bool) -> Table:
    table = _table("At equal steps (a lower GenPPL may be bought with entropy)", judged)
    for title in ("GenPPL", f"{teacher}'s", "ratio", "entropy (nats)", f"over {teacher}'s"):
        table.add_column(title, justify="right")
    table.add_column("interval from")
    for row in rows:
        table.add_row(
            *_first(row, judged),
            f"{row['gen_ppl']:.2f}",
            f"{row['teacher_gen_ppl']:.2f}",
            _interval(row, "ratio"),
            f"{row['entropy']:.3f}",
            _interval(row, "entropy_difference"),
            row["interval"],
        )
    return table


def _equal_entropy(
    rows: Sequence[Mapping[str, Any]], teacher: str, judged: bool, level: float
) -> Table:
    table = _table(
        f"At equal entropy: GenPPL over that of {teacher}'s curve ({level:.0%} interval)", judged
    )
    for title in ("GenPPL", "entropy (nats)", f"{teacher}'s steps"):
        table.add_column(title, justify="right")
    table.add_column("curve of its")
    for title in ("GenPPL there", "ratio"):
        table.add_column(title, justify="right")
    table.add_column("verdict")
    table.add_column("interval from")
    for row in rows:
        there = row["teacher_gen_ppl"]
        table.add_row(
            *_first(row, judged),
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


def _table(title: str, judged: bool) -> Table:
    table = Table(title=title, title_justify="left", title_style="")
    table.add_column("model", overflow="fold")
    for name in ("steps", "T", "top-p"):
        table.add_column(name, justify="right")
    table.add_column("sampler")
    if judged:
        table.add_column("evaluator")
    return table


def _first(row: Mapping[str, Any], judged: bool) -> list[str]:
    sampler = f"{row['sampler']}, {row['sampling_dtype']}"
    own = [row["label"], str(row["steps"]), f"{row['temperature']:g}", f"{row['top_p']:g}", sampler]
    return [*own, str(row["evaluator"])] if judged else own


def _interval(row: Mapping[str, Any], name: str) -> str:
    value, low, high = (row[f"{name}{end}"] for end in ("", "_low", "_high"))
    if value is None:
        return "-"
    return f"{value:.3f}" + ("" if low is None else f" [{low:.3f}, {high:.3f}]")
