"""Where the files that ship beside the package live, and where a user's may be written."""

from __future__ import annotations

import difflib
import os
from pathlib import Path

from idlm.errors import UserError

BUNDLED_EVALUATOR = "python-docs-evaluator"
BUNDLED_MODELS = ("python-docs-teacher", "python-docs-student-16step", BUNDLED_EVALUATOR)


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


def bundled_hint(name: str) -> str:
    """What a message adds about the bundled models, when a name that is not found may mean one.

    Returns:
        A part of a sentence that begins with "; ", or nothing for ``owner/name`` of the hub.
    """
    if "/" in name:
        return ""
    close = difflib.get_close_matches(name.lower(), BUNDLED_MODELS, n=1)
    meant = f"did you mean {close[0]!r}? " if close else ""
    return f"; {meant}bundled, for work without a network, are {', '.join(BUNDLED_MODELS)}"


def resolve(name: str | Path) -> str:
    """Map the name of a bundled model to its folder; return anything else unchanged."""
    bundled = repo_dir() / "data" / "models" / str(name)
    if str(name) in BUNDLED_MODELS and bundled.is_dir():
        return str(bundled)
    return str(name)


def check_writable(option: str, path: str | Path, *, folder: bool = False) -> Path:
    """Refuse a place that cannot be written, before the work and not after it.

    Args:
        option: name of the option, for the message.
        path: a file to write, or with ``folder`` a folder to fill.
        folder: whether ``path`` is a folder.

    Raises:
        UserError: if it is of the wrong kind or its nearest existing folder is not writable.
    """
    path = Path(path)
    if path.exists() and path.is_dir() != folder:
        here, needed = ("file", "folder") if folder else ("folder", "file")
        raise UserError(f"{option} {path} is a {here}; name a {needed}")
    if path.exists() and not path.is_file() and not folder:  # a device or pipe is written to
        if os.access(path, os.W_OK):
            return path
        raise UserError(f"{option} {path} cannot be written: no permission; name a file")
    start = path.absolute()
    nearest = next(p for p in (start, *start.parents) if p.exists() and (p != start or folder))
    if not nearest.is_dir():
        raise UserError(f"{option} {path} cannot be written: {nearest} is a file, not a folder")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise UserError(
            f"{option} {path} cannot be written: no permission in {nearest}; name a place in a "
            "folder of your own"
        )
    return path
