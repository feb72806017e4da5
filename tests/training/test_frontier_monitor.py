"""The monitor of a distillation samples, judges and compares at equal entropy."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

import idlm
from idlm.equal_entropy import matched_entropy
from idlm.errors import UserError
from idlm.evaluation.scoring import score
from idlm.metrics import load_evaluator
from idlm.models import decode, load_tokenizer
from idlm.training import FrontierMonitor
from tests.tiny_models import Folders
from tests.training.helpers import QUIET, distillation, rows, teacher_training, trainer

pytestmark = QUIET
TEMPERATURES = (1.3, 1.0, 0.7)


class Logged(L.Callback):
    """What was logged at each validation."""

    def __init__(self) -> None:
        self.values: list[dict[str, float]] = []

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.values.append({k: float(v) for k, v in trainer.callback_metrics.items()})


def monitor(models: Folders, **settings: Any) -> FrontierMonitor:
    defaults = {"steps": 4, "num_samples": 6, "temperatures": TEMPERATURES, "seed": 3}
    return FrontierMonitor(str(models.evaluator), **{**defaults, **settings})


def plain(models: Folders, model: Any, temperature: float = 1.0) -> tuple[float, float]:
    """(entropy, GenPPL) by the code behind `idlm evaluate`."""
    out = idlm.generate(model, 6, steps=4, temperature=temperature, seed=3)
    texts = decode(load_tokenizer(models.teacher), out.tokens)
    cell = score(out.tokens, texts, load_evaluator(models.evaluator))
    return cell["entropy"], cell["gen_ppl"]


def test_the_monitor_logs_what_evaluating_the_export_would_say(
    models: Folders, corpus: Path, tmp_path: Path
) -> None:
    module, logged, watch = distillation(models.teacher), Logged(), monitor(models)
    run = trainer(tmp_path, watch, logged, val_check_interval=2)
    run.fit(module, datamodule=rows(corpus, models.teacher))
    curve = [plain(models, idlm.load(models.teacher), t) for t in TEMPERATURES]
    assert watch.curve == [pytest.approx(point, rel=1e-6) for point in curve]
    entropy, gen_ppl = plain(models, idlm.load(tmp_path / "export"))
    last = logged.values[-1]
    assert last["val/gen_ppl"] == pytest.approx(gen_ppl, rel=1e-4)  # logged in fp32
    assert last["val/entropy"] == pytest.approx(entropy, rel=1e-4)
    expected = matched_entropy(curve, (entropy, gen_ppl)).ratio
    assert last["val/frontier_ratio"] == pytest.approx(expected or math.inf, rel=1e-4)


def test_a_student_that_is_still_its_teacher_has_ratio_one(
    models: Folders, corpus: Path, tmp_path: Path
) -> None:
    module = distillation(models.teacher, latent_global=0, latent_position=0)
    watch, logged = monitor(models), Logged()
    trainer(tmp_path, watch, logged).validate(module, datamodule=rows(corpus, models.teacher))
    assert "val/frontier_ratio" not in logged.values[0]  # validating alone measures nothing new
    run = trainer(tmp_path, watch, logged, val_check_interval=1, limit_train_batches=1)
    run.fit(
        distillation(models.teacher, latent_global=0, latent_position=0),
        datamodule=rows(corpus, models.teacher),
    )
    # the first update is the fake model's: the student has not moved
    assert logged.values[1]["val/frontier_ratio"] == pytest.approx(1.0, abs=1e-5)


def test_the_best_checkpoint_can_be_chosen_by_the_ratio_and_the_curve_resumes(
    models: Folders, corpus: Path, tmp_path: Path
) -> None:
    keep = ModelCheckpoint(tmp_path, monitor="val/frontier_ratio", save_last=True)
    module, watch = distillation(models.teacher), monitor(models)
    run = trainer(tmp_path, watch, keep, val_check_interval=2, enable_checkpointing=True)
    run.fit(module, datamodule=rows(corpus, models.teacher))
    assert keep.best_model_score is not None
    again = monitor(models)
    state = torch.load(keep.last_model_path, weights_only=True)["callbacks"]
    again.load_state_dict(next(v for k, v in state.items() if "FrontierMonitor" in k))
    assert again.curve == watch.curve


def test_outside_the_curve_the_ratio_is_infinite(
    models: Folders, corpus: Path, tmp_path: Path
) -> None:
    module, logged = distillation(models.teacher), Logged()
    cold = monitor(models, temperatures=(0.02, 0.01))
    run = trainer(tmp_path, cold, logged, val_check_interval=2)
    run.fit(module, datamodule=rows(corpus, models.teacher))
    assert logged.values[-1]["val/frontier_ratio"] == math.inf


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"steps": 0}, "steps is 0"),
        ({"num_samples": 0}, "num_samples is 0"),
        ({"temperatures": (1.0,)}, r"temperatures is \[1.0\]; a curve needs two"),
        ({"temperatures": (1.0, 0.0)}, "above 0 and finite"),
    ],
)
def test_settings_without_a_meaning_are_refused(
    settings: dict[str, Any], told: str, models: Folders
) -> None:
    with pytest.raises(UserError, match=told):
        monitor(models, **settings)


def test_a_missing_evaluator_and_another_training_are_refused_before_any_update(
    models: Folders, corpus: Path, tmp_path: Path
) -> None:
    module = distillation(models.teacher)
    lost = FrontierMonitor(str(tmp_path / "none"), steps=2)
    with pytest.raises(UserError, match="none"):
        trainer(tmp_path, lost).fit(module, datamodule=rows(corpus, models.teacher))
    assert module.student_updates == module.fake_updates == 0
    with pytest.raises(UserError, match="the model is a TeacherModule; leave the callback out"):
        trainer(tmp_path, monitor(models)).fit(
            teacher_training(models.teacher), datamodule=rows(corpus, models.teacher)
        )


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_the_processes_of_a_gpu_run_can_add_their_sums_up(
    models: Folders, corpus: Path, tmp_path: Path
) -> None:
    # NCCL serves tensors of the device alone; one process is enough to meet it
    module, watch = distillation(models.teacher), monitor(models)
    run = trainer(
        tmp_path,
        watch,
        accelerator="gpu",
        strategy="ddp_find_unused_parameters_true",
        val_check_interval=1,
    )
    run.fit(module, datamodule=rows(corpus, models.teacher))
    assert len(watch.curve) == len(TEMPERATURES)
