"""The uniform process end to end: a teacher trained, distilled by every objective, and sampled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import idlm
from idlm.errors import UserError
from idlm.objectives import DMMD, IDLM, AlternatingDistillation, IDLMDuo
from tests.tiny_models import Folders
from tests.training.helpers import (
    QUIET,
    Record,
    copy_of,
    differs,
    distillation,
    rows,
    teacher_training,
    trainer,
)

pytestmark = QUIET


@pytest.fixture(scope="module")
def teacher(models: Folders, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A uniform teacher of forty updates."""
    folder = tmp_path_factory.mktemp("uniform")
    module = teacher_training(
        models.teacher, process="uniform", max_updates=40, lr=2e-2, export_dir=str(folder / "made")
    )
    data, run = rows(corpus, models.teacher), trainer(folder)
    [before] = run.validate(module, datamodule=data, verbose=False)
    run.fit(module, datamodule=data)
    [after] = run.validate(module, datamodule=data, verbose=False)
    assert after["val/nelbo"] < before["val/nelbo"] - 0.5
    assert differs(copy_of(idlm.load(folder / "made")), copy_of(module.ema.module)) == []
    return folder / "made"


def test_a_uniform_teacher_has_no_mask_is_told_the_time_and_generates(
    teacher: Path, models: Folders
) -> None:
    model = idlm.load(teacher)
    assert (model.process.name, model.config.time_conditioning) == ("uniform", True)
    # no mask state: one state less than the masked model of the same tokenizer
    assert model.config.vocab_size == idlm.load(models.teacher).config.vocab_size - 1
    assert idlm.generate(model, 2, 8, 4, seed=0).tokens.shape == (2, 8)
    card = (teacher / "README.md").read_text()
    assert "# Uniform diffusion language model" in card
    assert "NELBO of UDLM" in card
    assert "| process | uniform |" in card


@pytest.mark.parametrize(
    "objective",
    [
        DMMD(target_steps=4),
        DMMD(teacher_temperature=0.8, teacher_top_p=0.9),
        AlternatingDistillation(renoise="fresh", anchor=0.0),
        IDLMDuo(),
        IDLMDuo(detach_state=True, time_draws="tied"),
    ],
    ids=["dmmd", "sharpened", "fresh", "duo", "detached"],
)
def test_every_objective_of_the_uniform_process_trains_and_exports(
    objective: Any, teacher: Path, corpus: Path, tmp_path: Path
) -> None:
    record = Record()
    module = distillation(teacher, objective, max_student_updates=2)
    run = trainer(tmp_path, record)
    run.fit(module, datamodule=rows(corpus, teacher))
    for update in record.of_student():
        assert update["train/student_loss"] != 0
        assert 0 < update["train/student_entropy"] <= 5.71
        assert update["train/fake_grad_norm"] > 0
        assert update["train/student_grad_norm"] > 0
    assert {"val/student_loss", "val/student_entropy"} <= run.callback_metrics.keys()
    student = idlm.load(tmp_path / "export")
    assert differs(copy_of(student), copy_of(module.ema.module)) == []
    assert student.has_latent
    assert idlm.generate(student, 1, 8, 2, seed=0).tokens.shape == (1, 8)
    card = (tmp_path / "export" / "README.md").read_text()
    assert "# Few-step uniform diffusion generator" in card
    assert f"Distilled with {type(objective).__name__} (" in card


def test_a_pairing_that_is_not_defined_is_refused_before_training(
    teacher: Path, models: Folders
) -> None:
    for folder, objective, process in (
        (teacher, IDLM(), "uniform"),
        (models.teacher, IDLMDuo(), "absorbing"),
    ):
        name = type(objective).__name__
        with pytest.raises(UserError, match=f"{name} is defined for .* process is '{process}'"):
            distillation(folder, objective).configure_model()


def test_a_checkpoint_keeps_its_process(teacher: Path, models: Folders) -> None:
    module = teacher_training(teacher, init=str(teacher))
    module.configure_model()
    assert module.model.process.name == "uniform"
    with pytest.raises(UserError, match=r"process is absorbing but init .* has uniform"):
        teacher_training(teacher, init=str(teacher), process="absorbing").configure_model()


def test_an_unknown_process_is_refused(models: Folders) -> None:
    with pytest.raises(UserError, match="process is 'gauss'; choose one of absorbing, uniform"):
        teacher_training(models.teacher, process="gauss")


def test_time_conditioning_may_be_chosen(models: Folders) -> None:
    module = teacher_training(models.teacher, process="uniform", time_conditioning=False)
    module.configure_model()
    assert module.model.config.time_conditioning is False
    plain = teacher_training(models.teacher)
    plain.configure_model()
    assert (plain.model.process.name, plain.model.config.time_conditioning) == ("absorbing", False)


def test_a_micro_batch_and_a_batch_give_the_same_update(
    teacher: Path, corpus: Path, tmp_path: Path
) -> None:
    results = []
    for size in (4, 1):
        torch.manual_seed(0)
        module = distillation(teacher, IDLMDuo(), max_student_updates=1, micro_batch_size=size)
        record = Record()
        folder = tmp_path / str(size)
        trainer(folder, record, limit_val_batches=0).fit(module, datamodule=rows(corpus, teacher))
        results.append(record.of_student()[0])
    for name in ("train/student_loss", "train/student_grad_norm", "train/fake_grad_norm"):
        # the fake model has made one update of Adam, which divides by small gradients
        assert results[0][name] == pytest.approx(results[1][name], rel=1e-2)
