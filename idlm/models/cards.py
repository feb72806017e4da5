"""Model cards: what was trained, on what, how, and what was measured under which conditions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def _front_matter(tags: list[str]) -> list[str]:
    return [
        "---",
        "license: apache-2.0",
        "library_name: idlm",
        "language: en",
        "tags:",
        *[f"- {tag}" for tag in tags],
        "---",
        "",
    ]


def _table(title: str, rows: Mapping[str, Any]) -> list[str]:
    if not rows:
        return []
    lines = ["", f"## {title}", "", "| | |", "|---|---|"]
    lines += [f"| {key} | {_show(value)} |" for key, value in rows.items()]
    return lines


def _show(value: Any) -> str:
    return f"{value:.5g}" if isinstance(value, float) else str(value)


def teacher_card(
    settings: Mapping[str, Any],
    updates: int,
    metrics: Mapping[str, float],
    data: Mapping[str, Any],
) -> str:
    """Markdown card of a teacher.

    Args:
        settings: constructor arguments of the training.
        updates: optimiser updates made.
        metrics: last logged metrics; NELBO in nats per token, EMA weights.
        data: corpus and packing of the training text.
    """
    lines = _front_matter(["masked-diffusion", "text-generation", "mdlm"])
    lines += [
        "# Masked diffusion language model",
        "",
        "A teacher trained with the continuous-time masked NELBO of MDLM (arXiv 2406.07524).",
        "The weights are the exponential moving average.",
        "",
        "```python",
        "import idlm",
        "",
        'model = idlm.load("THIS_FOLDER")',
        "out = idlm.generate(model, num_samples=1, steps=64, seed=0)",
        "```",
    ]
    shown = {k: v for k, v in metrics.items() if k.startswith("val/")}
    lines += _table("Measured (nats per token on the validation split)", shown)
    lines += _table("Data", data)
    lines += _table("Training", {"updates": updates, **settings})
    return "\n".join(lines) + "\n"


def student_card(
    settings: Mapping[str, Any],
    objective: str,
    counts: Mapping[str, int],
    metrics: Mapping[str, float],
    data: Mapping[str, Any],
) -> str:
    """Markdown card of a distilled generator.

    Args:
        settings: constructor arguments of the training.
        objective: the objective and its settings, as text.
        counts: updates made of each network.
        metrics: last logged metrics.
        data: corpus and packing of the training text.
    """
    lines = _front_matter(["masked-diffusion", "text-generation", "distillation", "idlm"])
    lines += [
        "# Few-step masked diffusion generator",
        "",
        f"Distilled with {objective}. The weights are the student's exponential moving average.",
        "",
        "```python",
        "import idlm",
        "",
        'model = idlm.load("THIS_FOLDER")',
        "out = idlm.generate(model, num_samples=1, length=1024, steps=16, seed=0)",
        "```",
    ]
    lines += _table("Last logged values", metrics)
    lines += _table("Data", data)
    lines += _table("Training", {**counts, **settings})
    return "\n".join(lines) + "\n"
