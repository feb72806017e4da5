from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from idlm.data import PackedDataModule
from idlm.data.corpora import LocalText
from idlm.data.registry import open_corpus
from idlm.errors import UserError


def test_a_text_file_is_one_document_cut_at_a_line_break(tmp_path: Path) -> None:
    text = "".join(f"line number {n}\n" for n in range(100))
    (tmp_path / "a.txt").write_text(text)
    corpus = LocalText(tmp_path / "a.txt")
    [train], [validation] = corpus.documents("train"), corpus.documents("validation")
    assert train + validation == text
    assert train.endswith("\n")
    assert len(validation) == pytest.approx(0.05 * len(text), abs=20)


def test_a_folder_is_read_by_name_with_text_and_jsonl(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "two.jsonl").write_text('{"text": "second"}\n\n{"text": "third"}\n')
    (tmp_path / "a.txt").write_text("first")
    (tmp_path / "c.txt").write_text("fourth, " * 20)
    (tmp_path / "ignored.md").write_text("not text")
    corpus = LocalText(tmp_path, validation_fraction=0.01)
    assert list(corpus.documents("train"))[:3] == ["first", "second", "third"]


def test_the_splits_are_everything_and_disjoint(jsonl: Path) -> None:
    corpus = LocalText(jsonl, validation_fraction=0.3)
    train, validation = list(corpus.documents("train")), list(corpus.documents("validation"))
    texts = [json.loads(line)["text"] for line in jsonl.read_text().splitlines()]
    assert "".join(train + validation) == "".join(texts)
    assert train == texts[: len(train)] or train[:-1] == texts[: len(train) - 1]


def test_a_validation_file_leaves_the_training_text_whole(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("training")
    (tmp_path / "v.txt").write_text("validation")
    corpus = LocalText(tmp_path / "a.txt", validation=tmp_path / "v.txt")
    assert list(corpus.documents("train")) == ["training"]
    assert list(corpus.documents("validation")) == ["validation"]


def test_another_field_is_another_content(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "one", "other": "two"}\n' * 9)
    assert LocalText(tmp_path).content("train") != LocalText(tmp_path).content("validation")
    other = LocalText(tmp_path, text_field="other")
    assert other.content("train") != LocalText(tmp_path).content("train")


def test_a_stream_continues_where_it_was(jsonl: Path) -> None:
    corpus = LocalText(jsonl)
    everything = list(corpus.stream("train", seed=0, epoch=0))
    state = everything[11][0]
    assert list(corpus.stream("train", seed=0, epoch=0, state=state)) == everything[11:]


def test_a_file_that_is_not_utf8_is_named_with_the_offset(tmp_path: Path) -> None:
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9 au lait")
    with pytest.raises(UserError, match=r"latin.txt' is not UTF-8: byte 0xe9 at offset 3"):
        list(LocalText(tmp_path).documents("train"))


def test_the_offset_counts_from_the_start_of_a_jsonl_file(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "x"}\n{"text": "\xff"}\n')
    with pytest.raises(UserError, match=r"a.jsonl' is not UTF-8: byte 0xff at offset 24"):
        list(LocalText(tmp_path).documents("train"))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": ', r"a.jsonl', line 2: not valid JSON \(.* at column \d+\)"),
        ('["text"]', "line 2: a JSON list, where an object with the field 'text'"),
        ('{"body": "x", "n": 1}', "no field 'text'; the fields are 'body', 'n'; choose one with"),
        ('{"text": 7}', "line 2: the field 'text' holds a int, not a string"),
    ],
)
def test_a_bad_json_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "good"}\n' + line + "\n")
    with pytest.raises(UserError, match=message):
        list(LocalText(tmp_path / "a.jsonl").documents("train"))


def test_a_missing_file_is_refused() -> None:
    with pytest.raises(UserError, match=r"there is no file or folder '/nowhere/x.txt'"):
        open_corpus("/nowhere/x.txt")


def test_a_folder_without_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.md").write_text("x")
    with pytest.raises(UserError, match=r"holds no .txt and no .jsonl file"):
        open_corpus(str(tmp_path))


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("x")
    with pytest.raises(UserError, match=r"x.csv' is neither .txt .* nor .jsonl"):
        open_corpus(str(tmp_path / "x.csv"))


@pytest.mark.parametrize("fraction", [0.0, 1.0, -1.0])
def test_a_validation_share_outside_zero_and_one_is_refused(jsonl: Path, fraction: float) -> None:
    with pytest.raises(UserError, match=r"validation_fraction=.* is not between 0 and 1"):
        LocalText(jsonl, validation_fraction=fraction)


def test_an_empty_file_is_an_empty_split(
    data: Callable[..., PackedDataModule], tmp_path: Path
) -> None:
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(UserError, match=r"the train split of '.*empty.txt' is empty: its 0 docum"):
        data(tmp_path / "empty.txt").prepare_data()
