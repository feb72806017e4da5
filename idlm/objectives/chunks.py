"""Losses over positions times a vocabulary without ever holding that table.

Two ways to the same end. :func:`sum_of_rows` is for a sum that needs nothing afterwards but its
gradient: every chunk's gradient is taken at once, and nothing is computed twice.
:func:`over_positions` is for values of which more is made: a chunk is computed again in the
backward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

# Numbers in one table of a chunk: 32 MiB in fp32, 166 positions of GPT-2's vocabulary.
NUMBERS = 2**23


def sum_of_rows(
    fn: Callable[..., tuple[Tensor, ...]],
    *tensors: Tensor,
    trained: nn.Module | Iterable[Tensor],
    vocab_size: int,
) -> tuple[Tensor, ...]:
    """Sums of ``fn(*tensors)`` over its rows, in value and gradient, a chunk of rows at a time.

    The gradient of a sum is known as soon as its value is, up to a factor. So a chunk's tables of
    V columns are made once, give value and gradient, and go; what is kept for the backward pass
    is the gradient itself, of the size of the tensors and weights it belongs to.

    Args:
        fn: takes rows ``[r, ...]`` of the tensors, returns tensors ``[r]``: losses, then whatever
            is to be logged, which gets no gradient. It must not draw random numbers.
        tensors: ``[R, ...]`` each; gradient flows through those that require it.
        trained: a network whose weights ``fn`` uses, or weights; gradient reaches them, too.
        vocab_size: V; a chunk has at most :data:`NUMBERS` / V rows, or one.

    Returns:
        The sum of each of ``fn``'s tensors over all R rows, scalars. Only the first has a gradient,
        which can be taken once, not be differentiated again, and not by ``torch.func``.
    """
    step = max(1, NUMBERS // vocab_size)
    weights = list(trained.parameters() if isinstance(trained, nn.Module) else trained)
    weights = [weight for weight in weights if weight.requires_grad]
    if torch.is_grad_enabled() and (weights or any(x.requires_grad for x in tensors)):
        sums: tuple[Tensor, ...] = _SumOfRows.apply(fn, step, len(tensors), *tensors, *weights)
        return sums
    parts = [tuple(out.sum() for out in fn(*rows)) for rows in _rows(tensors, step)]
    return tuple(torch.stack(column).sum() for column in zip(*parts, strict=True))


def _rows(tensors: Iterable[Tensor], step: int) -> Iterable[tuple[Tensor, ...]]:
    """Slices of so many rows; without any rows, one slice of none."""
    return zip(*(tensor.split(step) for tensor in tensors), strict=True)


class _SumOfRows(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, fn: Callable[..., tuple[Tensor, ...]], step: int, count: int, *inputs: Tensor
    ) -> tuple[Tensor, ...]:
        tensors, weights = inputs[:count], inputs[count:]
        # of a network only the weights that turn out to be used get a table
        gradients = [torch.zeros_like(x) if x.requires_grad else None for x in tensors]
        gradients += [None] * len(weights)
        sums: list[Tensor] = []
        start = 0
        for rows in _rows(tensors, step):
            end = start + rows[0].shape[0]
            with torch.enable_grad():
                leaves = [
                    row.detach().requires_grad_(whole.requires_grad)
                    for row, whole in zip(rows, tensors, strict=True)
                ]
                loss, *logs = fn(*leaves)
                total = loss.sum()
            wanted = [n for n, x in enumerate((*leaves, *weights)) if x.requires_grad]
            found = torch.autograd.grad(
                total, [(*leaves, *weights)[n] for n in wanted], allow_unused=True
            )
            for n, part in zip(wanted, found, strict=True):
                if part is None:
                    continue
                kept = gradients[n]
                if kept is None:
                    gradients[n] = part.clone()
                else:
                    (kept[start:end] if n < count else kept).add_(part)
            values = [total.detach(), *(log.detach().sum() for log in logs)]
            sums = [a + b for a, b in zip(sums, values, strict=True)] if sums else values
            start = end
            # before the next chunk's tables are made
            del leaves, loss, logs, total, found, part, rows
        # not save_for_backward: what is handed out once can be scaled in place
        ctx.gradients = gradients
        ctx.mark_non_differentiable(*sums[1:])
        return tuple(sums)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor, *_: Any) -> tuple[Any, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError("the gradient of a sum of rows cannot be differentiated again")
        if ctx.gradients is None:
            raise RuntimeError("the gradient of a sum of rows was taken before; it is kept once")
        gradients, ctx.gradients = ctx.gradients, None
        return (None, None, None, *(None if g is None else g.mul_(upstream) for g in gradients))


def over_positions(
    fn: Callable[..., tuple[Tensor, ...]],
    *tensors: Tensor,
    vocab_size: int,
    numbered: bool = False,
) -> tuple[Tensor, ...]:
    """``fn(*tensors)`` for a function that treats each position alike, a chunk of them at a time.

    What a chunk computes on the way is dropped and computed again in the backward pass, so no
    more than one chunk's tables of V columns are ever alive.

    Args:
        fn: takes slices ``[B, l, ...]`` of the tensors, returns tensors ``[B, l, ...]``. It must
            not draw random numbers, but those that have names: they are the same again.
        tensors: ``[B, L, ...]`` each; gradient flows through them and through parameters in ``fn``.
        vocab_size: V; a chunk has at most :data:`NUMBERS` / V sequences times positions, or one
            position of all sequences.
        numbered: whether ``fn`` takes the number of its first position ahead of the slices.

    Returns:
        What ``fn`` would return, ``[B, L, ...]`` each.
    """
    batch, length = tensors[0].shape[:2]
    step = max(1, NUMBERS // (vocab_size * max(1, batch)))
    parts = []
    for start in range(0, length, step):
        slices: list[Any] = [tensor[:, start : start + step] for tensor in tensors]
        if numbered:
            slices.insert(0, start)
        if torch.is_grad_enabled():
            parts.append(checkpoint(fn, *slices, use_reentrant=False, preserve_rng_state=False))
        else:
            parts.append(fn(*slices))
    return tuple(torch.cat(columns, 1) for columns in zip(*parts, strict=True))


def in_chunks(
    fn: Callable[..., tuple[Tensor, ...]], *tables: Tensor, numbers: int
) -> tuple[Tensor, ...]:
    """``fn`` of tables ``[M, ...]``, some rows at a time; ``numbers``: how many a row makes."""
    if not tables[0].shape[0]:
        return fn(*tables)

    def rows(*tables: Tensor) -> tuple[Tensor, ...]:
        return tuple(out.unsqueeze(0) for out in fn(*(x.squeeze(0) for x in tables)))

    found = over_positions(rows, *(x.unsqueeze(0) for x in tables), vocab_size=numbers)
    return tuple(out.squeeze(0) for out in found)
