from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from idlm.data import PackedDataModule
from idlm.data.corpora import Corpus
from idlm.data.huggingface import HuggingFaceDataset
from idlm.data.registry import open_corpus
from idlm.errors import UserError

Sentences = Callable[..., list[str]]


@pytest.fixture
def texts(sentences: Sentences) -> list[str]:
    return sentences(90)


@pytest.fixture
def parquet(tmp_path: Path, texts: list[str]) -> Path:
    """A dataset folder: three training files and one for validation."""
    folder = tmp_path / "dataset"
    folder.mkdir()
    for part in range(3):
        rows = texts[part * 25 : part * 25 + 25]
        table = pa.table({"text": rows, "length": [len(row) for row in rows]})
        pq.write_table(table, folder / f"train-{part}-of-3.parquet", row_group_size=7)
    pq.write_table(
        pa.table({"text": texts[75:], "length": [0] * 15}), folder / "validation.parquet"
    )
    return folder


@pytest.fixture
def jsonl_dataset(tmp_path: Path, texts: list[str]) -> Path:
    """A dataset folder of JSON lines without a validation split."""
    folder = tmp_path / "lines"
    folder.mkdir()
    lines = [json.dumps({"body": text}) + "\n" for text in texts]
    (folder / "train.json").write_text("".join(lines))
    return folder


def test_a_folder_of_parquet_files_is_read_through_datasets(
    parquet: Path, texts: list[str]
) -> None:
    corpus = open_corpus(str(parquet))
    assert isinstance(corpus, HuggingFaceDataset)
    assert list(corpus.documents("train")) == texts[:75]
    assert list(corpus.documents("validation")) == texts[75:]


def test_without_a_validation_split_the_end_is_held_out(
    jsonl_dataset: Path, texts: list[str]
) -> None:
    corpus = HuggingFaceDataset(str(jsonl_dataset), text_field="body")
    train, validation = list(corpus.documents("train")), list(corpus.documents("validation"))
    assert train + validation == texts
    assert len(validation) == 4  # 5 % of 90, rounded


@pytest.mark.parametrize("streaming", [False, True])
def test_the_published_split_holds_out_the_last_documents(
    parquet: Path, texts: list[str], streaming: bool
) -> None:
    corpus = HuggingFaceDataset(
        str(parquet), validation_documents=10, total_documents=75, streaming=streaming
    )
    assert list(corpus.documents("train")) == texts[:65]
    assert list(corpus.documents("validation")) == texts[65:75]


@pytest.mark.parametrize("streaming", [False, True])
def test_rows_are_joined_into_articles(tmp_path: Path, streaming: bool) -> None:
    rows = ["", " = One = \n", " a \n", "", " = = Part = = \n", " b \n", " = Two = \n", " c \n", ""]
    (tmp_path / "train.json").write_text("".join(json.dumps({"text": r}) + "\n" for r in rows))
    (tmp_path / "validation.json").write_text('{"text": "x"}\n')
    corpus = HuggingFaceDataset(str(tmp_path), document_start="^ = [^=]", streaming=streaming)
    first, second = corpus.documents("train")
    assert first == " = One = \n a \n = = Part = = \n b \n"
    assert second == " = Two = \n c \n"


def test_a_stream_continues_where_it_was_in_any_epoch(parquet: Path, texts: list[str]) -> None:
    orders = []
    for epoch in (0, 1):
        corpus = HuggingFaceDataset(str(parquet), streaming=True)
        everything = list(corpus.stream("train", seed=3, epoch=epoch))
        assert sorted(text for _, text in everything) == sorted(texts[:75])
        orders.append([text for _, text in everything])
        for cut in (0, 1, 6, 7, 8, 30, 74):
            state = json.loads(json.dumps(everything[cut][0]))  # as a checkpoint would keep it
            continued = corpus.stream("train", seed=3, epoch=epoch, state=state)
            assert [text for _, text in continued] == orders[-1][cut:]
    assert orders[0] != orders[1]


def test_an_article_continues_at_its_first_row(tmp_path: Path) -> None:
    rows = [f" = {n} = \n" if k == 0 else f" row {k} \n" for n in range(5) for k in range(n + 1)]
    (tmp_path / "train.json").write_text("".join(json.dumps({"text": r}) + "\n" for r in rows))
    (tmp_path / "validation.json").write_text('{"text": "x"}\n')
    corpus = HuggingFaceDataset(str(tmp_path), document_start="^ = [^=]", streaming=True)
    everything = list(corpus.stream("train", seed=0, epoch=0))
    assert len(everything) == 5
    for number, (state, _) in enumerate(everything):
        continued = corpus.stream("train", seed=0, epoch=0, state=state)
        assert [text for _, text in continued] == [text for _, text in everything[number:]]


