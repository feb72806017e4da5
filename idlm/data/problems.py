"""Word problems with a number as answer: GSM8K (Cobbe et al., arXiv 2110.14168) and its like."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from idlm.data.answers import MARKER, marked_number
from idlm.data.huggingface import HuggingFaceDataset
from idlm.errors import UserError

GSM8K = "openai/gsm8k:main"


@dataclass(frozen=True)
class Problem:
    """A question and its number.

    Attributes:
        index: place in the data, from 0.
        question: the text.
        answer: the number behind ``####`` in the data's answer.
    """

    index: int
    question: str
    answer: Fraction


def read_problems(source: str, *, split: str = "test", limit: int | None = None) -> list[Problem]:
    """Problems in the layout of GSM8K: fields ``question`` and ``answer``, the latter with ####.

    Args:
        source: a JSONL file as its authors publish it, a folder of parquet files, or a dataset of
            the Hugging Face hub as ``owner/name:config``, such as ``openai/gsm8k:main``.
        split: of a dataset; a file is taken whole.
        limit: only the first so many.

    Raises:
        UserError: if there is no such data, or a record is not of this layout.
    """
    path = Path(source).expanduser()
    if path.is_file():
        records = _json_lines(path)
    elif path.is_dir() or not (source.endswith((".jsonl", ".json")) or path.is_absolute()):
        records = _Dataset(source).records(split)
    else:
        raise UserError(
            f"there is no file {source!r}; give the test.jsonl of GSM8K, a folder of its parquet "
            f"files, or a dataset of the hub such as {GSM8K}"
        )
    found = []
    for index, (place, record) in enumerate(records):
        if limit is not None and index >= limit:
            break
        found.append(_problem(index, place, record))
    if not found:
        raise UserError(f"{source} holds no problem; give a file with one JSON object a line")
    return found


class _Dataset(HuggingFaceDataset):
    """The two columns of a dataset on the hub, or in a local folder of its files."""

    def __init__(self, source: str) -> None:
        name, _, config = source.partition(":") if not Path(source).exists() else (source, "", "")
        super().__init__(name, config=config or None)

    def records(self, split: str) -> Iterator[tuple[str, Any]]:
        """Each record with its place in words."""
        for number, record in enumerate(self._load(split=split)):
            yield f"{self._name()}, {split} split, record {number}", record


def _json_lines(path: Path) -> Iterator[tuple[str, Any]]:
    try:
        text = path.read_bytes().decode("utf-8")
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); check the file") from error
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not UTF-8 (byte {error.start}); give the JSONL file of the problems"
        ) from error
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            yield f"{path} line {number}", json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(
                f"{path} line {number} is not JSON ({error}); every line is one problem"
            ) from error


def _problem(index: int, place: str, record: Any) -> Problem:
    found = record if isinstance(record, dict) else {}
    question, answer = found.get("question"), found.get("answer")
    if not isinstance(question, str) or not isinstance(answer, str):
        raise UserError(
            f'{place} is not of the layout {{"question": "...", "answer": "... {MARKER} 42"}}; '
            "give problems in the layout of GSM8K"
        )
    number = marked_number(answer)
    if number is None:
        raise UserError(f"{place}: its answer has no number behind {MARKER}; GSM8K's all have one")
    return Problem(index, question, number)
