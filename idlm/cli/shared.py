"""What several commands check before they start."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import NoReturn

from idlm.errors import UserError
from idlm.paths import BUNDLED_MODELS, repo_dir, resolve


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one sentence."""

    def error(self, message: str) -> NoReturn:
        """Raise ``UserError`` instead of printing the usage."""
        raise UserError(f"{message}; type `{self.prog} --help` for the options")


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


def require_bundled(name: str) -> str:
    """The folder of a bundled model; any other name is returned as it is.

    Raises:
        UserError: if the model should be bundled and is not there.
    """
    found = resolve(name)
    if name in BUNDLED_MODELS and found == name and not Path(name).is_dir():
        raise UserError(
            f"the bundled model {name!r} is not in {repo_dir() / 'data' / 'models'}; run idlm from "
            "a complete checkout, or make it with scripts/make_models.sh"
        )
    return found