def test_a_dataset_is_packed_like_its_text(
    data: Callable[..., PackedDataModule], parquet: Path, tmp_path: Path, texts: list[str]
) -> None:
    (tmp_path / "t.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts[:75]))
    (tmp_path / "v.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts[75:]))
    (tmp_path / "r.yaml").write_text("{source: local, path: t.jsonl, validation_path: v.jsonl}")
    local = data(tmp_path / "r.yaml")
    for streaming in (False, True):
        module = data(parquet, streaming=streaming)
        assert np.array_equal(module.evaluation_rows(), local.evaluation_rows())
    assert np.array_equal(data(parquet).rows("train"), local.rows("train"))


def test_streaming_evaluation_reads_no_further_than_it_must(
    data: Callable[..., PackedDataModule], parquet: Path
) -> None:
    everything = data(parquet).rows("validation")
    module = data(parquet, streaming=True, max_eval_rows=2)
    assert np.array_equal(module.evaluation_rows(), everything[:2])
    assert module.metadata["validation"]["rows"] == 2


def test_a_changed_file_is_another_content(parquet: Path) -> None:
    def content() -> str:
        return HuggingFaceDataset(str(parquet)).content("train")

    before = content()
    assert content() == before
    pq.write_table(pa.table({"text": ["other"]}), parquet / "train-1-of-3.parquet")
    assert content() != before


def test_a_pinned_commit_names_the_content_without_asking(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(HuggingFaceDataset, "_ask", lambda *_: pytest.fail("asked"))
    options = {"revision": "0" * 40, "data_files": {"train": "*", "validation": "*"}}
    one = HuggingFaceDataset("owner/name", **options)  # type: ignore[arg-type]
    other = HuggingFaceDataset("owner/name", **{**options, "revision": "1" * 40})  # type: ignore[arg-type]
    assert "0" * 40 in one.content("train")
    assert len({one.content("train"), one.content("validation"), other.content("train")}) == 3


def test_an_unknown_field_names_those_that_exist(parquet: Path) -> None:
    for streaming in (False, True):
        corpus = HuggingFaceDataset(str(parquet), text_field="body", streaming=streaming)
        with pytest.raises(UserError, match=r"no field 'body'; its fields are 'text', 'length'"):
            list(corpus.documents("train"))


def test_a_field_that_is_not_text_is_refused(parquet: Path) -> None:
    corpus = HuggingFaceDataset(str(parquet), text_field="length")
    with pytest.raises(UserError, match=r"'length' of .* holds a int, not a string"):
        list(corpus.documents("train"))


@pytest.mark.parametrize(
    "corpus",
    [
        HuggingFaceDataset("owner/name"),
        HuggingFaceDataset("owner/name", streaming=True),
        HuggingFaceDataset("owner/name", revision="0" * 40, data_files={"train": "*"}),
    ],
)
def test_a_hub_out_of_reach_says_how_to_go_on(corpus: Corpus) -> None:
    with pytest.raises(
        UserError, match=r"'owner/name' could not be reached.*--data.init_args.corpus PATH"
    ):
        list(corpus.documents("train"))


def test_what_datasets_refuses_is_one_sentence(parquet: Path) -> None:
    with pytest.raises(UserError, match=r"could not be loaded: BuilderConfig 'x' not found"):
        list(HuggingFaceDataset(str(parquet), config="x").documents("train"))
    with pytest.raises(UserError, match=r"could not be loaded: Unknown split \"nope\""):
        list(HuggingFaceDataset(str(parquet), train_split="nope").documents("train"))


def test_a_held_out_end_cannot_be_streamed_without_the_total(parquet: Path) -> None:
    corpus = HuggingFaceDataset(str(parquet), validation_documents=10, streaming=True)
    with pytest.raises(UserError, match=r"validation_documents=10 needs .*total_documents"):
        list(corpus.documents("validation"))


def test_a_missing_validation_split_cannot_be_streamed(jsonl_dataset: Path) -> None:
    corpus = HuggingFaceDataset(str(jsonl_dataset), text_field="body", streaming=True)
    with pytest.raises(UserError, match=r"no split 'validation' and a stream.*splits are train"):
        list(corpus.documents("validation"))
