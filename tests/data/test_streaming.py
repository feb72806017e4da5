from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from transformers import PreTrainedTokenizerBase

from idlm.data.corpora import LocalText
from idlm.data.packing import tokenize_and_pack
from idlm.data.streaming import Position, RowStream
from idlm.errors import UserError

MakeStream = Callable[..., RowStream]


@pytest.fixture
def stream(jsonl: Path, tokenizer: PreTrainedTokenizerBase) -> MakeStream:
    def make(*, length: int = 16, special_ends: bool = False) -> RowStream:
        corpus = LocalText(jsonl)
        return RowStream(
            corpus, "train", tokenizer, length=length, special_ends=special_ends, seed=0
        )

    return make


@pytest.mark.parametrize("special_ends", [False, True])
def test_the_first_epoch_streams_the_rows_that_packing_stores(
    stream: MakeStream,
    jsonl: Path,
    tokenizer: PreTrainedTokenizerBase,
    special_ends: bool,
) -> None:
    stored = tokenize_and_pack(
        LocalText(jsonl).documents("train"), tokenizer, 16, special_ends=special_ends
    )
    rows = stream(special_ends=special_ends).rows(Position())
    streamed = [row for row, _ in itertools.islice(rows, len(stored))]
    assert np.array_equal(np.stack(streamed), stored)


def test_an_epochs_remainder_begins_the_next_epoch(
    stream: MakeStream, jsonl: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    documents = list(LocalText(jsonl).documents("train"))
    twice = tokenize_and_pack(documents * 2, tokenizer, 16)
    rows = stream().rows(Position())
    streamed = [row for row, _ in itertools.islice(rows, len(twice))]
    assert np.array_equal(np.stack(streamed), twice)


@pytest.mark.parametrize("length", [3, 16, 700])
def test_every_position_continues_with_its_row(
    stream: MakeStream, monkeypatch: pytest.MonkeyPatch, length: int
) -> None:
    # Small blocks, so that rows end inside, at the end of, and far beyond a block.
    monkeypatch.setattr("idlm.data.streaming._DOCUMENTS_AT_A_TIME", 3)
    rows = list(itertools.islice(stream(length=length).rows(Position()), 40))
    for number, (_, position) in enumerate(rows[:-1]):
        continued, _ = next(stream(length=length).rows(position))
        assert np.array_equal(continued, rows[number + 1][0])


def test_a_stream_without_text_is_refused(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    (tmp_path / "blank.txt").write_text("\n \n")
    corpus = LocalText(tmp_path)
    rows = RowStream(corpus, "train", tokenizer, length=4, special_ends=False, seed=0)
    with pytest.raises(UserError, match=r"the train split is empty: its stream holds no document"):
        next(rows.rows(Position()))
