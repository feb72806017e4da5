"""Where the files that ship beside the package live."""

from __future__ import annotations

from pathlib import Path

BUNDLED_MODELS = (
    "python-docs-teacher",
    "python-docs-student-16step",
    "python-docs-evaluator",
)


def repo_dir() -> Path:
    """The root of the checkout, which holds ``configs/``, ``data/`` and ``eval/``."""
    return Path(__file__).resolve().parent.parent


def resolve(name: str | Path) -> str:
    """Map the name of a bundled model to its folder; return anything else unchanged."""
    bundled = repo_dir() / "data" / "models" / str(name)
    if str(name) in BUNDLED_MODELS and bundled.is_dir():
        return str(bundled)
    return str(name)
