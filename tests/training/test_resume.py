"""A run killed with SIGKILL and continued is the run that was not killed."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from idlm.cli.main import main
from idlm.paths import repo_dir
from tests.tiny_models import LENGTH, Folders

CONFIGS = repo_dir() / "configs"
# 3 is odd: checkpoints fall between a fake and a student update as well as after both
LAST = {
    "class_path": "lightning.pytorch.callbacks.ModelCheckpoint",
    "init_args": {
        "dirpath": "checkpoints",
        "every_n_train_steps": 3,
        "save_top_k": 0,
        "save_last": True,
        "enable_version_counter": False,
    },
}
GUARD = {"class_path": "idlm.training.CollapseGuard", "init_args": {"floor": 0.01}}
DATA = [
    f"--data.init_args.length={LENGTH}",
    "--data.init_args.global_batch_size=4",
    "--data.init_args.eval_batch_size=4",
    "--data.init_args.max_eval_rows=4",
    "--data.init_args.tokenizer=null",
]
TRAINER = [
    "--trainer.accelerator=cpu",
    "--trainer.devices=1",
    "--trainer.strategy=auto",
    "--trainer.precision=bf16-mixed",
    "--trainer.val_check_interval=4",
    "--trainer.log_every_n_steps=1",
    "--trainer.default_root_dir=.",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
    "--trainer.logger.init_args.save_dir=.",
    "--trainer.logger.init_args.flush_logs_every_n_steps=1",
]
Row = dict[str, str]


def distillation(models: Folders, corpus: Path, updates: int) -> list[str]:
    return [
        "fit",
        f"--config={CONFIGS / 'owt_16step.yaml'}",
        *TRAINER,
        *DATA,
        f"--data.init_args.corpus={corpus}",
        f"--model.init_args.teacher={models.teacher}",
        f"--trainer.callbacks={json.dumps([LAST, GUARD])}",
        "--model.init_args.dropout=0.2",
        "--model.init_args.lr=1e-3",
        "--model.init_args.fake_lr=1e-3",
        "--model.init_args.warmup=40",
        "--model.init_args.fake_per_student=2",
        "--model.init_args.micro_batch_size=3",
        f"--model.init_args.max_student_updates={updates}",
    ]


def teacher(models: Folders, corpus: Path, updates: int) -> list[str]:
    return [
        "fit",
        f"--config={CONFIGS / 'owt_teacher.yaml'}",
        *TRAINER,
        *DATA,
        f"--data.init_args.corpus={corpus}",
        f"--model.init_args.tokenizer={models.teacher}",
        f"--model.init_args.model_length={LENGTH}",
        "--model.init_args.hidden_dim=16",
        "--model.init_args.cond_dim=8",
        "--model.init_args.n_blocks=1",
        "--model.init_args.n_heads=2",
        f"--trainer.callbacks={json.dumps([LAST])}",
        "--model.init_args.dropout=0.2",
        "--model.init_args.lr=1e-2",
        "--model.init_args.muon_lr=1e-2",
        "--model.init_args.warmup=40",
        "--model.init_args.micro_batch_size=3",
        f"--model.init_args.max_updates={updates}",
    ]


def metrics(folder: Path) -> list[Row]:
    """All rows that runs in this folder logged, version after version."""
    found: list[Row] = []
    for version in sorted((folder / "logs").glob("version_*")):
        if (file := version / "metrics.csv").exists():
            with file.open(newline="") as lines:
                # the last line may be cut off
                found += [row for row in csv.DictReader(lines) if None not in row.values()]
    return found


def kill_after(steps: int, command: list[str], folder: Path) -> None:
    """Start the command in a process of its own and kill it once it has logged so many steps."""
    with (folder / "stderr").open("w") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", "idlm.cli.main", *command],
            cwd=folder,
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(repo_dir())},
            stdout=subprocess.DEVNULL,
            stderr=stderr,
        )
    try:
        while process.poll() is None and sum(bool(r["step"]) for r in metrics(folder)) < steps:
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == -signal.SIGKILL, (folder / "stderr").read_text()


def updates_of(rows: list[Row], *, per_student: int) -> dict[tuple[int, int], Row]:
    """What each update of a distillation logged about itself, by its place among the updates.

    Lightning repeats the last value of the other network beside it.
    """
    found = {}
    for row in rows:
        if row.get("student_updates"):
            fake, student = int(float(row["fake_updates"])), int(float(row["student_updates"]))
            own = "student" if fake == per_student * student else "fake"
            kept = {k: v for k, v in row.items() if k.startswith(f"train/{own}_")}
            assert kept
            assert all(kept.values())
            found[fake, student] = kept
    return found


def same(a: Any, b: Any) -> bool:
    """Equality of nested containers of tensors, bit by bit."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def interrupted_and_straight(
    command: Callable[[int], list[str]],
    counter: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> tuple[Path, Path, int]:
    """Folders of a killed and continued run and of a straight one, and the steps of the kill."""
    torch.set_num_threads(1)
    killed, straight = tmp_path / "killed", tmp_path / "straight"
    killed.mkdir()
    straight.mkdir()
    kill_after(8, command(100_000), killed)
    last = killed / "checkpoints" / "last.ckpt"
    saved = torch.load(last, weights_only=True)
    until = saved[counter] + 3
    steps = saved["global_step"]
    assert steps >= 6
    monkeypatch.chdir(killed)
    main([*command(until), f"--ckpt_path={last}"])
    monkeypatch.chdir(straight)
    main(command(until))
    return killed, straight, steps


