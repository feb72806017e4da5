"""Training a byte-level BPE tokenizer for a small corpus."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from idlm.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

END_OF_TEXT = "<|endoftext|>"
_BYTE_ALPHABET = 256


def train_bpe(texts: Iterable[str], vocab_size: int, out_dir: str | Path) -> Path:
    """Train a byte-level BPE and save it as a Hugging Face tokenizer folder.

    ``<|endoftext|>`` has id 0 and serves as eos, bos and pad. There is no unknown token, because
    every byte has one, and no mask token: as with MDLM's GPT-2 the mask id is ``len(tokenizer)``.
    The same texts give the same tokenizer. An existing ``out_dir`` is replaced.

    Args:
        texts: the documents, read once.
        vocab_size: entries in all, ``<|endoftext|>`` and the 256 bytes included.
        out_dir: the folder to write; it appears only when complete.

    Returns:
        ``out_dir`` as a path.

    Raises:
        UserError: if ``vocab_size`` leaves no room beside the bytes, or the texts hold too few
            distinct pairs to reach it.
    """
    if vocab_size <= _BYTE_ALPHABET + 1:
        raise UserError(
            f"vocab_size={vocab_size} leaves no room for merges: a byte-level BPE needs more than "
            f"{_BYTE_ALPHABET + 1} entries (256 bytes and {END_OF_TEXT}); try 4096"
        )
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    core.train_from_iterator(texts, trainer)
    if core.get_vocab_size() < vocab_size:
        raise UserError(
            f"vocab_size={vocab_size} is more than the texts support: they hold pairs for "
            f"{core.get_vocab_size()} entries only; lower it or give more text"
        )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token=END_OF_TEXT,
        bos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        clean_up_tokenization_spaces=False,
    )
    return _save_folder(tokenizer, Path(out_dir))


def tokenizer_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """The sha256 of everything that decides a fast tokenizer's output, as in tokenizer.json."""
    return hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode("utf-8")).hexdigest()


def _save_folder(tokenizer: PreTrainedTokenizerBase, out_dir: Path) -> Path:
    """Write beside ``out_dir`` and rename, so that nobody finds half a tokenizer."""
    out_dir.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{out_dir.name}-", dir=out_dir.parent))
    try:
        tokenizer.save_pretrained(str(temporary))
        temporary.chmod(0o755)  # mkdtemp makes it private
        if out_dir.is_dir() and any(out_dir.iterdir()):
            # A folder cannot be replaced in one step; move each file over the old one instead.
            for file in sorted(temporary.iterdir()):
                os.replace(file, out_dir / file.name)
        else:
            os.replace(temporary, out_dir)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return out_dir
