"""Which rows make up a batch: pure functions of (seed, batch number), and the datasets on top."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, DistributedSampler, IterableDataset, get_worker_info

Batch = dict[str, Tensor]


def epoch_order(seed: int, epoch: int, rows: int) -> np.ndarray:
    """The permutation ``[rows]`` of one pass over the data, keyed by (seed, epoch).

    Sorted raw Philox words: numpy promises the words of a bit generator for good, but not what
    ``Generator.permutation`` makes of them.
    """
    words = np.random.Philox(np.random.SeedSequence((seed, epoch))).random_raw(rows)
    return np.argsort(words, kind="stable")


class BatchPlan:
    """Sample ``n`` of a run is row ``order(epoch)[n mod rows]`` with ``epoch = n div rows``.

    Batches run over the end of an epoch, so none is short and every row is seen exactly once
    per epoch whatever the batch size.

    Args:
        rows: rows in the training split.
        global_batch_size: samples in one batch, over all processes.
        seed: decides the order, nothing else does.
    """

    def __init__(self, rows: int, *, global_batch_size: int, seed: int) -> None:
        self.rows = rows
        self.global_batch_size = global_batch_size
        self.seed = seed
        self._orders: dict[int, np.ndarray] = {}

    def __call__(self, batch: int, *, rank: int = 0, world: int = 1) -> tuple[np.ndarray, range]:
        """Row numbers ``[B / world]`` and running sample numbers of one process's share.

        The shares of all ranks, one after the other, are the global batch, whatever ``world``.
        """
        share = self.global_batch_size // world
        start = batch * self.global_batch_size + rank * share
        samples = range(start, start + share)
        return np.array([self._row(n) for n in samples], dtype=np.int64), samples

    def _row(self, sample: int) -> int:
        epoch, position = divmod(sample, self.rows)
        if epoch not in self._orders:
            # A batch may straddle two epochs (more when the split is tiny): keep the last few.
            self._orders = {e: o for e, o in self._orders.items() if e >= epoch - 1}
            self._orders[epoch] = epoch_order(self.seed, epoch, self.rows)
        return int(self._orders[epoch][position])


class TrainingBatches(IterableDataset[Batch]):
    """The endless batches of one process, from batch number ``start`` on.

    With several loader workers, worker ``w`` of ``n`` makes every ``n``-th batch; the loader asks
    the workers in turn, so the order is that of a single process.
    """

    def __init__(
        self, rows: np.ndarray, plan: BatchPlan, *, start: int, rank: int, world: int
    ) -> None:
        self.rows = rows
        self.plan = plan
        self.start = start
        self.rank = rank
        self.world = world

    def __getstate__(self) -> dict[str, Any]:
        # A loader worker that is not forked gets a pickle, which would hold a copy of the rows.
        state = dict(self.__dict__)
        if isinstance(self.rows, np.memmap) and self.rows.filename is not None:
            state["rows"] = Path(self.rows.filename)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        if isinstance(state["rows"], Path):
            state["rows"] = np.load(state["rows"], mmap_mode="r")
        self.__dict__.update(state)

    def __iter__(self) -> Iterator[Batch]:
        worker = get_worker_info()
        first, stride = (worker.id, worker.num_workers) if worker else (0, 1)
        batch = self.start + first
        while True:
            chosen, samples = self.plan(batch, rank=self.rank, world=self.world)
            yield as_batch(self.rows[chosen], samples)
            batch += stride


class EvaluationRows(Dataset[Batch]):
    """Rows of a finite split with their row numbers as ``index``."""

    def __init__(self, rows: np.ndarray) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: int) -> Batch:
        tokens = torch.from_numpy(np.asarray(self.rows[row], dtype=np.int64))
        return {"input_ids": tokens, "index": torch.tensor(row)}


class ShardedInOrder(DistributedSampler[int]):
    """Rows ``rank, rank + world, ...``: each row on exactly one process, none repeated.

    It is a ``DistributedSampler`` only so that Lightning leaves it in place; the parent class
    would repeat rows to make the shares equal, and the mean would count them twice.
    """

    def __init__(self, rows: int, *, rank: int, world: int) -> None:
        super().__init__(range(rows), num_replicas=world, rank=rank, shuffle=False)  # type: ignore[arg-type]
        self._mine = range(rank, rows, world)

    def __iter__(self) -> Iterator[int]:
        return iter(self._mine)

    def __len__(self) -> int:
        return len(self._mine)


def as_batch(rows: np.ndarray, samples: range) -> Batch:
    """``{"input_ids": int64 [B, L], "index": int64 [B]}`` of rows ``[B, L]``."""
    return {
        "input_ids": torch.from_numpy(rows.astype(np.int64)),
        "index": torch.arange(samples.start, samples.stop),
    }
