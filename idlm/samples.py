"""``samples.jsonl``: generated samples and the conditions they were made under.

The first line is a header object: checkpoint, revision, steps, nfe, length, temperature, top_p,
sampling_dtype, seconds, num_samples, seed, and what else was asked for (docs/generation.md lists
all). Each further line is one sample: text, tokens, seed, index. When the header has ``"decoded":
false`` the samples were never decoded and ``text`` is null; in any other file it is a string.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from idlm.errors import UserError

# What decides a set of samples beside its seed: sets that differ only in the seed are repetitions.
CONDITIONS = (
    "checkpoint",
    "revision",
    "steps",
    "length",
    "temperature",
    "top_p",
    "order",
    "tail",
    "stride",
    "stop",
    "given",
    "raw",
    "sampling_dtype",
    "network_dtype",
    "compiled",
)
# Far beyond any vocabulary: a larger number is damage, and counters of its size would not fit.
LARGEST_TOKEN = (1 << 24) - 1


def write_samples(
    path: str | Path, header: Mapping[str, Any], rows: Iterable[Mapping[str, Any]]
) -> Path:
    """Write a header and samples; the file appears under its name only when complete.

    Args:
        path: where; folders are made, an existing file is replaced.
        header: the conditions; tensors and arrays are written as lists.
        rows: samples with ``text`` (string, or None under ``"decoded": False``) and ``tokens``
            (integers ``[L]``).

    Returns:
        ``path``.

    Raises:
        UserError: if the file cannot be written.
        ValueError: if a row lacks ``text`` or ``tokens``, has a ``text`` that the header does not
            announce, or a number is not finite.
    """
    return replace_file(path, _lines(header, rows))


def replace_file(path: str | Path, pieces: Iterable[str]) -> Path:
    """Write text piece by piece; the file appears under its name only when complete.

    A device or pipe, such as /dev/stdout, is written to as it is: a file in its place would take
    it away from everyone. A link stays, and what it points to is replaced.

    Raises:
        UserError: if it cannot be written, or the text has no UTF-8 form.
    """

    def write(file: IO[bytes]) -> None:
        for piece in pieces:
            try:
                file.write(piece.encode("utf-8"))
            except UnicodeEncodeError as error:
                raise UserError(
                    f"{path} cannot be written: {piece[error.start]!r} in its text is half a "
                    "character; give names and texts as UTF-8"
                ) from error

    return replace_bytes(path, write)


def replace_bytes(path: str | Path, write: Callable[[IO[bytes]], object]) -> Path:
    """As :func:`replace_file`, for what is no text.

    Until it is complete the file has a random name, which no waiting link can take, and only its
    owner may read it. Then it has the permissions of the file it replaces, or the usual ones.

    Args:
        path: where; folders are made, an existing file is replaced.
        write: writes everything to the file it is given.

    Returns:
        ``path``.

    Raises:
        UserError: if the file cannot be written; nothing is left of it.
    """
    path = Path(path)
    try:
        if path.exists() and not path.is_file() and not path.is_dir():
            with open(path, "wb") as file:
                write(file)
        else:
            _replace(_target(path), write)
    except OSError as error:
        raise UserError(
            f"{str(path)[:200]} cannot be written ({error.strerror}): name a file in a folder you "
            "may write to"
        ) from error
    return path


def _target(path: Path) -> Path:
    """Where a link leads."""
    try:
        return path.resolve()
    except (RuntimeError, ValueError) as error:  # links in a circle, a NUL in the name
        raise UserError(
            f"{str(path)!r} cannot be written ({error}): name a file in a folder you may write to"
        ) from error


def _replace(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # of the name only so much that the longest one still fits
    descriptor, name = tempfile.mkstemp(
        prefix=f".{path.name[:40]}.", suffix=".tmp", dir=path.parent
    )
    try:
        with os.fdopen(descriptor, "wb") as file:
            write(file)
            os.fchmod(file.fileno(), permissions(path))
        os.replace(name, path)
    finally:
        with contextlib.suppress(OSError):
            os.unlink(name)


def permissions(path: Path) -> int:
    """Those of the file that is there, else what the process gives to a new one."""
    if path.exists():
        return stat.S_IMODE(path.stat().st_mode)
    mask = os.umask(0o077)  # it cannot be read without being set
    os.umask(mask)
    return 0o666 & ~mask


def read_samples(path: str | Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Read a file of :func:`write_samples`.

    Returns:
        The header, and one or more samples whose ``tokens`` is a list of one or more integers and
        whose ``text`` is a string, or None if :func:`is_decoded` says so of the header.

    Raises:
        UserError: if the file is missing, not UTF-8, or a line is not what it should be.
    """
    path = Path(path)
    try:
        lines = path.read_bytes().decode("utf-8").split("\n")
    except OSError as error:
        raise UserError(
            f"samples file {str(path)!r} cannot be read ({error.strerror}): give a file written "
            "by `idlm generate --output samples.jsonl`"
        ) from error
    except UnicodeDecodeError as error:
        raise UserError(
            f"samples file {path} is not UTF-8 (byte {error.start}): give a file written by "
            "`idlm generate`"
        ) from error
    objects = [
        (number, _parse(path, number, line)) for number, line in enumerate(lines, 1) if line.strip()
    ]
    if not objects or "text" in objects[0][1] or "tokens" in objects[0][1]:
        raise UserError(
            f"{path} does not start with a header: its first line must be an object such as "
            '{"checkpoint": "...", "steps": 16}, without text and tokens'
        )
    if len(objects) == 1:
        raise UserError(f"{path} has a header and no samples: generate at least one")
    for number, row in objects[1:]:
        _check(path, number, row, decoded=is_decoded(objects[0][1]))
    return objects[0][1], [row for _, row in objects[1:]]


