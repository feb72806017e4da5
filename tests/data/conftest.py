from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerBase

from idlm.data import PackedDataModule
from idlm.data.tokenizer import train_bpe
from idlm.models import load_tokenizer

WORDS = [
    "the",
    "cat",
    "sat",
    "on",
    "a",
    "mat",
    "and",
    "saw",
    "nine",
    "small",
    "birds",
    "near",
    "old",
    "stone",
    "walls",
]


def make_sentences(count: int) -> list[str]:
    """Documents of different lengths, no two alike."""
    return [
        f"document {n}: " + " ".join(WORDS[(n * 7 + k * k) % len(WORDS)] for k in range(3 + n % 9))
        for n in range(count)
    ]


@pytest.fixture(scope="session")
def sentences() -> Callable[..., list[str]]:
    return make_sentences


@pytest.fixture(scope="session")
def tokenizer_dir(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("tokenizer") / "bpe"
    return str(train_bpe(make_sentences(60), 300, folder))


@pytest.fixture(scope="session")
def tokenizer(tokenizer_dir: str) -> PreTrainedTokenizerBase:
    return load_tokenizer(tokenizer_dir)


@pytest.fixture
def jsonl(tmp_path: Path) -> Path:
    path = tmp_path / "corpus.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in make_sentences(80)))
    return path


@pytest.fixture
def data(jsonl: Path, tokenizer_dir: str, tmp_path: Path) -> Callable[..., PackedDataModule]:
    """Data modules over the same small corpus and cache."""

    def make(corpus: str | Path = jsonl, **changes: object) -> PackedDataModule:
        settings: dict[str, object] = {
            "tokenizer": tokenizer_dir,
            "length": 16,
            "global_batch_size": 4,
            "eval_batch_size": 2,
            "cache_dir": str(tmp_path / "cache"),
        }
        return PackedDataModule(str(corpus), **{**settings, **changes})  # type: ignore[arg-type]

    return make
