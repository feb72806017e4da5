"""The name that was probably meant, for what jsonargparse calls unknown."""

from __future__ import annotations

import difflib
import importlib
import inspect
import re
from collections.abc import Iterable
from typing import Any

_ARGUMENT = re.compile(r"class_path '([\w.]+)': Option '([\w.]+)' is not accepted")
_TRAINER = re.compile(r"(?:unrecognized arguments: --|option ')trainer\.(\w+)")
_CLASS = re.compile(r"module '([\w.]+)' has no attribute '(\w+)'")


def hint(message: str) -> str:
    """A question after the name meant, if a message of jsonargparse is about a misspelt one.

    Args:
        message: names the class or the module, which jsonargparse has imported already.
    """
    if found := _ARGUMENT.search(message):
        module, _, name = found[1].rpartition(".")
        return _near(found[2], _arguments(getattr(importlib.import_module(module), name)))
    if found := _TRAINER.search(message):
        from lightning.pytorch import Trainer

        return _near(found[1], _arguments(Trainer))
    if found := _CLASS.search(message):
        module_ = importlib.import_module(found[1])
        return _near(found[2], getattr(module_, "__all__", dir(module_)))
    return ""


def _arguments(kind: Any) -> Iterable[str]:
    return inspect.signature(kind).parameters


def _near(word: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, list(known), n=1)
    return f"did you mean {close[0]!r}? " if close else ""
