"""Prompts and infills as users write them, made into rows of tokens and places to write."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from idlm.errors import UserError
from idlm.models.modeling import DiffusionLM
from idlm.processes import Process
from idlm.sampling.checks import check_length
from idlm.sampling.text_rows import Row, encoder, find_tokenizer, is_text, read_slots, read_texts
from idlm.sampling.token_rows import (
    GAP,
    is_row,
    read_flags,
    read_gapped_ids,
    read_ids,
    read_rows,
)


@dataclass(frozen=True)
class Canvas:
    """What is given and what is to be written.

    Attributes:
        tokens: int64 ``[N, L]`` on the CPU; :func:`blank_id` where ``write`` is True, and behind
            the end of a row that is shorter than the longest.
        write: True where to write, bool ``[N, L]``.
        lengths: tokens of each row, int64 ``[N]``.
    """

    tokens: Tensor
    write: Tensor
    lengths: Tensor


def blank_id(process: Process) -> int:
    """What stands where nothing is written: the mask, or V, which is no token, without one.

    Only samplers decide what the network sees there.
    """
    return process.vocab_size if process.mask_id is None else process.mask_id


def make_canvas(
    model: DiffusionLM,
    num_samples: int,
    length: int | None,
    *,
    prompt: Any = None,
    infill: Any = None,
    tokenizer: Any = None,
    stride: int | None = None,
) -> Canvas:
    """Read prompt or infill, as :func:`idlm.generate` describes them.

    Raises:
        UserError: if they are not what the model can follow, or do not fit ``num_samples`` or
            ``length``.
    """
    if prompt is not None and infill is not None:
        raise UserError(
            "prompt and infill are both given; write the prompt into the infill, or leave one out"
        )
    whole = model.config.model_length if length is None else length
    if infill is not None:
        rows, shared = _infill_rows(model, infill, tokenizer)
        longest = max(len(tokens) for tokens, _ in rows)
        check_length(model, longest, stride, "the length of infill")
        for number, (tokens, _) in enumerate(rows):
            if length not in (None, len(tokens)):
                raise UserError(
                    f"length is {length} but infill {number} has {len(tokens)} tokens; leave "
                    "length out, an infill has its own"
                )
        name = "infill"
    elif prompt is not None:
        rows, shared = _prompt_rows(model, prompt, tokenizer, whole)
        name = "prompt"
    else:
        rows, shared = [_row(torch.zeros(0), whole)], True
        name = "request"
    shared = shared or len(rows) == 1
    if not shared and num_samples not in (1, len(rows)):
        raise UserError(
            f"{name} has {len(rows)} rows and num_samples is {num_samples}; give a row for each "
            "sample, or a single one for all of them"
        )
    return _stack(rows, num_samples if shared else len(rows), blank_id(model.process))


def stop_ids(model: DiffusionLM, stop: Any, tokenizer: Any) -> Tensor:
    """The token ids of a stop rule, int64 ``[S]``; none for ``None``.

    Raises:
        UserError: if it is neither ids of the vocabulary nor "eos" with a tokenizer that has one.
    """
    if stop is None:
        return torch.zeros(0, dtype=torch.int64)
    allowed = "give a token id, a list of ids, or 'eos'"
    if isinstance(stop, str):
        if stop != "eos":
            raise UserError(f"stop is {stop!r}; {allowed}")
        stop = getattr(find_tokenizer(model, tokenizer, "stop 'eos'"), "eos_token_id", None)
        if stop is None:
            raise UserError("stop is 'eos' but the tokenizer has no such token; give its id")
    ids = read_ids(stop, "stop").reshape(-1)
    if len(ids) == 0:
        raise UserError(f"stop is {stop!r}; {allowed}")
    _check_ids(model, ids, "stop")
    return ids


def _prompt_rows(
    model: DiffusionLM, prompt: Any, tokenizer: Any, length: int
) -> tuple[list[Row], bool]:
    if is_text(prompt):
        found, shared = read_texts(prompt, "prompt", encoder(model, tokenizer, "prompt"))
    else:
        found, shared = read_rows(prompt, "prompt")
    for number, tokens in enumerate(found):
        name = "prompt" if shared else f"prompt {number}"
        if len(tokens) == 0:
            raise UserError(f"{name} is empty; give it a token at least, or leave prompt out")
        if len(tokens) >= length:
            raise UserError(
                f"{name} has {len(tokens)} tokens and length is {length}, which counts the "
                "prompt in; shorten the prompt or ask for more"
            )
        _check_ids(model, tokens, name)
    return [_row(tokens, length) for tokens in found], shared


def _infill_rows(model: DiffusionLM, infill: Any, tokenizer: Any) -> tuple[list[Row], bool]:
    mask_id = model.process.mask_id
    if is_text(infill):
        encode = encoder(model, tokenizer, "infill")
        rows, shared = read_texts(infill, "infill", lambda text: read_slots(text, encode))
    elif isinstance(infill, tuple) and len(infill) == 2 and all(map(is_row, infill)):
        rows, shared = _pairs(*infill)
    else:
        found, shared = read_rows(infill, "infill", read_gapped_ids)
        marks = torch.tensor([GAP] if mask_id is None else [GAP, mask_id])
        rows = [(tokens, torch.isin(tokens, marks)) for tokens in found]
    for number, (tokens, write) in enumerate(rows):
        name = "infill" if shared else f"infill {number}"
        _check_ids(model, tokens[~write], name)
        if not bool(write.any()):
            raise UserError(
                f"{name} has nothing to write; mark it by [MASK] or [MASK:12] in text, by None"
                f"{'' if mask_id is None else f' or the mask id {mask_id}'} in token ids, or by "
                "True in the mask of a pair (tokens, mask)"
            )
    return rows, shared


def _pairs(tokens: Any, mask: Any) -> tuple[list[Row], bool]:
    """The rows of (tokens, mask)."""
    ids, shared = read_rows(tokens, "the tokens of infill")
    flags, _ = read_rows(mask, "the mask of infill", read_flags)
    shapes = [[len(row) for row in rows] for rows in (ids, flags)]
    if shapes[0] != shapes[1]:
        raise UserError(
            f"infill has rows of {_short(shapes[0])} tokens and masks of {_short(shapes[1])}; "
            "each token needs a True or False"
        )
    return list(zip(ids, flags, strict=True)), shared


def _short(numbers: list[int]) -> str:
    told = ", ".join(map(str, numbers[:5]))
    return told + (", ..." if len(numbers) > 5 else "")


def _row(prompt: Tensor, length: int) -> Row:
    rest = torch.zeros(length - len(prompt), dtype=torch.int64)
    return torch.cat([prompt.long(), rest]), torch.arange(length) >= len(prompt)


def _stack(rows: list[Row], num_samples: int, blank: int) -> Canvas:
    """Rows of any lengths as a canvas; a single row serves all samples without copies."""
    lengths = torch.tensor([len(tokens) for tokens, _ in rows])
    shape = len(rows), int(lengths.max())
    tokens, write = torch.full(shape, blank), torch.zeros(shape, dtype=torch.bool)
    for number, (given, here) in enumerate(rows):
        tokens[number, : len(given)] = given.masked_fill(here, blank)
        write[number, : len(given)] = here
    wide = num_samples, shape[1]
    return Canvas(tokens.expand(wide), write.expand(wide), lengths.expand(num_samples))


def _check_ids(model: DiffusionLM, ids: Tensor, name: str) -> None:
    """Every id is a token of the model's, and not the mask."""
    size, mask_id = model.process.vocab_size, model.process.mask_id
    if mask_id is not None and bool((ids == mask_id).any()):
        raise UserError(
            f"{name} holds {mask_id}, the mask id, which is no token; places to write are given "
            "as infill"
        )
    outside = ids[(ids < 0) | (ids >= size)]
    if len(outside):
        last = size - 1 if mask_id is None else size - 2
        raise UserError(
            f"{name} holds the token id {int(outside[0])}; the model's tokens are 0 to {last}"
        )
