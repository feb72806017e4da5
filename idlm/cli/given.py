"""What ``idlm generate`` is given to keep: prompts and infills, on the line or in files."""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

from idlm.errors import UserError

# Text, or token ids in which None is a slot of an infill.
Piece = str | list[int | None]


@dataclass(frozen=True)
class Given:
    """What the user wants kept: nothing, prompts or infills.

    Attributes:
        kind: "none", "prompt" or "infill"; ``samples.jsonl`` calls it so too.
        pieces: one for each prompt or infill, all of them text or all of them token ids.
    """

    kind: str = "none"
    pieces: tuple[Piece, ...] = ()

    @property
    def is_text(self) -> bool:
        """Whether a tokenizer is needed to read it."""
        return any(isinstance(piece, str) for piece in self.pieces)


def read_given(args: argparse.Namespace) -> Given:
    """The texts of ``--prompt`` or ``--infill``, or of one of their files.

    Args:
        args: with ``prompt``, ``prompt_file``, ``infill`` and ``infill_file``, at most one set.

    Raises:
        UserError: if a file cannot be read or is no such file, or a text is empty.
    """
    for kind in ("prompt", "infill"):
        file = getattr(args, f"{kind}_file")
        pieces = getattr(args, kind)
        option = f"--{kind}"
        if file is not None:
            option = f"--{kind}-file {file}"
            pieces = _read(option, Path(file), kind)
        if pieces is None:
            continue
        for number, piece in enumerate(pieces):
            if len(piece) == 0:
                which = f" (number {number})" if len(pieces) > 1 else ""
                raise UserError(f"{option} is empty{which}; give some text, or leave it out")
        if len({type(piece) for piece in pieces}) > 1:
            raise UserError(f"{option} mixes text and token ids; give all as one or the other")
        return Given(kind, tuple(pieces))
    return Given()


def _read(option: str, path: Path, kind: str) -> list[Piece]:
    try:
        content = path.read_bytes().decode("utf-8-sig")  # some editors begin with a mark
    except OSError as error:
        raise UserError(f"{option} cannot be read ({error.strerror}); name a file") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{option} is not UTF-8 (byte {error.start}); save it as UTF-8") from error
    if path.suffix.lower() != ".jsonl":
        # the line end that editors put behind the last line is not meant
        return [content.removesuffix("\n").removesuffix("\r")]
    lines = [(n, line) for n, line in enumerate(content.split("\n"), 1) if line.strip()]
    if not lines:
        raise UserError(f"{option} is empty; give one {kind} a line")
    return [_piece(f"{option} line {number}", line, kind) for number, line in lines]


def _piece(where: str, line: str, kind: str) -> Piece:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} is not JSON ({error}); give one {kind} a line") from error
    if isinstance(value, dict):
        value = value.get(kind)
    if isinstance(value, str):
        return value
    if isinstance(value, list) and all(
        type(item) is int or (item is None and kind == "infill") for item in value
    ):
        return value
    slots = " with null for each slot" if kind == "infill" else ""
    raise UserError(
        f'{where} holds no {kind}; give a string, a list of token ids{slots}, or {{"{kind}": ...}}'
    )
