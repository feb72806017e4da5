"""A loader of training batches whose processes may die."""

from __future__ import annotations

import copy
import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils.data import DataLoader

from idlm.data.loaders import Batch, TrainingBatches
from idlm.errors import UserError

log = logging.getLogger(__name__)

_DEATHS = 3
_PATIENCE = 1.0  # seconds until a process that has just died is known to have


class LastingLoader(DataLoader[Batch]):
    """The batches of :class:`~idlm.data.loaders.TrainingBatches`; no death of a worker loses one.

    Processes that died are replaced, and begin with the batch that training has not had yet.
    PyTorch itself raises an error wherever the main process happens to be when a worker dies, in
    the middle of an update, say. Here a death shows when the next batch is asked for.

    Args:
        batches: of one process of the run.
        workers: processes, 0 for none.
        pin_memory: as PyTorch's.
    """

    def __init__(
        self, batches: TrainingBatches, *, workers: int = 0, pin_memory: bool = False
    ) -> None:
        super().__init__(batches, batch_size=None, num_workers=workers, pin_memory=pin_memory)

    def __iter__(self) -> Any:
        """All batches from the first one on.

        Raises:
            UserError: if the processes die again and again without making a batch.
        """
        return self._lasting() if self.num_workers else super().__iter__()

    def _lasting(self) -> Iterator[Batch]:
        taken = deaths = 0
        while True:
            inner = self._begin(taken)
            try:
                for batch in inner:
                    deaths, taken = 0, taken + 1
                    yield batch
                return
            except (RuntimeError, OSError, EOFError) as error:
                if not _someone_died(inner):
                    raise
                deaths += 1
                if deaths >= _DEATHS:
                    raise UserError(
                        f"the processes that load data died {deaths} times in a row, perhaps for "
                        "want of memory; continue from the last checkpoint with --ckpt_path and "
                        f"less than --data.init_args.num_workers {self.num_workers}, or 0"
                    ) from error
                log.warning("a process that loads data died; it is replaced, and nothing is lost")

    def _begin(self, taken: int) -> Any:
        """New processes that go on after so many batches."""
        rest = copy.copy(self.dataset)
        assert isinstance(rest, TrainingBatches)
        rest.start += taken
        loader: DataLoader[Batch] = DataLoader(
            rest,
            batch_size=None,
            num_workers=self.num_workers,
            pin_memory=self.pin_memory,
            generator=torch.Generator(),  # the run's own random numbers stay what they are
        )
        with _no_errors_from_signals():
            return iter(loader)


@contextmanager
def _no_errors_from_signals() -> Iterator[None]:
    """Keep the handler for the end of a child process that was there before."""
    if threading.current_thread() is not threading.main_thread():
        yield  # then PyTorch sets none either
        return
    before = signal.getsignal(signal.SIGCHLD)
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, before)


def _someone_died(inner: Any) -> bool:
    workers = getattr(inner, "_workers", [])
    for worker in workers:
        # a broken connection may be noticed before the end of the process behind it
        worker.join(_PATIENCE / len(workers))
    return any(not worker.is_alive() for worker in workers)
