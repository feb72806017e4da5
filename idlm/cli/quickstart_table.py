"""The table of ``idlm quickstart`` and the sentence that says what it shows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table

from idlm.equal_entropy import OUTSIDE


def table(results: Mapping[str, Any]) -> Table:
    """One row per model, step count and temperature, and one for held-out text.

    Args:
        results: ``cells`` and ``reference`` as :mod:`idlm.evaluation.cells` measures them.
    """
    cells, reference = results["cells"], results["reference"]
    shown = Table(title="Generative perplexity means little without entropy: read them together")
    shown.add_column("model")
    for title in ("steps", "T", "tokens per call", "GenPPL", "entropy", "seconds"):
        shown.add_column(title, justify="right")
    before = cells[0]["label"]
    for cell in cells:
        if cell["label"] != before:
            shown.add_section()
            before = cell["label"]
        shown.add_row(
            cell["label"],
            str(cell["steps"]),
            f"{cell['temperature']:g}",
            f"{cell['tokens_per_call']:.4g}",
            _spread(cell, "gen_ppl", 1),
            _spread(cell, "entropy", 3),
            f"{cell['seconds']:.1f}",
        )
    shown.add_section()
    shown.add_row(
        f"held-out text ({reference['num_samples']} rows)",
        "-",
        "-",
        "-",
        _spread(reference, "gen_ppl", 1),
        _spread(reference, "entropy", 3),
        "-",
    )
    return shown


def caption(results: Mapping[str, Any]) -> str:
    """How the numbers of the table were made and how far they can be trusted."""
    first = results["cells"][0]
    judge = first["evaluation"]
    return (
        f"{first['num_samples']} samples of {first['length']} tokens per row, ± one standard error "
        "over samples: rows closer than two of them do not differ.\n"
        f"GenPPL under {judge['evaluator']} ({judge['evaluator_revision']}), text re-tokenised, "
        f"eos rule {judge['eos']}. Entropy: unigrams of each sample, nats. Draws in "
        f"{first['sampling_dtype']}.\n"
        "The full comparison, three seeds of 64 samples: eval/README.md."
    )


def comparison(results: Mapping[str, Any], steps: int) -> str:
    """The students at ``steps`` steps against the teacher at equal steps and equal entropy."""
    lines = []
    for row in results["matched"]:
        if row["steps"] != steps or row["teacher_steps"] != steps:
            continue
        if row["ratio"] is None:
            lines.append(
                f"{row['label']}, {steps} steps: its entropy is {OUTSIDE} of the "
                f"teacher's temperatures, so there is no comparison at equal entropy."
            )
        else:
            lines.append(
                f"{row['label']}, {steps} steps: {row['ratio']:.2f} times the GenPPL of "
                f"the teacher at {steps} steps whose temperature gives it the same "
                f"entropy ({row['teacher_gen_ppl']:.1f}); below 1 is better."
            )
    return "\n".join(lines)


def _spread(found: Mapping[str, Any], name: str, digits: int) -> str:
    value, error = found[name], found[f"{name}_stderr"]
    if value is None:
        return "none scored"
    return f"{value:.{digits}f}" + ("" if error is None else f" ± {error:.{digits}f}")
