"""Rows of token ids and masks from whatever container a user has them in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from idlm.errors import UserError

# A place to write among token ids, which a user writes as None; no vocabulary has this number.
GAP = torch.iinfo(torch.int64).min


def read_ids(value: Any, name: str) -> Tensor:
    """Whole numbers as int64 on the CPU, in the shape they have.

    Raises:
        UserError: if they are no whole numbers.
    """
    numbers = _tensor(value, name, "token ids are whole numbers")
    if numbers.numel() and (
        numbers.dtype == torch.bool or numbers.is_floating_point() or numbers.is_complex()
    ):
        raise UserError(
            f"{name} holds {_kind(numbers)} such as {numbers.flatten()[0].item()}; "
            "token ids are whole numbers"
        )
    if numbers.dtype == torch.uint64 and bool((numbers.view(torch.int64) < 0).any()):
        raise UserError(f"{name} holds a number of 2^63 or more; token ids are far below")
    return numbers.long()


def read_gapped_ids(value: Any, name: str) -> Tensor:
    """Like :func:`read_ids`, but a list may hold None, which reads as :data:`GAP`.

    Raises:
        UserError: if the rest are no whole numbers.
    """
    if isinstance(value, list | tuple):
        value = [GAP if item is None else item for item in value]
    return read_ids(value, name)


def read_flags(value: Any, name: str) -> Tensor:
    """True and False as bool on the CPU, in the shape they have.

    Raises:
        UserError: if they are anything else, numbers included.
    """
    flags = _tensor(value, name, "it is True where to write and False elsewhere")
    if flags.dtype != torch.bool:
        raise UserError(
            f"{name} holds {_kind(flags)}; it is True where to write and False elsewhere"
        )
    return flags


def read_rows(
    value: Any, name: str, read: Callable[[Any, str], Tensor] = read_ids
) -> tuple[list[Tensor], bool]:
    """Rows ``[L]`` of a row, a table ``[N, L]`` or a list of rows of any lengths.

    Args:
        value: tensor, array or list.
        name: how messages call it.
        read: what each piece is.

    Returns:
        The rows, and whether it was a single one, for all samples.

    Raises:
        UserError: for another shape.
    """
    if isinstance(value, list | tuple) and any(is_row(item) for item in value):
        rows = [read(item, f"{name} {number}") for number, item in enumerate(value)]
        if all(row.dim() == 1 for row in rows):
            return rows, False
        deepest = max(row.dim() for row in rows) + 1
        raise UserError(f"{name} has {deepest} axes or mixes rows with numbers; give {_SHAPES}")
    piece = read(value, name)
    if piece.dim() == 1:
        return [piece], True
    if piece.dim() == 2 and len(piece):
        return list(piece), False
    raise UserError(f"{name} has shape {tuple(piece.shape)}; give {_SHAPES}")


_SHAPES = "one row [L], a table [N, L], or a list of rows"


def is_row(value: Any) -> bool:
    """Whether it holds several numbers rather than being one."""
    return isinstance(value, list | tuple | np.ndarray) or (
        torch.is_tensor(value) and value.dim() > 0
    )


def _tensor(value: Any, name: str, wanted: str) -> Tensor:
    if torch.is_tensor(value):
        return value.detach().cpu()
    try:
        return torch.as_tensor(np.array(value))
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{name} is {value!r:.80}; {wanted}") from error


def _kind(numbers: Tensor) -> str:
    return str(numbers.dtype).removeprefix("torch.")
