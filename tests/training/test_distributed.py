"""Two processes on one CPU are one process with half of each batch."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest

from idlm.cli.main import main
from idlm.paths import repo_dir
from tests.tiny_models import LENGTH, Folders

NAMES = (
    "train/fake_loss",
    "train/student_loss",
    "train/student_entropy",
    "train/fake_grad_norm",
    "train/student_grad_norm",
    "val/student_loss",
    "val/student_entropy",
)


def command(models: Folders, corpus: Path, *more: str) -> list[str]:
    return [
        "fit",
        f"--config={repo_dir() / 'configs' / 'tiny.yaml'}",
        *more,
        f"--model.init_args.teacher={models.teacher}",
        f"--data.init_args.corpus={corpus}",
        f"--data.init_args.length={LENGTH}",
        "--data.init_args.eval_batch_size=2",
        "--model.init_args.micro_batch_size=2",
        "--model.init_args.dropout=0.0",
        "--trainer.enable_progress_bar=false",
        "--trainer.enable_model_summary=false",
        # one rounding can flip a drawn token, and with it everything after: keep roundings small
        "--trainer.precision=64-true",
    ]


def logged(folder: Path) -> dict[str, list[float]]:
    [file] = folder.rglob("metrics.csv")
    with file.open(newline="") as lines:
        found = list(csv.DictReader(lines))
    return {name: [float(row[name]) for row in found if row[name]] for name in NAMES}


@pytest.mark.slow
def test_two_processes_train_like_one(
    models: Folders, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    both, alone = tmp_path / "both", tmp_path / "alone"
    both.mkdir()
    alone.mkdir()
    ddp = ("--trainer.devices=2", "--trainer.strategy=ddp_find_unused_parameters_true")
    result = subprocess.run(
        [sys.executable, "-m", "idlm.cli.main", *command(models, corpus, *ddp)],
        cwd=both,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(repo_dir())},
        capture_output=True,
        text=True,
        check=False,
        timeout=580,
    )
    assert result.returncode == 0, result.stderr
    monkeypatch.chdir(alone)
    main(command(models, corpus))
    one, two = logged(alone), logged(both)
    for name in NAMES:
        assert len(one[name]) >= 2
        # the two halves of a gradient are added in another order, and AdamW's first steps
        # divide by the gradient's size
        assert two[name] == pytest.approx(one[name], rel=2e-3, abs=2e-5), name
