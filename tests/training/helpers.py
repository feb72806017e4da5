"""Short trainings on the CPU and a record of every update in them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor

from idlm.data import PackedDataModule
from idlm.objectives import IDLM
from idlm.training import DistillationModule, TeacherModule
from tests.tiny_models import LENGTH, SENTENCES

# Lightning's warnings that `idlm fit` silences too, and says why
QUIET = [
    pytest.mark.filterwarnings(f"ignore:.*{text}.*")
    for text in (
        "Using ModelCheckpoint with manual optimization",
        "resuming from a checkpoint that ended",
        "is not supported by the model summary",
    )
]


def write_corpus(path: Path, lines: int = 400) -> Path:
    """A text of some hundred rows, the same every time."""
    path.write_text("\n".join(SENTENCES[i * 7 % 18] for i in range(lines)) + "\n")
    return path


class Record(L.Callback):
    """What each update logged, with the learning rates it was made with."""

    def __init__(self) -> None:
        self.updates: list[dict[str, float]] = []
        self.rates: list[tuple[float, ...]] = []

    def on_train_batch_start(self, trainer: L.Trainer, *args: Any) -> None:
        self.rates.append(tuple(o.param_groups[0]["lr"] for o in trainer.optimizers))

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        self.updates.append({k: float(v) for k, v in trainer.callback_metrics.items()})

    def of_student(self) -> list[dict[str, float]]:
        """The student's updates only."""
        counts = [0.0, *(u["student_updates"] for u in self.updates)]
        return [
            u
            for u, before in zip(self.updates, counts, strict=False)
            if u["student_updates"] > before
        ]


def distillation(teacher: Path, objective: Any = None, **settings: Any) -> DistillationModule:
    """Three student updates at a rate that moves weights, no dropout, small latents."""
    defaults = {
        "max_student_updates": 3,
        "lr": 1e-3,
        "fake_lr": 1e-2,
        "warmup": 1,
        "dropout": 0.0,
        "latent_global": 4,
        "latent_position": 4,
        "ema_decay": 0.9,
        "micro_batch_size": 4,
    }
    return DistillationModule(str(teacher), objective or IDLM(), **{**defaults, **settings})


def teacher_training(tokenizer: Path, **settings: Any) -> TeacherModule:
    """Three updates of a network of a few thousand weights."""
    defaults = {
        "model_length": LENGTH,
        "hidden_dim": 16,
        "cond_dim": 8,
        "n_blocks": 1,
        "n_heads": 2,
        "dropout": 0.0,
        "max_updates": 3,
        "lr": 1e-2,
        "warmup": 1,
        "ema_decay": 0.9,
        "micro_batch_size": 4,
    }
    return TeacherModule(str(tokenizer), **{**defaults, **settings})


def rows(corpus: Path, tokenizer: Path, **settings: Any) -> PackedDataModule:
    """Batches of four rows, eight rows to validate on."""
    defaults = {"length": LENGTH, "global_batch_size": 4, "eval_batch_size": 4, "max_eval_rows": 8}
    return PackedDataModule(str(corpus), str(tokenizer), **{**defaults, **settings})


def trainer(folder: Path, *callbacks: L.Callback, **settings: Any) -> L.Trainer:
    """On one CPU, silent, validating only at the end."""
    defaults: dict[str, Any] = {
        "accelerator": "cpu",
        "devices": 1,
        "max_epochs": -1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "val_check_interval": 10**6,
        "check_val_every_n_epoch": None,
        "default_root_dir": folder,
        "use_distributed_sampler": False,
    }
    return L.Trainer(callbacks=list(callbacks), **{**defaults, **settings})


def copy_of(module: torch.nn.Module) -> dict[str, Tensor]:
    """Its weights now."""
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def differs(a: dict[str, Tensor], b: dict[str, Tensor]) -> list[str]:
    """Names whose values are not the same."""
    assert a.keys() == b.keys()
    return [name for name in a if not torch.equal(a[name], b[name])]
