"""Sharded generation: processes as threads for speed, and two real ones for the command line."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import PartialState

import idlm
from idlm.cli import generate as command
from idlm.errors import UserError
from idlm.models import DiffusionLM
from idlm.samples import read_samples
from idlm.sampling import GenerationOutput, sharded
from idlm.sampling.sharded import Processes, generate_sharded, join, share
from tests.tiny_models import LENGTH, Folders, make_models

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Thread(Processes):
    """A process of the launch played by a thread: what is gathered passes through one list."""

    board: list[Any] = field(default_factory=list)
    barrier: threading.Barrier = field(default_factory=lambda: threading.Barrier(1))

    def gather(self, value: Any) -> list[Any]:
        self.board[self.index] = value
        self.barrier.wait(timeout=60)
        values = list(self.board)
        self.barrier.wait(timeout=60)
        return values


def launch(count: int, work: Callable[[Processes], Any]) -> list[Any]:
    """The result of ``work``, or the exception it ended with, in each of ``count`` processes."""
    board, barrier = [None] * count, threading.Barrier(count)

    def run(index: int) -> Any:
        try:
            return work(Thread(index, count, CPU, board, barrier))
        except Exception as error:  # noqa: BLE001 - handed to the test
            return error

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(run, range(count)))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    return make_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def model(folders: Folders) -> DiffusionLM:
    return idlm.load(folders.student)


def same(one: GenerationOutput, other: GenerationOutput) -> bool:
    return torch.equal(one.tokens, other.tokens) and torch.equal(one.lengths, other.lengths)


@pytest.mark.parametrize(("total", "count"), [(7, 3), (3, 7), (1, 2), (64, 8), (0, 2)])
def test_shares_are_consecutive_complete_and_even(total, count):
    shares = [share(total, index, count) for index in range(count)]
    assert [i for part in shares for i in part] == list(range(total))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize("count", [2, 3, 8])
@pytest.mark.parametrize(
    "request_",
    [
        {},
        {"prompt": [[5], [6, 7, 8], [9, 10], [5], [11] * 20]},
        {"infill": [[5, -1, 7], [-1] * LENGTH, [4, 4, -1, -1], [-1, 3], [-1, 2]]},
    ],
    ids=["plain", "prompt", "infill"],
)
def test_sharded_samples_equal_those_of_one_process(model, count, request_):
    mask = model.process.mask_id
    rows = {
        name: [[mask if token == -1 else token for token in row] for row in value]
        for name, value in request_.items()
    }
    whole = idlm.generate(model, 5, steps=3, seed=4, **rows)
    for made in launch(count, lambda p: generate_sharded(p, model, 5, None, 3, seed=4, **rows)):
        assert same(made, whole)
        assert made.seed == 4
        assert made.nfe <= whole.nfe


def test_the_cost_is_that_of_the_busiest_process(model):
    mask = model.process.mask_id
    # one position to write is one call; ten are revealed in all three steps
    infill = [[5, mask], [mask] * 30]
    (one, _), whole = (
        launch(2, lambda p: generate_sharded(p, model, 2, None, 3, seed=0, infill=infill)),
        idlm.generate(model, 2, steps=3, seed=0, infill=infill),
    )
    assert (one.nfe, whole.nfe) == (3, 3)
    assert one.tokens_per_call == whole.tokens_per_call == 10.0
    assert one.seconds > 0


def test_without_a_seed_all_processes_use_the_one_of_the_main_process(model):
    made = launch(3, lambda p: generate_sharded(p, model, 3, 8, 2))
    assert len({out.seed for out in made}) == 1
    assert same(made[0], idlm.generate(model, 3, 8, 2, seed=made[0].seed))


def test_a_bad_request_is_a_sentence_in_every_process_also_in_idle_ones(model):
    for error in launch(4, lambda p: generate_sharded(p, model, 2, 8, 0)):
        assert isinstance(error, UserError)
        assert str(error) == "steps is 0; it must be at least 1"
    for error in launch(2, lambda p: generate_sharded(p, model, 0, 8, 2)):
        assert str(error) == "num_samples is 0; it must be at least 1"


def test_one_failing_process_fails_in_all_and_names_itself():
    def work(processes: Processes) -> str:
        return processes.together(lambda: "fine" if processes.index != 1 else str(1 // 0))

    for error in launch(3, work):
        assert isinstance(error, RuntimeError)
        assert str(error).startswith("process 1 failed:\n")
        assert "ZeroDivisionError" in str(error)


def test_every_process_gets_its_own_result_when_none_fails():
    assert launch(3, lambda p: p.together(lambda: 10 * p.index)) == [0, 10, 20]


def test_alone_there_is_nobody_to_wait_for_and_errors_stay_what_they_are():
    with join(1, "cpu") as alone:
        assert (alone.index, alone.count, alone.device) == (0, 1, CPU)
        assert alone.gather("x") == ["x"]
        with pytest.raises(ZeroDivisionError):
            alone.together(lambda: 1 // 0)


def test_a_device_by_number_is_refused_for_several_processes():
    sharded.check_device("cpu", 2)
    sharded.check_device(None, 2)
    with pytest.raises(UserError, match=r"device 'cpu:0' is one device and there are 2 processes"):
        sharded.check_device("cpu:0", 2)


def test_processes_that_no_launcher_started_are_one_sentence(monkeypatch):
    for name in ("RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "0")  # so that it is restored
        monkeypatch.delenv(name)
    monkeypatch.setenv("WORLD_SIZE", "2")
    try:
        expected = r"2 processes, which cannot meet .* unset WORLD_SIZE"
        with pytest.raises(UserError, match=expected), join(2, "cpu"):
            raise AssertionError("nobody was there to meet")
    finally:
        PartialState._reset_state()


@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_does_not_wait_for_ever_for_one_that_never_comes(rank, monkeypatch):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    names = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    for name, value in {**names, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sharded, "_ARRIVAL", timedelta(seconds=1))
    started = time.monotonic()
    try:
        with pytest.raises(UserError, match="2 processes, which cannot meet"), join(2, "cpu"):
            raise AssertionError("nobody was there to meet")
    finally:
        PartialState._reset_state()
    assert time.monotonic() - started < 30


def torchrun(script: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a script in two processes that meet over gloo."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    env.pop("PYTHONWARNINGS", None)
    return subprocess.run(
        [sys.executable, *launcher, str(script), *arguments],
        env=env,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.slow
def test_two_real_processes_write_the_file_of_one_and_only_the_main_one_speaks(folders, tmp_path):
    script = tmp_path / "program.py"  # what `accelerate launch $(which idlm)` runs
    script.write_text("from idlm.cli.main import main\nmain()\n")
    arguments = ["--checkpoint", str(folders.student), "--steps", "4", "--num-samples", "3"]
    arguments += ["--seed", "3", "--prompt", "return the value", "--device", "cpu"]
    together, alone = tmp_path / "together.jsonl", tmp_path / "alone.jsonl"
    done = torchrun(script, "generate", *arguments, "--output", str(together))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("3 samples of") == 1
    command.run([*arguments, "--output", str(alone)])
    (header, rows), (expected, expected_rows) = read_samples(together), read_samples(alone)
    assert rows == expected_rows
    assert header.pop("seconds") > 0
    expected.pop("seconds")
    assert header == expected


@pytest.mark.slow
def test_a_real_process_that_fails_ends_the_others_with_one_message(folders, tmp_path):
    script = tmp_path / "program.py"
    script.write_text(
        "import os\n"
        "from idlm.cli.main import main\n"
        "from idlm.errors import UserError\n"
        "from idlm.sampling import sharded\n"
        "def fail(*args, **kwargs):\n"
        "    raise UserError('the second process is out of luck')\n"
        "if os.environ['RANK'] == '1':\n"
        "    sharded.generate = fail\n"
        "main()\n"
    )
    done = torchrun(
        script, "generate", "--checkpoint", str(folders.student), "--steps", "1",
        "--device", "cpu", "--num-samples", "2",
    )  # fmt: skip
    assert done.returncode != 0
    assert done.stderr.count("idlm: error: the second process is out of luck") == 1
    assert done.stdout == ""
