"""Where documents come from: the interface, and the two sources that need no network."""

from __future__ import annotations

import hashlib
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from idlm.data import python_docs
from idlm.data.parts import CHARACTERS, Part, not_utf8, read_parts
from idlm.errors import UserError
from idlm.paths import leads_inside
from idlm.samples import lone_surrogate

VALIDATION_FRACTION = 0.05
TEXT_SUFFIXES = (".txt", ".jsonl")


class Corpus(ABC):
    """Two splits of documents, ``"train"`` and ``"validation"``, always in the same order.

    Documents without a visible character are left out.

    Attributes:
        tokenizer: what the corpus is usually tokenised with; None if it has no habit.
        special_ends: whether it is usually packed by MDLM's rule (see ``packing``).
    """

    tokenizer: str | None = None
    special_ends: bool = False

    @abstractmethod
    def documents(self, split: str) -> Iterator[str]:
        """The documents of a split."""

    @abstractmethod
    def content(self, split: str) -> str:
        """A string that changes whenever ``documents(split)`` may change."""

    def stream(
        self, split: str, *, seed: int, epoch: int, state: Any = None
    ) -> Iterator[tuple[Any, str]]:
        """One pass over a split that can be continued in the middle.

        Args:
            split: ``"train"`` or ``"validation"``.
            seed: decides the order together with ``epoch``, where a source can change it.
            epoch: number of the pass.
            state: where to start, as yielded by an earlier pass of the same seed and epoch;
                None for the beginning.

        Yields:
            Pairs of a picklable state and a document; a stream from that state starts with it.
        """
        first = state or 0
        for number, text in enumerate(self.documents(split)):
            if number >= first:
                yield number, text


class PythonDocs(Corpus):
    """The English prose inside CPython, see ``idlm.data.python_docs``."""

    def documents(self, split: str) -> Iterator[str]:
        """The documents of a split."""
        return python_docs.documents(split)

    def content(self, split: str) -> str:
        """The CPython version and the hash of the text."""
        return f"python_docs:{split}:{python_docs.fingerprint()}"


class LocalText(Corpus):
    """A ``.txt`` file, a ``.jsonl`` file, or a folder of both (searched recursively, by name).

    A ``.txt`` file is one document; a line of a ``.jsonl`` file is one document, the string in
    ``text_field``. A large ``.txt`` file comes in parts, see :mod:`idlm.data.parts`. Without
    ``validation``, the last ``validation_fraction`` of the characters, cut at a line break, are
    the validation split.

    Args:
        path: the file or folder.
        text_field: the field of each JSON object that holds the text.
        validation: another file or folder that is the validation split.
        validation_fraction: share of the characters kept for validation, in (0, 1).

    Raises:
        UserError: if a path does not exist or holds no ``.txt`` or ``.jsonl`` file.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        text_field: str = "text",
        validation: str | Path | None = None,
        validation_fraction: float = VALIDATION_FRACTION,
    ) -> None:
        if not 0 < validation_fraction < 1:
            raise UserError(
                f"validation_fraction={validation_fraction} is not between 0 and 1; try "
                f"{VALIDATION_FRACTION}"
            )
        self.text_field = text_field
        self.validation_fraction = validation_fraction
        self.files = text_files(Path(path))
        self.validation_files = text_files(Path(validation)) if validation is not None else None

    def documents(self, split: str) -> Iterator[str]:
        """The documents of a split, in the order of the files' names."""
        goes_on = False
        for text in self._split(split):
            # the end of a document that came in parts counts even if nothing is left of it
            if text.strip() or goes_on:
                yield text
            goes_on = isinstance(text, Part)

    def content(self, split: str) -> str:
        """The hash of the files' bytes and of the rule that splits them."""
        if self.validation_files is not None:
            files, rule = (self.files if split == "train" else self.validation_files), "whole"
        else:
            files, rule = self.files, f"{split}:{self.validation_fraction}"
        if any(file.suffix != ".jsonl" and file.stat().st_size > 2 * CHARACTERS for file in files):
            rule += f":parts{CHARACTERS}"
        return f"local:{hash_files(files, f'{self.text_field}:{rule}')}"

    def _split(self, split: str) -> Iterator[str]:
        if self.validation_files is not None:
            yield from self._read(self.files if split == "train" else self.validation_files)
            return
        total = sum(len(text) for text in self._read(self.files))
        cut = round(total * (1 - self.validation_fraction))
        position = 0
        for text in self._read(self.files):
            before, after = _split_at(text, cut - position)
            position += len(text)
            yield before if split == "train" else after

    def _read(self, files: list[Path]) -> Iterator[str]:
        for file in files:
            if file.suffix == ".jsonl":
                yield from _json_lines(file, self.text_field)
            else:
                yield from read_parts(file)


