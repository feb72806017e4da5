"""Memory that runs out in a real training: one sentence, and the run goes on from before."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from idlm.cli.main import main
from idlm.data import loaders
from idlm.reliability.compare import losses
from idlm.reliability.tiny import Tiny, make_tiny
from idlm.training import DistillationModule

CUDA = "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 23.00 GiB."
CPU = "DefaultCPUAllocator: can't allocate memory: you tried to allocate 64 bytes."


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    torch.set_num_threads(1)
    return make_tiny(tmp_path_factory.mktemp("tiny") / "tiny")


@pytest.fixture(scope="module")
def straight(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "straight"
    main(tiny.command(folder, updates=3))
    return folder


@pytest.mark.parametrize(
    ("place", "name", "call", "error", "said"),
    [
        # two micro batches an update: the second of update 5; one batch is asked for ahead
        (DistillationModule, "manual_backward", 10, torch.OutOfMemoryError(CUDA), "the GPU"),
        (torch.optim.AdamW, "step", 5, RuntimeError(CPU), "this machine"),
        (loaders, "as_batch", 6, MemoryError(), "this machine"),
        (loaders, "as_batch", 6, OSError(errno.ENOMEM, "Cannot allocate memory"), "this machine"),
    ],
    ids=["backward", "optimiser", "loading process", "loading process's system call"],
)
def test_memory_that_runs_out_within_an_update_is_a_sentence_and_the_run_goes_on_exactly(
    place: Any,
    name: str,
    call: int,
    error: Exception,
    said: str,
    tiny: Tiny,
    straight: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    real: Callable[..., Any] = getattr(place, name)
    calls: list[int] = []

    def failing(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == call:
            raise error
        return real(*args, **kwargs)

    command = tiny.command(tmp_path, updates=3)
    with monkeypatch.context() as patch:
        patch.setattr(place, name, failing)
        with pytest.raises(SystemExit) as stop:
            main([*command, "--data.init_args.num_workers=1"])
    assert stop.value.code == 2
    [line] = [x for x in capsys.readouterr().err.splitlines() if x.startswith("idlm:")]
    assert line.startswith(f"idlm: error: {said} ran out of memory")
    assert "lower --model.init_args.micro_batch_size" in line
    last = tmp_path / "checkpoints" / "last.ckpt"
    assert torch.load(last)["global_step"] == 3
    main([*command, f"--ckpt_path={last}"])
    logs = [losses(tmp_path / "logs" / f"version_{n}") for n in (0, 1)]
    assert {**logs[0], **logs[1]} == losses(straight / "logs" / "version_0")
    assert len(logs[0]) == 4
