"""Text corpora as packed rows of tokens, and the data module that serves them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from idlm.data.module import PackedDataModule
    from idlm.data.packing import tokenize_and_pack
    from idlm.data.tokenizer import train_bpe
    from idlm.models.tokenizers import load_tokenizer

__all__ = ["PackedDataModule", "load_tokenizer", "tokenize_and_pack", "train_bpe"]

_HOMES = {
    "PackedDataModule": "idlm.data.module",
    "load_tokenizer": "idlm.models.tokenizers",
    "tokenize_and_pack": "idlm.data.packing",
    "train_bpe": "idlm.data.tokenizer",
}


def __getattr__(name: str) -> Any:
    # Lazy, so that ``idlm.data.python_docs`` needs neither torch nor transformers.
    if name in _HOMES:
        import importlib

        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
