"""What is wrong with the text of a configuration file, said before LightningCLI reads it."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

from idlm.cli.early import ROOTS
from idlm.errors import UserError

# options of the line that no file can hold
_KEYS = tuple(name for name in ROOTS if name not in ("help", "config", "print_config"))


def check_file(path: Path) -> None:
    """Refuse what is no mapping of known sections in YAML.

    The keys inside the sections are those of the classes they build, and LightningCLI's to judge.

    Args:
        path: an existing file.

    Raises:
        UserError: naming the file, what is wrong in it and where.
    """
    import yaml

    try:
        text = path.read_bytes().decode("utf-8")
        found, twice = yaml.safe_load(text), _twice(yaml.compose(text, yaml.SafeLoader))
    except UnicodeDecodeError as error:
        raise UserError(
            f"--config {path} is not UTF-8 (byte {error.start}); give a YAML file, saved as UTF-8"
        ) from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(
            f"--config {path} is no YAML ({_reason(error)}); correct it there, or start from a "
            "file of configs/"
        ) from error
    if twice is not None:
        raise UserError(
            f"--config {path} has the duplicate key {twice.value[:60]!r} in line "
            f"{twice.start_mark.line + 1}; keep one of them"
        )
    if not isinstance(found, dict):
        what = "is empty" if found is None else f"holds a {type(found).__name__} and no mapping"
        raise UserError(f"--config {path} {what}; it needs sections such as trainer, model, data")
    for key in found:
        if str(key) not in _KEYS:
            close = difflib.get_close_matches(str(key), _KEYS, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(_KEYS)}"
            raise UserError(f"--config {path} has the section {str(key)[:60]!r}; {hint}")


def _twice(root: Any) -> Any:
    """The first key that a mapping has a second time, as a node of YAML; None if there is none."""
    left, seen = [root], set()
    while left:
        node = left.pop()
        if id(node) in seen:  # what aliases lead to is one node
            continue
        seen.add(id(node))
        keys = set()
        for part in node.value if node is not None and node.id != "scalar" else ():
            key, *values = part if isinstance(part, tuple) else (None, part)
            if key is not None and key.id == "scalar":
                if key.value in keys:
                    return key
                keys.add(key.value)
            left.extend(values)
    return None


def _reason(error: Any) -> str:
    """The problem and its line, without the excerpt that YAML's errors carry."""
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    if problem is None:
        return " ".join(str(error).split())[:160]
    return problem if mark is None else f"{problem} in line {mark.line + 1}"
