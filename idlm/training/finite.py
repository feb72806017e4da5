"""Which term of an update is not finite, and from which samples it came."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

_DATA, _LOSS, _GRADIENT = range(3)
_SHOWN = 3
_LONGEST = 512  # bytes of a reason that processes exchange


class Part(NamedTuple):
    """One micro batch of an update.

    Attributes:
        samples: running numbers of its sequences, int64 ``[B]``.
        terms: its loss under ``loss``, in nats per token, and what the objective logged; scalars.
    """

    samples: Tensor
    terms: Mapping[str, Tensor]


def describe(
    batch: Mapping[str, Tensor],
    parts: Sequence[Part],
    gradients: Iterable[tuple[str, Tensor]],
    gather: Callable[[Tensor], Tensor],
) -> str:
    """The first term of an update that is not finite, and the samples it came from.

    Data come before losses and losses before gradients, since each makes the next one not finite.
    Every process of a run must call this, and all give the same clause.

    Args:
        batch: of this process; ``index`` ``[B]`` numbers its samples.
        parts: its micro batches, in order.
        gradients: name and gradient of every parameter, before clipping.
        gather: stacks a tensor of every process, ``[...]`` to ``[P, ...]``; the identity for one.

    Returns:
        A clause such as ``the loss is not finite (student_entropy nan), samples 48 to 51``.
    """
    samples = batch["index"].long()
    stage, what, bad = _first(batch, parts, list(gradients))
    device = samples.device
    own = torch.stack([samples, bad.to(device).long(), torch.full_like(samples, stage)])
    words = torch.tensor(list(what.encode()[:_LONGEST].ljust(_LONGEST)), device=device)
    table = gather(torch.cat([own.flatten(), words])).reshape(-1, own.numel() + _LONGEST)
    every = table[:, : own.numel()].reshape(-1, *own.shape)
    first = every[:, 2].min()
    chosen = every[:, 0][(every[:, 1] == 1) & (every[:, 2] == first)]
    # not every process has a reason of its own: elsewhere only what follows from it is not finite
    reason = table[int((every[:, 2, 0] == first).nonzero()[0]), own.numel() :]
    clause = bytes(reason.tolist()).decode(errors="ignore").rstrip()
    return f"{clause}, {_ranges(sorted(chosen.tolist()))}"


def from_every_process(value: Tensor) -> Tensor:
    """``[...]`` of every process as ``[P, ...]``.

    Lightning's ``all_gather`` goes through a function that PyTorch has deprecated.
    """
    found = [torch.empty_like(value) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(found, value.contiguous())
    return torch.stack(found)


def _first(
    batch: Mapping[str, Tensor], parts: Sequence[Part], gradients: list[tuple[str, Tensor]]
) -> tuple[int, str, Tensor]:
    """Kind of the first term, words for it, and which rows of this process's batch it came from."""
    rows = torch.zeros_like(batch["index"], dtype=torch.bool)
    for name, value in batch.items():
        if value.is_floating_point() and not bool(value.isfinite().all()):
            return _DATA, f"the data ({name}) are not finite", ~value.isfinite().flatten(1).all(1)
    wrong = [part for part in parts if not bool(part.terms["loss"].isfinite())]
    if wrong:
        samples = torch.cat([part.samples for part in wrong])
        terms = wrong[0].terms.items()
        others = [f"{k} {float(v):g}" for k, v in terms if k != "loss" and not bool(v.isfinite())]
        with_ = f" ({', '.join(others)})" if others else ""
        return _LOSS, f"the loss is not finite{with_}", torch.isin(batch["index"], samples)
    names = [name for name, gradient in gradients if not bool(_own(gradient).isfinite().all())]
    if not names:
        return _GRADIENT, "the norm of all gradients is not finite, though each of them is", ~rows
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    where = f"{', '.join(names[:_SHOWN])}{more}"
    return _GRADIENT, f"the gradient of {where} is not finite", ~rows


def _own(gradient: Tensor) -> Tensor:
    """This process's part: not every process comes this far, so none may wait for another."""
    return gradient.to_local() if isinstance(gradient, DTensor) else gradient


def _ranges(numbers: list[int]) -> str:
    """``samples 4 to 7, 12`` of sorted numbers."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1] = [runs[-1][0], number]
        else:
            runs.append([number])
    words = [" to ".join(map(str, run)) for run in runs[:16]]
    more = ["..."] if len(runs) > 16 else []
    return f"{'sample' if len(numbers) == 1 else 'samples'} {', '.join(words + more)}"
