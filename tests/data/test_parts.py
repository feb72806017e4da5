from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from transformers import PreTrainedTokenizerBase

from idlm.data import cache, parts
from idlm.data.corpora import LocalText
from idlm.data.packing import PackingReport, packed_blocks, tokenize_and_pack
from idlm.data.parts import Part, read_parts
from idlm.errors import UserError

TEXT = "one line of text\n\n  indented, é ü 漢字 \nand no blank  two blanks\n\tend " * 40


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "CHARACTERS", 50)


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("text", [TEXT, "x" * 333, "", "short\n", "漢字" * 100 + "\n" + "é" * 99])
def test_parts_are_the_file_and_all_but_the_last_go_on(tmp_path: Path, text: str) -> None:
    file = tmp_path / "a.txt"
    file.write_text(text, encoding="utf-8", newline="")
    found = list(read_parts(file))
    assert "".join(found) == text
    assert [isinstance(part, Part) for part in found] == [True] * (len(found) - 1) + [False]
    assert max(map(len, found)) <= 100
    assert len(found) > len(text) // 101


@pytest.mark.parametrize("special_ends", [False, True])
def test_a_file_in_parts_is_packed_as_the_same_document(
    tmp_path: Path,
    tokenizer: PreTrainedTokenizerBase,
    monkeypatch: pytest.MonkeyPatch,
    special_ends: bool,
) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.txt").write_text(TEXT + name, encoding="utf-8")

    def packed() -> tuple[list[list[list[int]]], int]:
        corpus, report = LocalText(tmp_path, validation_fraction=0.4), PackingReport()
        rows = [
            tokenize_and_pack(
                corpus.documents(split), tokenizer, 16, special_ends=special_ends, report=report
            ).tolist()
            for split in ("train", "validation")
        ]
        return rows, report.documents

    whole = packed()
    monkeypatch.setattr(parts, "CHARACTERS", 50)
    assert packed() == whole


@pytest.mark.usefixtures("small_parts")
def test_a_byte_that_is_not_utf8_is_named_by_its_place_in_the_file(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_bytes("é".encode() * 90 + b"\xff")
    with pytest.raises(UserError, match=r"not UTF-8: byte 0xff at offset 180 .*iconv"):
        list(read_parts(file))


def _peak(documents: Iterator[str], tokenizer: PreTrainedTokenizerBase, folder: Path) -> int:
    """Most bytes that Python and numpy held while the documents were packed into the cache."""
    report = PackingReport()
    tracemalloc.start()
    try:
        blocks = packed_blocks(documents, tokenizer, 64, report=report)
        cache.write_rows(folder, "key", blocks, conditions={}, report=report)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("kind", ["txt", "jsonl"])
def test_memory_does_not_grow_with_the_corpus(
    tmp_path: Path,
    tokenizer: PreTrainedTokenizerBase,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
) -> None:
    # blocks and parts of a fiftieth of their size, instead of a corpus of fifty times as much
    monkeypatch.setattr(parts, "CHARACTERS", 1 << 13)
    monkeypatch.setattr("idlm.data.packing._CHARACTERS_AT_A_TIME", 1 << 15)
    monkeypatch.setattr("idlm.data.parts._BLOCK", 1 << 13)
    line = "the cat sat on a mat and saw nine small birds near old stone walls"
    peaks, sizes = [], []
    for kilobytes in (300, 1200):
        file = tmp_path / f"{kilobytes}.{kind}"
        row = f"{line}\n" if kind == "txt" else f'{{"text": "{line}"}}\n'
        file.write_text(row * (kilobytes * 1000 // len(row)))
        documents = LocalText(file).documents("train")
        peaks.append(_peak(documents, tokenizer, tmp_path / str(kilobytes)))
        found = cache.open_rows(tmp_path / str(kilobytes), "key")
        assert found is not None
        assert isinstance(found[0], np.memmap)
        sizes.append(found[0].nbytes)
    assert sizes[1] > 3.9 * sizes[0]
    assert peaks[1] < 1.2 * peaks[0]
    assert peaks[1] < 10**6
