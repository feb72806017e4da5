"""A tiny random GPT-2 with a tokenizer of single letters, in memory and on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

LETTERS = "abcdefghijklmnopqrstuvwxyz "
EOS = "<|endoftext|>"


def letter_tokenizer() -> Any:
    """Ids: eos 0, then a..z and space as 1..27."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {EOS: 0, **{letter: i + 1 for i, letter in enumerate(LETTERS)}}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token=EOS))
    core.pre_tokenizer = pre_tokenizers.Split(Regex("."), behavior="isolated")
    core.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token=EOS, bos_token=EOS, pad_token=EOS
    )


def tiny_gpt2(seed: int = 0) -> Any:
    """A GPT-2 of 28 tokens and 32 positions whose weights are large enough to disagree."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=28,
        n_positions=32,
        n_embd=16,
        n_layer=2,
        n_head=2,
        bos_token_id=0,
        eos_token_id=0,
        initializer_range=0.5,
    )
    return GPT2LMHeadModel(config).eval()


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    return letter_tokenizer()


@pytest.fixture
def judge() -> Any:
    return tiny_gpt2()


@pytest.fixture(scope="session")
def judge_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("judge")
    tiny_gpt2().save_pretrained(folder)
    letter_tokenizer().save_pretrained(folder)
    return folder
