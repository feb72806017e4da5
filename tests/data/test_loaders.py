from __future__ import annotations

import itertools
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from idlm.data.loaders import (
    BatchPlan,
    EvaluationRows,
    ShardedInOrder,
    TrainingBatches,
    epoch_order,
)

ROWS = np.arange(10 * 3, dtype=np.uint16).reshape(10, 3)
ORDER = [3, 6, 2, 4, 5, 7, 0, 9, 8, 1]


def _batches(count: int, *, workers: int = 0, start: int = 0, rank: int = 0, world: int = 1):
    plan = BatchPlan(len(ROWS), global_batch_size=4, seed=5)
    batches = TrainingBatches(ROWS, plan, start=start, rank=rank, world=world)
    loader = DataLoader(batches, batch_size=None, num_workers=workers)
    return list(itertools.islice(loader, count))


def test_a_batch_holds_int64_tokens_and_running_sample_numbers() -> None:
    first, second = _batches(2)
    assert first["input_ids"].shape == (4, 3)
    assert first["input_ids"].dtype == torch.int64
    assert first["index"].tolist() == [0, 1, 2, 3]
    assert second["index"].tolist() == [4, 5, 6, 7]


def test_every_row_comes_once_an_epoch_even_when_the_batch_size_does_not_divide_it() -> None:
    seen = torch.cat([batch["input_ids"][:, 0] for batch in _batches(5)]).tolist()
    assert sorted(seen[:10]) == sorted(seen[10:]) == ROWS[:, 0].tolist()
    assert seen[:10] != seen[10:]


def test_a_batch_depends_on_seed_and_number_alone() -> None:
    straight = _batches(7)
    continued = _batches(3, start=4)
    for left, right in zip(straight[4:], continued, strict=True):
        assert torch.equal(left["input_ids"], right["input_ids"])
        assert torch.equal(left["index"], right["index"])


def test_the_order_of_an_epoch_is_fixed_for_good() -> None:
    # A stored value: a run resumed with a later numpy must see the same batches.
    assert epoch_order(5, 0, 10).tolist() == ORDER
    assert epoch_order(5, 1, 10).tolist() != ORDER
    assert epoch_order(6, 0, 10).tolist() != ORDER


@pytest.mark.parametrize("world", [2, 4])
def test_the_ranks_together_see_the_batch_that_one_process_sees(world: int) -> None:
    alone = _batches(4)
    shares = [_batches(4, rank=rank, world=world) for rank in range(world)]
    for number, whole in enumerate(alone):
        for key in ("input_ids", "index"):
            joined = torch.cat([share[number][key] for share in shares])
            assert torch.equal(joined, whole[key])


def test_loader_workers_do_not_change_the_order() -> None:
    for left, right in zip(_batches(7), _batches(7, workers=2), strict=True):
        assert torch.equal(left["input_ids"], right["input_ids"])
        assert torch.equal(left["index"], right["index"])


def test_a_pickle_for_a_worker_holds_no_copy_of_mapped_rows(tmp_path: Path) -> None:
    np.save(tmp_path / "rows.npy", np.zeros((1000, 64), np.uint16))
    rows = np.load(tmp_path / "rows.npy", mmap_mode="r")
    plan = BatchPlan(len(rows), global_batch_size=4, seed=0)
    pickled = pickle.dumps(TrainingBatches(rows, plan, start=0, rank=0, world=1))
    assert len(pickled) < 2000
    assert isinstance(pickle.loads(pickled).rows, np.memmap)


def test_a_batch_larger_than_the_corpus_repeats_epochs() -> None:
    plan = BatchPlan(3, global_batch_size=8, seed=0)
    chosen, samples = plan(0)
    assert sorted(chosen[:3]) == sorted(chosen[3:6]) == [0, 1, 2]
    assert samples == range(8)


@pytest.mark.parametrize("world", [1, 2, 3])
def test_evaluation_visits_each_row_on_one_rank_in_order(world: int) -> None:
    seen: list[int] = []
    for rank in range(world):
        sampler = ShardedInOrder(len(ROWS), rank=rank, world=world)
        loader = DataLoader(EvaluationRows(ROWS), batch_size=4, sampler=sampler)
        mine = torch.cat([batch["index"] for batch in loader]).tolist()
        assert mine == sorted(mine)
        assert len(mine) == len(sampler)
        seen += mine
    assert sorted(seen) == list(range(len(ROWS)))
