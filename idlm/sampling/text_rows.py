"""Texts as rows of tokens and places to write."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from idlm.errors import UserError
from idlm.models.modeling import DiffusionLM

_SLOT = re.compile(r"\[MASK(?::([^\]]*))?\]")
_LONGEST_SLOT = 1_000_000

Row = tuple[Tensor, Tensor]
"""Tokens int64 ``[L]``, and True where to write, bool ``[L]``."""
Encode = Callable[[str], Tensor]


def is_text(value: Any) -> bool:
    """Whether it is a text or a list of texts."""
    return isinstance(value, str) or (
        isinstance(value, list | tuple) and any(isinstance(item, str) for item in value)
    )


def read_texts(value: Any, name: str, read: Callable[[str], Any]) -> tuple[list[Any], bool]:
    """What ``read`` makes of a text or of each of several; and whether it was a single one.

    Raises:
        UserError: if something else is among them.
    """
    texts = [value] if isinstance(value, str) else list(value)
    for text in texts:
        if not isinstance(text, str):
            raise UserError(f"{name} mixes text with {text!r:.80}; give all as text or all as ids")
    return [read(text) for text in texts], isinstance(value, str)


def encoder(model: DiffusionLM, tokenizer: Any, name: str) -> Encode:
    """Text to ids, int64 ``[L]``, without special tokens: an eos behind a prompt would end it.

    Raises:
        UserError: if there is no tokenizer; from the function returned, if a text is none.
    """
    found = find_tokenizer(model, tokenizer, f"{name} is text, which")

    def encode(text: str) -> Tensor:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            # half of a UTF-16 pair, or a byte of the command line that is not UTF-8
            raise UserError(
                f"{name} holds {text[error.start]!r}, which is no character; give it as UTF-8"
            ) from error
        return torch.tensor(found.encode(text, add_special_tokens=False)).long()

    return encode


def find_tokenizer(model: DiffusionLM, tokenizer: Any, name: str) -> Any:
    """The caller's tokenizer, or the checkpoint's own.

    Raises:
        UserError: if there is neither.
    """
    if tokenizer is not None:
        return tokenizer
    if not model.name_or_path:
        raise UserError(
            f"{name} needs a tokenizer, and this model was not loaded from a checkpoint; "
            "pass token ids, or a tokenizer"
        )
    from idlm.models.loading import load_tokenizer

    try:
        return load_tokenizer(model.name_or_path, revision=model.revision)
    except UserError as error:
        raise UserError(
            f"{name} needs a tokenizer ({error}); pass token ids, or a tokenizer"
        ) from error


def read_slots(text: str, encode: Encode) -> Row:
    """A text in which ``[MASK]`` is one token to write and ``[MASK:12]`` twelve.

    Raises:
        UserError: for another number in a slot.
    """
    parts, writes, start = [], [], 0
    for slot in _SLOT.finditer(text):
        size = "1" if slot[1] is None else slot[1]
        if not (size.isdecimal() and len(size) < 20 and 1 <= int(size) <= _LONGEST_SLOT):
            raise UserError(
                f"infill has the slot {slot[0][:60]!r}; write [MASK] for one token, [MASK:12] for "
                f"twelve, up to {_LONGEST_SLOT}"
            )
        given = encode(text[start : slot.start()])
        parts += [given, torch.zeros(int(size), dtype=torch.int64)]
        writes += [torch.zeros(len(given)), torch.ones(int(size))]
        start = slot.end()
    rest = encode(text[start:])
    return torch.cat([*parts, rest]), torch.cat([*writes, torch.zeros(len(rest))]).bool()