def text_files(path: Path) -> list[Path]:
    """The text files at a path, sorted by their name inside it.

    Raises:
        UserError: if nothing is there, or nothing of a known kind.
    """
    if path.is_dir():
        found = (file for file in path.rglob("*") if file.suffix in TEXT_SUFFIXES)
        files = [file for file in found if not file.is_dir()]
        files = sorted(files, key=lambda file: file.relative_to(path).parts)
        if not files:
            raise UserError(
                f"the folder {str(path)!r} holds no .txt and no .jsonl file; give one that does"
            )
        for file in files:
            _check_inside(file, path)
        return files
    if not path.is_file():
        raise UserError(f"there is no file or folder {str(path)!r}; check the path")
    if path.suffix not in TEXT_SUFFIXES:
        raise UserError(
            f"{str(path)!r} is neither .txt (one document) nor .jsonl (one document a line); "
            "convert or rename it"
        )
    return [path]


def _check_inside(file: Path, folder: Path) -> None:
    """Refuse what a folder from elsewhere could smuggle in: links to other places, and pipes.

    Raises:
        UserError: naming the file and where it leads.
    """
    if file.is_symlink() and not leads_inside(file, folder):
        raise UserError(
            f"{str(file)!r} is a link to {os.readlink(file)!r}, outside of the folder; put the "
            "file itself there, or give the folder it lies in"
        )
    if not file.is_file():
        raise UserError(f"{str(file)!r} is no file that can be read; remove it from the folder")


def hash_files(files: list[Path], salt: str) -> str:
    """The sha256 of the files' bytes and suffixes, in the given order.

    Raises:
        UserError: for a file that cannot be read.
    """
    digest = hashlib.sha256(salt.encode("utf-8"))
    for file in files:
        with _opened(file) as stream:
            digest.update(f"\0{file.suffix}:{file.stat().st_size}\0".encode())
            while piece := stream.read(1 << 20):
                digest.update(piece)
    return digest.hexdigest()


@contextmanager
def _opened(file: Path) -> Iterator[BinaryIO]:
    try:
        with open(file, "rb") as stream:
            yield stream
    except OSError as error:
        raise UserError(
            f"{str(file)!r} cannot be read ({error.strerror}); check its permissions, or give "
            "another"
        ) from error


def _json_lines(file: Path, field: str) -> Iterator[str]:
    offset = 0
    with _opened(file) as stream:
        for number, line in enumerate(stream, start=1):
            text = _decode(line, file, offset)
            offset += len(line)
            if text.strip():
                yield _field(text, field, file, number)


def _field(line: str, field: str, file: Path, number: int) -> str:
    place = f"{str(file)!r}, line {number}"
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(
            f"{place}: not valid JSON ({error.msg} at column {error.colno}); each line must be "
            "one JSON object"
        ) from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, deep nesting
        raise UserError(
            f"{place}: not valid JSON ({error}); each line must be one JSON object"
        ) from error
    if not isinstance(record, dict):
        raise UserError(
            f"{place}: a JSON {type(record).__name__}, where an object with the field {field!r} "
            "is expected"
        )
    if field not in record:
        raise UserError(
            f"{place}: there is no field {field!r}; the fields are "
            f"{', '.join(map(repr, record)) or 'none'}; choose one with "
            "--data.init_args.text_field NAME"
        )
    if not isinstance(record[field], str):
        raise UserError(
            f"{place}: the field {field!r} holds a {type(record[field]).__name__}, not a string; "
            "choose another with --data.init_args.text_field NAME"
        )
    if half := lone_surrogate(record[field]):
        raise UserError(
            f"{place}: the field {field!r} has {half!r}, which is half a character; write the file "
            "as UTF-8, or remove the line"
        )
    return str(record[field])


def _decode(data: bytes, file: Path, offset: int) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise not_utf8(file, error, offset) from error


def _split_at(text: str, cut: int) -> tuple[str, str]:
    """Split at the last line break before ``cut``, a character count, or else at ``cut``.

    What is split off the end of a document ends one; the rest is a part if the whole was.
    """
    part = type(text)
    if cut <= 0:
        return "", text
    if cut >= len(text):
        return text, ""
    cut = text.rfind("\n", 0, cut) + 1 or cut
    return text[:cut], part(text[cut:])
