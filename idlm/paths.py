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


def leads_inside(path: Path, folder: Path) -> bool:
    """Whether ``path``, all links followed, is in ``folder``.

    The Hugging Face cache keeps the files of a snapshot in ``blobs`` beside its snapshots, which
    counts as inside.
    """
    home = folder.resolve()
    rooms = [home, home.parent.parent / "blobs"] if home.parent.name == "snapshots" else [home]
    try:
        real = path.resolve()
    except (OSError, RuntimeError):  # links in a circle lead nowhere
        return False
    return any(room in real.parents for room in rooms)


def resolve(name: str | Path) -> str:
    """Map the name of a bundled model to its folder; return anything else unchanged."""
    bundled = repo_dir() / "data" / "models" / str(name)
    if str(name) in BUNDLED_MODELS and bundled.is_dir():
        return str(bundled)
    return str(name)
