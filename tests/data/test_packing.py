from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from idlm.data.packing import PackingReport, token_dtype, tokenize_and_pack
from idlm.errors import UserError

Sentences = Callable[..., list[str]]


def _stream(documents: list[str], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    eos = tokenizer.eos_token_id
    return [
        token
        for text in documents
        for token in [*tokenizer(text, add_special_tokens=False)["input_ids"], eos]
    ]


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(documents=st.lists(st.text(min_size=1), min_size=1, max_size=6), length=st.integers(1, 12))
def test_packed_rows_cover_every_token_once(
    tokenizer: PreTrainedTokenizerBase, documents: list[str], length: int
) -> None:
    expected = _stream(documents, tokenizer)
    if len(expected) < length:
        return
    report = PackingReport()
    rows = tokenize_and_pack(documents, tokenizer, length, report=report)
    kept = len(expected) - len(expected) % length
    assert rows.reshape(-1).tolist() == expected[:kept]
    assert report == PackingReport(
        documents=len(documents),
        tokens=len(expected),
        rows=len(rows),
        dropped_tokens=len(expected) - kept,
    )


def test_rows_do_not_depend_on_how_documents_are_batched(
    tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch, sentences: Sentences
) -> None:
    together = tokenize_and_pack(sentences(50), tokenizer, 16)
    monkeypatch.setattr("idlm.data.packing._DOCUMENTS_AT_A_TIME", 3)
    assert np.array_equal(tokenize_and_pack(sentences(50), tokenizer, 16), together)


def test_special_ends_wrap_the_stream_as_mdlm_does(
    tokenizer: PreTrainedTokenizerBase, sentences: Sentences
) -> None:
    documents = sentences(12)
    rows = tokenize_and_pack(documents, tokenizer, 16, special_ends=True)
    assert (rows[:, 0] == tokenizer.bos_token_id).all()
    assert (rows[:, -1] == tokenizer.eos_token_id).all()
    stream = _stream(documents, tokenizer)
    assert rows[:, 1:-1].reshape(-1).tolist() == stream[: len(stream) // 14 * 14]


@pytest.mark.parametrize(
    ("vocab_size", "expected"), [(65_536, np.uint16), (65_537, np.int32), (50_257, np.uint16)]
)
def test_tokens_take_two_bytes_while_the_vocabulary_fits(
    vocab_size: int, expected: type[np.generic]
) -> None:
    assert token_dtype(vocab_size) == expected


def test_a_split_shorter_than_a_row_is_refused(tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(UserError, match=r"empty: its 1 documents hold \d+ tokens.*length=1024"):
        tokenize_and_pack(["too short"], tokenizer, 1024)


def test_no_documents_at_all_are_refused(tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(UserError, match=r"the split is empty: its 0 documents hold 0 tokens"):
        tokenize_and_pack([], tokenizer, 4)


def test_a_length_without_room_for_text_is_refused(tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(UserError, match=r"length=2 is too short.*at least 3"):
        tokenize_and_pack(["a"], tokenizer, 2, special_ends=True)


def test_a_tokenizer_without_eos_is_refused(tokenizer: PreTrainedTokenizerBase) -> None:
    from transformers import PreTrainedTokenizerFast

    bare = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer)
    with pytest.raises(UserError, match=r"has no eos token to put between documents"):
        tokenize_and_pack(["a b c"], bare, 2)