def same_end(killed: Path, straight: Path) -> None:
    """Weights, average, optimisers, schedules, counters and data position agree."""
    a, b = (
        torch.load(f / "checkpoints" / "last.ckpt", weights_only=True) for f in (killed, straight)
    )
    keys = ["state_dict", "optimizer_states", "lr_schedulers", "global_step", "PackedDataModule"]
    keys += [k for k in b if k.endswith("updates")]
    for key in keys:
        assert same(a[key], b[key]), key
    assert (killed / "export" / "model.safetensors").read_bytes() == (
        straight / "export" / "model.safetensors"
    ).read_bytes()


def test_a_distillation_killed_with_sigkill_continues_with_the_same_losses_step_by_step(
    models: Folders, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed, straight, steps = interrupted_and_straight(
        lambda n: distillation(models, corpus, n), "student_updates", tmp_path, monkeypatch
    )
    expected = updates_of(metrics(straight), per_student=2)
    # before the kill, and from the checkpoint on; both overlap in what was lost and made again
    versions = sorted((killed / "logs").iterdir())
    assert len(versions) == 2
    for version in versions:
        with (version / "metrics.csv").open(newline="") as lines:
            rows = [row for row in csv.DictReader(lines) if None not in row.values()]
        logged = updates_of(rows, per_student=2)
        common = logged.keys() & expected.keys()
        assert len(common) >= 6
        assert {k: logged[k] for k in common} == {k: expected[k] for k in common}
    assert min(logged) > (0, 0)
    assert sum(min(logged)) == steps + 1
    assert logged.keys() <= expected.keys()
    assert max(logged) == max(expected)
    assert (
        len({row["train/fake_loss"] for row in expected.values() if "train/fake_loss" in row}) > 5
    )
    same_end(killed, straight)


def test_a_teacher_killed_with_sigkill_continues_with_the_same_losses_step_by_step(
    models: Folders, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed, straight, steps = interrupted_and_straight(
        lambda n: teacher(models, corpus, n), "updates", tmp_path, monkeypatch
    )

    def losses(rows: list[Row]) -> dict[str, tuple[str, str]]:
        return {
            r["train/updates"]: (r["train/nelbo"], r["train/grad_norm"])
            for r in rows
            if r.get("train/updates")
        }

    expected, logged = losses(metrics(straight)), losses(metrics(killed))
    assert {n: logged[n] for n in expected} == expected
    assert len(set(expected.values())) == len(expected) == steps + 3
    same_end(killed, straight)


def test_settings_come_from_the_command_line_not_from_the_checkpoint(
    models: Folders, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    main(distillation(models, corpus, 1))
    main([*distillation(models, corpus, 2), "--ckpt_path=checkpoints/last.ckpt"])
    last = torch.load("checkpoints/last.ckpt", weights_only=True)
    assert last["student_updates"] == 2
    assert last["hyper_parameters"]["max_student_updates"] == 2
