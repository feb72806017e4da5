"""Modules that a configuration of ``idlm fit`` names: where they are, and what is not installed."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from idlm.errors import UserError

# packages of the extra "loggers"; the tests compare them with pyproject.toml
LOGGERS = ("tensorboard", "wandb")
# how lightning and its loggers ask for a package: "Requirement 'wandb>=0.12.10' not met",
# "Neither `tensorboard` nor `tensorboardX` is available", "`synchronous` requires mlflow>=2.8.0"
_ASKED = re.compile(r"(?:Requirement '|Neither `|requires |Module not found: ')([A-Za-z][\w.-]*)")


@contextmanager
def beside_the_user() -> Iterator[None]:
    """Let the block import modules of the working directory, as ``python -m`` would.

    It comes last on the path, so that no file there takes the place of an installed package.
    ``python -P`` and ``PYTHONSAFEPATH`` forbid it, here as there.
    """
    here = os.getcwd()
    if getattr(sys.flags, "safe_path", False) or here in sys.path:
        yield
        return
    sys.path.append(here)
    try:
        yield
    finally:
        if here in sys.path:
            sys.path.remove(here)


def missing(error: BaseException | None) -> UserError | None:
    """The package that an exception or one of its causes misses, with how to install it."""
    while error is not None and not isinstance(error, ModuleNotFoundError):
        error = error.__cause__ or error.__context__
    if error is None:
        return None
    said = " ".join(str(error).split())
    asked = _ASKED.search(said)
    package = error.name or (asked[1] if asked else None)
    if package is None:
        return UserError(f"the configuration names a class whose package is missing: {said}")
    package = package.partition(".")[0]
    if package in LOGGERS:
        return UserError(
            f"the configuration names a class that needs the package {package!r}, which is not "
            "installed: pip install 'idlm[loggers]', or use "
            "lightning.pytorch.loggers.CSVLogger, which needs none"
        )
    return UserError(
        f"the configuration names a class that needs the module {package!r}, which is neither "
        "installed nor in this folder: check its name, or install it with pip"
    )