def are_repetitions(group: Sequence[Mapping[str, Any]]) -> bool:
    """Whether sets made under one set of :data:`CONDITIONS` are independent draws.

    Args:
        group: headers; one set is no repetition. Two of one seed, or of none that is known, may
            hold the very same samples.
    """
    seeds = [header.get("seed") for header in group]
    return len(seeds) > 1 and None not in seeds and len(set(map(repr, seeds))) == len(seeds)


def no_repetitions(group: Sequence[Mapping[str, Any]]) -> str:
    """A sentence that says why sets of equal conditions were not averaged.

    Args:
        group: what :func:`are_repetitions` refuses, each with its ``source``.
    """
    names = ", ".join(dict.fromkeys(str(header.get("source", "unnamed")) for header in group))
    seeds = ", ".join(str(header.get("seed", "unknown")) for header in group)
    return (
        f"{len(group)} sample sets of equal conditions have the seeds {seeds}, which do not tell "
        f"them apart, so they are no repetitions and have no mean: {names}"
    )


def is_decoded(header: Mapping[str, Any]) -> bool:
    """Whether the samples under this header have texts; those of ``--no-text`` do not."""
    return header.get("decoded") is not False


def _lines(header: Mapping[str, Any], rows: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    yield _line(header)
    for number, row in enumerate(rows):
        if "text" not in row or "tokens" not in row:
            raise ValueError(f"sample {number} has {sorted(row)}: it needs text and tokens")
        if isinstance(row["text"], str) != is_decoded(header):
            kind, said = type(row["text"]).__name__, header.get("decoded", True)
            raise ValueError(
                f"sample {number} has a {kind} as text; the header says decoded: {said}"
            )
        yield _line(row)


def _line(value: Mapping[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, default=_plain) + "\n"


def _plain(value: Any) -> Any:
    """Tensors, arrays and paths as JSON knows them."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} {value!r} cannot be written as JSON")


def _parse(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        value = json.loads(line, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{path} line {number} is not JSON ({error}): every line must be one JSON object"
        ) from error
    if not isinstance(value, dict):
        raise UserError(
            f"{path} line {number} is a {type(value).__name__}: every line must be one JSON object"
        )
    return value


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} is no number")


def _check(path: Path, number: int, row: Mapping[str, Any], *, decoded: bool) -> None:
    if decoded and not isinstance(row.get("text"), str):
        raise UserError(f'{path} line {number} has no "text" string: every sample needs one')
    if decoded and (half := lone_surrogate(row["text"])):
        raise UserError(
            f'{path} line {number} has {half!r} in its "text", which is half a character: write '
            "the file with `idlm generate`"
        )
    if not decoded and row.get("text", "") is not None:
        raise UserError(
            f'{path} line {number} needs "text": null, because the header says "decoded": false'
        )
    tokens = row.get("tokens")
    if not (isinstance(tokens, list) and tokens and all(map(_is_token, tokens))):
        raise UserError(
            f'{path} line {number} has no "tokens": every sample needs a list of one or more '
            f"token ids from 0 to {LARGEST_TOKEN}"
        )


def lone_surrogate(text: str) -> str | None:
    """The first character of ``text`` that has no UTF-8 form, half of a UTF-16 pair, if any."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        return text[error.start]
    return None


def _is_token(value: Any) -> bool:
    return type(value) is int and 0 <= value <= LARGEST_TOKEN
