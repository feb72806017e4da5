"""From measured cells to a comparison: means over seeds, and perplexity at equal entropy."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from idlm.equal_entropy import Point, matched_entropy

NUMBERS = (
    "gen_ppl",
    "entropy",
    "distinct_2_per_sequence",
    "network_calls",
    "tokens_per_call",
    "seconds",
)
# What must be equal for two rows to be compared: how tokens were drawn, and who judged them.
CONDITIONS = {
    "sampler": "ancestral",
    "sampling_dtype": "float64",
    "network_dtype": "float32",
    "evaluator": None,
    "evaluator_revision": None,
    "evaluator_dtype": None,
    "eos": None,
}


def setting(cell: Mapping[str, Any]) -> dict[str, Any]:
    """What a measured cell shares with those that differ from it in the seed alone."""
    said = {**cell, **(cell.get("evaluation") or {})}
    own = {name: cell[name] for name in ("label", "steps", "temperature", "top_p")}
    return own | {name: said.get(name, usual) for name, usual in CONDITIONS.items()}


def by_setting(cells: Iterable[Mapping[str, Any]]) -> list[list[Mapping[str, Any]]]:
    """Cells that differ in the seed alone, together, in order of first appearance."""
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for cell in cells:
        groups.setdefault(tuple(setting(cell).values()), []).append(cell)
    return list(groups.values())


def conditions(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """The values of :data:`CONDITIONS` of a row of a summary."""
    return tuple(row.get(name, usual) for name, usual in CONDITIONS.items())


def summarise(cells: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Mean and standard deviation over seeds for each model, step count and way of sampling.

    Returns:
        One row per setting in order of first appearance: the setting, ``seeds``, ``num_samples``
        per seed, and ``X_mean`` and ``X_sd`` (n - 1; None for a single seed) for each number X. A
        number that a cell lacks makes its mean None: nothing is left out in silence. A row of one
        seed also has ``X_stderr``, the standard error over its samples, where the cell has it.
    """
    rows = []
    for members in by_setting(cells):
        row: dict[str, Any] = {
            **setting(members[0]),
            "seeds": sorted(cell["seed"] for cell in members),
            "num_samples": min(cell["num_samples"] for cell in members),
        }
        for name in NUMBERS:
            values = [cell[name] for cell in members]
            row[f"{name}_mean"], row[f"{name}_sd"] = _mean_sd(values)
            if len(members) == 1 and f"{name}_stderr" in members[0]:
                row[f"{name}_stderr"] = members[0][f"{name}_stderr"]
        rows.append(row)
    return rows


def _mean_sd(values: Sequence[float | None]) -> tuple[float | None, float | None]:
    present = [value for value in values if value is not None]
    if len(present) < len(values) or not present:
        return None, None
    sd = float(np.std(present, ddof=1)) if len(present) > 1 else None
    return float(np.mean(present)), sd


def matched_table(summary: Sequence[dict[str, Any]], teacher: str) -> list[dict[str, Any]]:
    """Every row of another model against the teacher's temperature curve of every step count.

    Only rows that were sampled and judged alike are compared (:data:`CONDITIONS`).

    Args:
        summary: what :func:`summarise` returns.
        teacher: label of the model whose temperature curves are the yardstick.
    """
    known = [row for row in summary if row["gen_ppl_mean"] is not None]
    curves: dict[tuple[tuple[Any, ...], int], list[Point]] = {}
    for row in known:
        if row["label"] == teacher and row["top_p"] == 1.0:
            key = conditions(row), row["steps"]
            curves.setdefault(key, []).append((row["entropy_mean"], row["gen_ppl_mean"]))
    table = []
    for row in known:
        if row["label"] == teacher:
            continue
        own = {steps: curve for (kind, steps), curve in curves.items() if kind == conditions(row)}
        for steps, curve in sorted(own.items()):
            found = matched_entropy(curve, (row["entropy_mean"], row["gen_ppl_mean"]))
            table.append(
                {
                    "label": row["label"],
                    "steps": row["steps"],
                    "temperature": row["temperature"],
                    "top_p": row["top_p"],
                    **{name: row.get(name, usual) for name, usual in CONDITIONS.items()},
                    "teacher_steps": steps,
                    "ratio": found.ratio,
                    "teacher_gen_ppl": found.teacher_gen_ppl,
                    "note": found.note,
                }
            )
    return table
