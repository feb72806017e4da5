"""A collapsing student is noticed, stopped, and never what is exported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

import idlm
from idlm.errors import UserError
from idlm.objectives import IDLM, LossSum
from idlm.training import CollapseGuard
from tests.tiny_models import Folders
from tests.training.helpers import QUIET, copy_of, differs, distillation, rows, trainer

pytestmark = QUIET


class Collapsing(IDLM):
    """An entropy of 3 nats for a while, then none, while the loss falls and falls."""

    def __init__(self, healthy: int) -> None:
        super().__init__()
        self.healthy = healthy
        self.calls = 0

    def student_loss(self, networks: Any, tokens: Any, draw: Any) -> LossSum:
        result = super().student_loss(networks, tokens, draw)
        training = torch.is_grad_enabled()
        self.calls += training
        entropy = 3.0 if self.calls <= self.healthy else 0.0
        total = result.total if training else result.total * 0 - 1e3 * self.calls
        return LossSum(total, result.tokens, {"student_entropy": torch.tensor(entropy)})


def collapse(models: Folders, corpus: Path, folder: Path, *callbacks: L.Callback) -> Any:
    module = distillation(models.teacher, Collapsing(4), max_student_updates=50, ema_decay=0.1)
    guard = CollapseGuard(floor=1.6, window=2)
    run = trainer(
        folder, guard, *callbacks, enable_checkpointing=bool(callbacks), val_check_interval=4
    )
    with pytest.warns(UserWarning, match="the student is collapsing.*1.500 nats.*floor of 1.6"):
        run.fit(module, datamodule=rows(corpus, models.teacher))
    return module


@pytest.mark.parametrize(
    "settings",
    [
        {"monitor": "val/student_loss"},
        {"monitor": "val/student_loss", "save_last": True},
        {"every_n_train_steps": 8, "save_last": True, "save_top_k": 0},
    ],
    ids=["best", "best and last", "last"],
)
def test_a_collapsing_student_stops_the_run_and_the_best_checkpoint_is_exported(
    settings: dict[str, Any], models: Folders, corpus: Path, tmp_path: Path
) -> None:
    checkpoint = ModelCheckpoint(tmp_path / "kept", **settings)
    module = collapse(models, corpus, tmp_path, checkpoint)
    # the fifth student update has no entropy left: the mean of the last two is 1.5
    assert module.collapsed
    # validated and saved after updates 4 and 8 of either network: 2 and 4 of the student
    assert (module.student_updates, module.fake_updates) == (4, 4)
    path = checkpoint.best_model_path or checkpoint.last_model_path
    kept = torch.load(path, weights_only=True)
    assert not kept["collapsed"]
    exported = copy_of(idlm.load(tmp_path / "export"))
    best = {
        k.removeprefix("ema.module."): v
        for k, v in kept["state_dict"].items()
        if k.startswith("ema.module.")
    }
    assert differs(exported, best) == []
    assert differs(exported, copy_of(module.student)) != []
    assert "| student_updates | 4 |" in (tmp_path / "export" / "README.md").read_text()


def test_a_collapsed_student_without_a_checkpoint_is_not_exported(
    models: Folders, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    collapse(models, corpus, tmp_path)
    assert not (tmp_path / "export").exists()
    assert "no checkpoint was kept, so nothing is exported" in capsys.readouterr().out


def test_the_guard_waits_for_a_full_window_and_for_student_updates(
    models: Folders, corpus: Path, tmp_path: Path
) -> None:
    module = distillation(models.teacher, Collapsing(0), max_student_updates=3, fake_per_student=2)
    guard = CollapseGuard(floor=1.0, window=4)
    trainer(tmp_path, guard, limit_val_batches=0).fit(
        module, datamodule=rows(corpus, models.teacher)
    )
    assert guard.history == [0.0, 0.0, 0.0]
    assert not module.collapsed


@pytest.mark.parametrize("settings", [{"floor": -1.0}, {"floor": 1.0, "window": 0}])
def test_an_impossible_guard_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"floor is .* and window is"):
        CollapseGuard(**settings)
