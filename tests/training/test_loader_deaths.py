"""Processes that load data are killed while a real training runs."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from idlm.cli.main import main
from idlm.reliability.compare import losses, same
from idlm.reliability.tiny import Tiny, make_tiny
from idlm.training import DistillationModule


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    torch.set_num_threads(1)
    return make_tiny(tmp_path_factory.mktemp("tiny") / "tiny")


def kill_children() -> None:
    """As the kernel does when memory runs out."""
    children = multiprocessing.active_children()
    assert children
    for child in children:
        os.kill(child.pid or 0, signal.SIGKILL)


def kill_in_update(patch: pytest.MonkeyPatch, *numbers: int) -> None:
    """Kill every loading process in the middle of updates, and wait until they are dead."""
    real: Callable[..., Any] = DistillationModule._accumulate
    calls: list[int] = []

    def accumulate(self: Any, *args: Any) -> Any:
        calls.append(1)
        if len(calls) in numbers:
            children = multiprocessing.active_children()
            kill_children()
            for child in children:
                child.join()
        return real(self, *args)

    patch.setattr(DistillationModule, "_accumulate", accumulate)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_loading_process_killed_in_the_middle_of_an_epoch_is_replaced_and_no_row_is_lost(
    workers: int,
    tiny: Tiny,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    main(tiny.command(straight, updates=4))
    with monkeypatch.context() as patch:
        kill_in_update(patch, 3, 8)
        main([*tiny.command(killed, updates=4), f"--data.init_args.num_workers={workers}"])
    assert caplog.text.count("a process that loads data died; it is replaced") == 2
    found, expected = (losses(f / "logs" / "version_0") for f in (killed, straight))
    assert len(expected) == 12
    assert found == expected
    ends = [torch.load(f / "checkpoints" / "last.ckpt") for f in (killed, straight)]
    for key in ("state_dict", "optimizer_states", "PackedDataModule"):
        assert same(ends[0][key], ends[1][key]), key


def test_processes_that_die_again_and_again_end_the_run_in_a_sentence_and_it_goes_on_exactly(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    main(tiny.command(straight, updates=3))
    command = tiny.command(killed, updates=3)
    with monkeypatch.context() as patch:
        kill_in_update(patch, 5)
        patch.setattr("idlm.data.lasting._DEATHS", 1)
        with pytest.raises(SystemExit) as stop:
            main([*command, "--data.init_args.num_workers=1"])
    assert stop.value.code == 2
    said = [x for x in capsys.readouterr().err.splitlines() if x.startswith("idlm:")]
    assert len(said) == 1
    assert "the processes that load data died 1 times in a row" in said[0]
    assert "less than --data.init_args.num_workers 1, or 0" in said[0]
    last = killed / "checkpoints" / "last.ckpt"
    assert torch.load(last)["global_step"] == 3
    main([*command, f"--ckpt_path={last}"])
    logs = [losses(killed / "logs" / f"version_{n}") for n in (0, 1)]
    assert {**logs[0], **logs[1]} == losses(straight / "logs" / "version_0")
