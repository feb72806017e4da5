"""Values from files, found to be what they are taken for."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from idlm.errors import UserError


def read_bytes(path: Path) -> bytes:
    """The content of a file.

    Raises:
        UserError: if it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror}): name a file that can"
        ) from error


def read_text(path: Path) -> str:
    """The content of a text file.

    Raises:
        UserError: if it cannot be read or is not UTF-8.
    """
    try:
        return read_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 (byte {error.start}): give a file of idlm") from error


def read_json(path: Path) -> Any:
    """What a JSON file holds.

    Raises:
        UserError: if it cannot be read, is no JSON, or has a number that is none.
    """
    text = read_text(path)
    try:
        return json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{path} is no JSON ({error}): write it again with the command that made it"
        ) from error


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} is no number")


def number(record: Mapping[str, Any], key: str, path: Path) -> float:
    """A finite number of a record.

    Raises:
        UserError: if it is missing or something else.
    """
    found = optional_number(record, key, path)
    if found is None:
        raise UserError(f"{path} has a record without {key}: measure it again")
    return found


def optional_number(record: Mapping[str, Any], key: str, path: Path) -> float | None:
    """A finite number of a record, or None if it has none.

    Raises:
        UserError: if it is something else.
    """
    value = record.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not _finite(value):
        raise UserError(
            f"{path} has {key} = {value!r}, which is no finite number: measure it again"
        )
    return float(value)


def _finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def word(record: Mapping[str, Any], key: str, path: Path) -> str:
    """A text of a record.

    Raises:
        UserError: if it is missing or something else.
    """
    value = record.get(key)
    if not isinstance(value, str):
        raise UserError(f"{path} has a record whose {key} is {value!r}, not a name: make it again")
    return value


def perplexity(
    record: Mapping[str, Any], names: tuple[str, str], path: Path
) -> tuple[float, float] | None:
    """GenPPL and entropy of a record; None if nothing of it was scored.

    Args:
        record: has both, or no perplexity.
        names: of perplexity and entropy.
        path: of the file, for the message.

    Raises:
        UserError: for a perplexity without entropy, or one that is not above 0.
    """
    gen_ppl = optional_number(record, names[0], path)
    entropy = optional_number(record, names[1], path)
    if gen_ppl is None:
        return None
    if entropy is None:
        raise UserError(
            f"{path} has a GenPPL ({names[0]} = {gen_ppl:g}) without entropy, which says nothing: "
            "measure it again with `idlm evaluate`"
        )
    if gen_ppl <= 0:
        raise UserError(f"{path} has {names[0]} = {gen_ppl:g}; a perplexity is above 0")
    return gen_ppl, entropy
