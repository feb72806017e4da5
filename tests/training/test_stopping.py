"""SIGTERM and Ctrl-C: the update is finished, the run is saved, and goes on exactly."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.utilities.exceptions import SIGTERMException

from idlm.cli.main import main
from idlm.paths import repo_dir
from idlm.reliability.compare import losses, same
from idlm.reliability.tiny import Tiny, make_tiny
from idlm.training import DistillationModule


@pytest.fixture(autouse=True)
def a_terminal() -> Iterator[None]:
    """Ctrl-C is heard, as it is not in a job that a shell has put into the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    torch.set_num_threads(1)
    return make_tiny(tmp_path_factory.mktemp("tiny") / "tiny")


@pytest.fixture(scope="module")
def straight(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five student updates, fifteen in all, that nobody disturbed; a validation after twelve."""
    folder = tmp_path_factory.mktemp("runs") / "straight"
    main(tiny.command(folder, updates=5))
    return folder


def signal_in(
    monkeypatch: pytest.MonkeyPatch, method: str, call: int, *numbers: signal.Signals
) -> None:
    """Have this process signalled from within the n-th call of a method of the training."""
    real: Callable[..., Any] = getattr(DistillationModule, method)
    calls: list[int] = []

    def patched(self: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == call:
            for number in numbers:
                os.kill(os.getpid(), number)
        return real(self, *args, **kwargs)

    monkeypatch.setattr(DistillationModule, method, patched)


def stopped(command: list[str]) -> int:
    with pytest.raises(SystemExit) as stop:
        main(command)
    assert isinstance(stop.value.code, int)
    return stop.value.code


@pytest.mark.parametrize(
    ("number", "code", "method", "call", "step"),
    [
        (signal.SIGTERM, 143, "update", 5, 5),
        (signal.SIGINT, 130, "update", 8, 8),
        # within the validation after update 12
        (signal.SIGTERM, 143, "validation_step", 1, 12),
    ],
)
def test_a_run_that_is_asked_to_stop_is_saved_and_goes_on_exactly(
    number: signal.Signals,
    code: int,
    method: str,
    call: int,
    step: int,
    tiny: Tiny,
    straight: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    handlers = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
    command = tiny.command(tmp_path, updates=5, save_every=3)
    with monkeypatch.context() as patch:
        signal_in(patch, method, call, number)
        assert stopped(command) == code
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)] == handlers
    last = tmp_path / "checkpoints" / "last.ckpt"
    note, sentence = [x for x in capsys.readouterr().err.splitlines() if x.startswith("idlm:")]
    assert note.startswith(f"idlm: {number.name}: saving after this update; ")
    assert sentence == (
        f"idlm: stopped by {number.name} after step {step}, which is saved; go on with "
        f"--ckpt_path {last}"
    )
    assert not (tmp_path / "export").exists()
    assert torch.load(last)["global_step"] == step
    main([*command, f"--ckpt_path={last}"])
    expected = losses(straight / "logs" / "version_0")
    first, second = (losses(tmp_path / "logs" / f"version_{n}") for n in (0, 1))
    assert max(sum(key) for key in first) == step
    assert [sum(key) for key in second] == list(range(step + 1, 16))
    assert {**first, **second} == expected
    ends = [torch.load(f / "checkpoints" / "last.ckpt") for f in (tmp_path, straight)]
    for key in ("state_dict", "optimizer_states", "lr_schedulers", "PackedDataModule"):
        assert same(ends[0][key], ends[1][key]), key


def test_a_second_ctrl_c_stops_at_once(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    signal_in(monkeypatch, "update", 5, signal.SIGINT, signal.SIGINT)
    before = signal.getsignal(signal.SIGINT)
    try:
        assert stopped(tiny.command(tmp_path, updates=5)) == 130
    finally:
        signal.signal(signal.SIGINT, before)  # Lightning leaves it ignored
    assert capsys.readouterr().err.splitlines()[-1] == "idlm: interrupted"
    # what was saved before stays
    assert torch.load(tmp_path / "checkpoints" / "last.ckpt")["global_step"] == 3


def test_a_signal_that_is_ignored_stays_ignored(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As for a job that a shell has put into the background."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        signal_in(monkeypatch, "update", 2, signal.SIGINT)
        main(tiny.command(tmp_path, updates=1))
    finally:
        signal.signal(signal.SIGINT, before)
    assert (tmp_path / "export").is_dir()


def test_a_signal_at_the_last_update_lets_the_run_end(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    signal_in(monkeypatch, "update", 3, signal.SIGTERM)
    main(tiny.command(tmp_path, updates=1))
    assert (tmp_path / "export").is_dir()


@pytest.mark.slow
def test_of_two_processes_one_gets_the_signal_and_both_stop(tiny: Tiny, tmp_path: Path) -> None:
    command = [
        *tiny.command(tmp_path, updates=100_000, save_every=1000),
        "--trainer.devices=2",
        "--trainer.strategy=ddp_find_unused_parameters_true",
    ]
    with subprocess.Popen(
        [sys.executable, "-m", "idlm.cli.main", *command],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(repo_dir())},
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    ) as process:
        log = tmp_path / "logs" / "version_0"
        while len(losses(log)) < 4 and process.poll() is None:
            time.sleep(0.05)
        process.terminate()
        _, err = process.communicate(timeout=120)
    assert process.returncode == 143, err
    last = tmp_path / "checkpoints" / "last.ckpt"
    assert any(line.startswith("idlm: stopped by SIGTERM after step ") for line in err.splitlines())
    assert err.count("idlm: stopped") == 1
    step = torch.load(last)["global_step"]
    assert step == max(sum(key) for key in losses(log))
    assert f"after step {step}, which is saved; go on with --ckpt_path {last}" in err


def test_sigterm_outside_of_the_updates_is_no_success(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tiny: Tiny, tmp_path: Path
) -> None:
    """Where Lightning ends a process with code 0, which launchers take for a run that is done."""

    def ended(*_: Any, **__: Any) -> None:
        raise SIGTERMException

    monkeypatch.setattr("idlm.cli.fit.CLI", ended)
    assert stopped(tiny.command(tmp_path, updates=1)) == 143
    assert "stopped by SIGTERM outside of a training's updates" in capsys.readouterr().err
