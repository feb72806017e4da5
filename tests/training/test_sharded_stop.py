"""A sharded run of two processes that is asked to stop: saved whole, and gone on with exactly."""

from __future__ import annotations

import io
import os
import signal
from collections.abc import Callable
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import pytest
import torch

from idlm.cli.main import main
from idlm.reliability.compare import losses, same
from idlm.reliability.tiny import make_tiny
from idlm.training import DistillationModule
from idlm.training.checkpoint_io import damage
from tests.launched import launch


def test_sigterm_to_one_of_two_sharded_processes_saves_the_run_and_it_goes_on_exactly(
    tmp_path: Path,
) -> None:
    tiny, straight, stopped = make_tiny(tmp_path / "tiny"), tmp_path / "a", tmp_path / "b"
    two = ["--trainer.devices=2", "--trainer.strategy=sharded"]
    undisturbed, command = (
        [*tiny.command(f, updates=3, save_every=9), *two] for f in (straight, stopped)
    )
    last = stopped / "checkpoints" / "last.ckpt"
    real: Callable[..., Any] = DistillationModule.update
    calls: list[int] = []

    def update(self: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == 5 and self.global_rank == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(self, *args, **kwargs)

    def work(rank: int) -> tuple[Any, int, str, str | None]:
        main(undisturbed)
        with pytest.MonkeyPatch.context() as patch, redirect_stderr(io.StringIO()) as err:
            patch.setattr(DistillationModule, "update", update)
            with pytest.raises(SystemExit) as stop:
                main(command)
        found = stop.value.code, len(calls), err.getvalue(), damage(last)
        main([*command, f"--ckpt_path={last}"])
        return found

    (code, made, said, wrong), other = launch(2, work)
    # both end with the code, and the main process tells how
    assert (code, made, wrong) == (143, 5, None)
    assert (
        f"idlm: stopped by SIGTERM after step 5, which is saved; go on with --ckpt_path {last}"
        in (said.splitlines())
    )
    assert other[:2] == (143, 5)
    [line] = other[2].splitlines()
    assert line.startswith("idlm: SIGTERM: saving after this update; ")
    assert b"idlm sha256 " in (last.parent / "last.previous.ckpt").read_bytes()[-80:]
    assert torch.load(last.parent / "last.previous.ckpt")["global_step"] == 5
    expected = losses(straight / "logs" / "version_0")
    first, second = (losses(stopped / "logs" / f"version_{n}") for n in (0, 1))
    assert [sum(key) for key in first] == [1, 2, 3, 4, 5]
    assert [sum(key) for key in second] == [6, 7, 8, 9]
    assert {**first, **second} == expected
    exported = [(f / "export" / "model.safetensors").read_bytes() for f in (straight, stopped)]
    assert exported[0] == exported[1]
    ends = [torch.load(f / "checkpoints" / "last.ckpt") for f in (straight, stopped)]
    for key in ("state_dict", "optimizer_states", "lr_schedulers", "PackedDataModule"):
        assert same(ends[0][key], ends[1][key]), key
