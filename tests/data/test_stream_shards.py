"""A stream over processes and workers: every document once, in an order that the seed decides."""

from __future__ import annotations

import logging
import multiprocessing
import os
import re
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase

from idlm.cli import fit
from idlm.data import PackedDataModule, parts, tokenizing
from idlm.data.corpora import LocalText
from idlm.data.loaders import BatchPlan, TrainingBatches
from idlm.data.shuffling import shuffled
from idlm.data.streaming import Position, RowStream
from idlm.errors import UserError

Make = Callable[..., PackedDataModule]
NUMBERS = list(range(50))


def numbers(state: Any) -> Iterator[tuple[Any, str]]:
    """Fifty documents that are their own states."""
    return ((n, str(n)) for n in NUMBERS[state or 0 :])


def shares(
    data: Make, monkeypatch: pytest.MonkeyPatch, *, batches: int, world: int, workers: int
) -> torch.Tensor:
    """The samples of all processes in the order of the run, ``[n, L]``."""
    rows = []
    for rank in range(world):
        monkeypatch.setattr(PackedDataModule, "_place", lambda self, rank=rank: (rank, world))
        module = data(streaming=True, num_workers=workers, shuffle_window=16)
        rows.append(list(islice(module.train_dataloader(), batches)))
    monkeypatch.undo()
    return torch.cat([share["input_ids"] for parts_ in zip(*rows, strict=True) for share in parts_])


def test_every_topology_sees_each_document_once_an_epoch(
    data: Make, tokenizer: PreTrainedTokenizerBase, jsonl: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("idlm.data.streaming._DOCUMENTS_AT_A_TIME", 5)
    documents = list(LocalText(jsonl).documents("train"))
    tokens = sum(len(tokenizer(text)["input_ids"]) + 1 for text in documents)
    batches = 2 * tokens // (16 * 4)
    alone = shares(data, monkeypatch, batches=batches, world=1, workers=0)
    ids = [int(n) for n in re.findall(r"document (\d+):", tokenizer.decode(alone.flatten()))]
    expected = range(len(documents))
    assert sorted(ids[: len(documents)]) == list(expected)
    assert ids[: len(documents)] != list(expected)
    second = Counter(ids[len(documents) :])
    assert set(second.values()) == {1}
    assert len(second) > len(documents) - 8  # the last batch is cut off
    assert list(second) != ids[: len(second)]
    for world, workers in ((2, 0), (1, 2), (2, 2)):
        found = shares(data, monkeypatch, batches=batches, world=world, workers=workers)
        assert torch.equal(found, alone), (world, workers)


@pytest.mark.parametrize("window", [0, 7, 16, 100])
def test_a_shuffled_stream_continues_at_the_exact_document(window: int) -> None:
    settings = {"window": window, "seed": 3, "epoch": 1}
    straight = list(shuffled(numbers, **settings))
    assert sorted(int(text) for _, text in straight) == NUMBERS
    assert ([int(text) for _, text in straight] == NUMBERS) == (window == 0)
    for number, (state, _) in enumerate(straight):
        assert list(shuffled(numbers, state, **settings)) == straight[number:]


def test_seed_and_epoch_decide_the_order_of_a_stream() -> None:
    orders = [
        tuple(text for _, text in shuffled(numbers, window=16, seed=seed, epoch=epoch))
        for seed, epoch in ((0, 0), (0, 1), (1, 0), (0, 0))
    ]
    assert orders[0] == orders[3]
    assert len(set(orders)) == 3


def test_a_document_in_parts_stays_together_in_a_shuffled_stream(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "CHARACTERS", 30)
    for n in range(9):
        (tmp_path / f"{n}.txt").write_text(f"document {n} " * (20 if n == 4 else 1))
    corpus = LocalText(tmp_path, validation=tmp_path)
    settings = {"window": 3, "seed": 0, "epoch": 0}

    def source(state: Any) -> Iterator[tuple[Any, str]]:
        return corpus.stream("train", seed=0, epoch=0, state=state)

    straight = list(shuffled(source, **settings))
    assert "document 4 " * 20 in "".join(text for _, text in straight)
    assert len(straight) > 12
    for number, (state, _) in enumerate(straight):
        assert list(shuffled(source, state, **settings)) == straight[number:]


@pytest.fixture
def stream(jsonl: Path, tokenizer: PreTrainedTokenizerBase) -> Callable[[int], RowStream]:
    def make(workers: int) -> RowStream:
        settings: dict[str, Any] = {"length": 16, "special_ends": False, "seed": 0}
        return RowStream(LocalText(jsonl), "train", tokenizer, workers=workers, **settings)

    return make


def kill_workers() -> None:
    """Kill every process that this one has started, as the kernel does when memory runs out."""
    children = multiprocessing.active_children()
    assert children
    for child in children:
        os.kill(child.pid or 0, signal.SIGKILL)


def test_killed_tokenising_processes_are_replaced_and_no_row_is_lost(
    stream: Callable[[int], RowStream],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("idlm.data.streaming._DOCUMENTS_AT_A_TIME", 2)
    expected = [row.tolist() for row, _ in islice(stream(0).rows(Position()), 60)]
    rows = stream(1).rows(Position())
    found = [next(rows)[0].tolist()]
    kill_workers()
    with caplog.at_level(logging.WARNING, "idlm.data"):
        found += [row.tolist() for row, _ in islice(rows, 59)]
    assert found == expected
    assert "a process that tokenises died; it is replaced, and nothing is lost" in caplog.text
    monkeypatch.setattr(tokenizing, "_DEATHS", 1)
    kill_workers()
    with pytest.raises(UserError, match=r"died 1 times in a row.*num_workers 1, or 0"):
        list(islice(rows, 200))


def test_the_death_of_a_process_that_loads_rows_is_one_sentence(
    data: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = data().rows("train")
    plan = BatchPlan(len(rows), global_batch_size=4, seed=0)
    batches = TrainingBatches(rows, plan, start=0, rank=0, world=1)

    def train(*args: object, **kwargs: object) -> None:
        loader = iter(DataLoader(batches, batch_size=None, num_workers=1))
        next(loader)
        kill_workers()
        list(loader)

    monkeypatch.setattr(fit, "CLI", train)
    with pytest.raises(UserError, match=r"loads data died \(.*--ckpt_path, and with"):
        fit.run(["fit"])
