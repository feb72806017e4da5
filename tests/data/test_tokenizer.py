from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from idlm.data.tokenizer import END_OF_TEXT, tokenizer_hash, train_bpe
from idlm.errors import UserError
from idlm.models import load_tokenizer

Sentences = Callable[..., list[str]]


def test_a_trained_tokenizer_loads_with_transformers_and_has_one_special_token(
    tokenizer_dir: str,
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_dir)
    assert len(tokenizer) == 300
    assert (tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.pad_token_id) == (0, 0, 0)
    assert tokenizer.eos_token == END_OF_TEXT
    assert tokenizer.unk_token is None
    assert tokenizer.mask_token is None
    assert tokenizer.all_special_tokens == [END_OF_TEXT]


@pytest.mark.parametrize("text", ["the cat", "  spaces\n\tand tabs ", "naïve 日本 🙂", "\x00\x7f"])
def test_decoding_gives_back_the_text(tokenizer_dir: str, text: str) -> None:
    tokenizer = load_tokenizer(tokenizer_dir)
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_the_same_texts_give_the_same_tokenizer(
    tokenizer_dir: str, tmp_path: Path, sentences: Sentences
) -> None:
    again = load_tokenizer(train_bpe(sentences(60), 300, tmp_path / "again"))
    assert tokenizer_hash(again) == tokenizer_hash(load_tokenizer(tokenizer_dir))


def test_training_over_an_old_tokenizer_replaces_it_and_leaves_nothing_else(
    tmp_path: Path, sentences: Sentences
) -> None:
    train_bpe(sentences(60), 280, tmp_path / "bpe")
    train_bpe(sentences(60), 300, tmp_path / "bpe")
    assert len(load_tokenizer(tmp_path / "bpe")) == 300
    assert [path.name for path in tmp_path.iterdir()] == ["bpe"]


def test_a_failed_training_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"vocab_size=5000 is more than the texts support"):
        train_bpe(["a few words"], 5000, tmp_path / "bpe")
    assert list(tmp_path.iterdir()) == []


def test_a_vocabulary_without_room_for_merges_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"vocab_size=257 leaves no room for merges.*try 4096"):
        train_bpe(["a"], 257, tmp_path / "bpe")
