"""Metrics over the processes of a launch: each takes its share, and all have the whole result.

torchmetrics adds up what the processes have seen whenever a result is asked for, which holds for
processes that each saw a part. Here a metric may also be asked by one process alone, or hold the
same in all, so it is told to keep to itself (:func:`kept_apart`), and what was shared is put
together once, in the order in which one process would have seen it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torchmetrics import Metric

from idlm.errors import UserError

if TYPE_CHECKING:
    from idlm.sampling.sharded import Processes

M = TypeVar("M", bound=Metric)
State = Mapping[str, Any]


def kept_apart(metric: M) -> M:
    """The metric, which from now on asks no other process for its states."""
    metric.distributed_available_fn = _alone
    return metric


def _alone() -> bool:
    return False


def update_shared(
    metric: Metric,
    count: int,
    batch: Callable[[int], tuple[Any, ...]],
    *,
    processes: Processes | None = None,
    advance: Callable[[int], None] | None = None,
    subject: str | None = None,
) -> None:
    """Update a metric with batches, of which each process takes some; all get the states of all.

    The states are added batch by batch in order, so the result is the very number of one process.

    Args:
        metric: reset here; its states are sums or lists.
        count: of batches.
        batch: the arguments of ``update`` for a batch, by its number.
        processes: of the launch, each with the same metric and batches; None for this one alone.
        advance: told how many rows were just used; those of other processes at the end.
        subject: for the sentence that a ``ValueError`` of ``update`` becomes; None to let it pass.

    Raises:
        UserError: of ``update``, if it is one, or with ``subject``.
    """

    def update(number: int) -> None:
        arguments = batch(number)
        try:
            metric.update(*arguments)
        except ValueError as error:
            if subject is None or isinstance(error, UserError):
                raise
            raise UserError(f"{subject}: {error}") from error
        if advance is not None:
            advance(max(map(len, arguments)))

    metric.reset()
    if processes is None or processes.count == 1:
        for number in range(count):
            update(number)
        return
    from idlm.sampling.sharded import share

    mine = share(count, processes.index, processes.count)

    def states() -> list[State]:
        found: list[State] = []
        for number in mine:
            metric.reset()
            update(number)
            found.append({name: _as_array(value) for name, value in metric.metric_state.items()})
        return found

    parts = processes.gather(processes.together(states))
    metric.reset()
    _add(metric, (state for part in parts for state in part))
    # torchmetrics warns of results without an update; a process may have had no batch
    metric._update_count = count
    if advance is not None:
        for number in set(range(count)) - set(mine):
            advance(max(map(len, batch(number))))


def _as_array(value: Any) -> Any:
    """A state as numpy's arrays, which are small where they are pickled."""
    if isinstance(value, list):
        return [item.cpu().numpy() for item in value]
    return value.cpu().numpy().copy()


def _add(metric: Metric, states: Iterable[State]) -> None:
    for state in states:
        for name, value in state.items():
            own = getattr(metric, name)
            if isinstance(own, list):
                own.extend(torch.from_numpy(item).to(metric.device) for item in value)
            else:
                setattr(metric, name, own + torch.as_tensor(value).to(own.device))
