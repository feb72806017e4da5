"""A batch gives the same gradients on one process, on two, and in micro batches."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor

import idlm
from idlm.cli.main import main
from idlm.errors import UserError
from idlm.models import DiffusionConfig, DiffusionLM, export_folder, load_tokenizer
from idlm.objectives import DMMD, IDLM, SDTT, VADD, Di4C, IDLMDuo
from idlm.training import EvaluatorModule
from idlm.training.sharding import full_state
from tests.launched import launch
from tests.tiny_models import LENGTH, Folders
from tests.training.helpers import (
    QUIET,
    Record,
    differs,
    distillation,
    rows,
    teacher_training,
    trainer,
)

pytestmark = QUIET

OBJECTIVES = {
    "teacher": (None, "absorbing", {}),
    "idlm": (IDLM, "absorbing", {}),
    "dmmd": (lambda: DMMD(target_steps=4), "absorbing", {}),
    "dmmd_uniform": (lambda: DMMD(target_steps=4), "uniform", {}),
    # inputs that are smooth enough for a rounding to stay one
    "duo": (lambda: IDLMDuo(tau=0.1), "uniform", {}),
    "sdtt": (SDTT, "absorbing", {"fake_lr": None, "latent_global": 0, "latent_position": 0}),
    "vadd": (VADD, "absorbing", {"fake_lr": None, "latent_position": 0}),
}
Gradients = dict[str, Tensor]


@pytest.fixture(scope="module")
def teachers(models: Folders, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A teacher of each process, with tokens to prefer."""
    tokenizer = load_tokenizer(str(models.teacher))
    torch.manual_seed(1)
    config = DiffusionConfig(
        vocab_size=len(tokenizer),
        process="uniform",
        time_conditioning=True,
        model_length=LENGTH,
        hidden_dim=16,
        cond_dim=8,
        n_blocks=1,
        n_heads=2,
        dropout=0.0,
    )
    model = DiffusionLM(config)
    torch.nn.init.normal_(model.backbone.output_layer.linear.weight)
    uniform = export_folder(model, tmp_path_factory.mktemp("uniform") / "t", tokenizer=tokenizer)
    return {"absorbing": models.teacher, "uniform": uniform}


class KeepGradients(L.Callback):
    """What the last update of each network was made with: unclipped, it is still there."""

    def __init__(self) -> None:
        self.found: Gradients = {}
        self.share = 0.0

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any
    ) -> None:
        for name, p in pl_module.named_parameters():
            if p.grad is not None:
                self.found[name] = full_state(p.grad).clone()
        held = [(getattr(p, "_local_tensor", p).numel(), p.numel()) for p in pl_module.parameters()]
        self.share = sum(here for here, _ in held) / sum(whole for _, whole in held)


def gradients(
    name: str,
    teachers: dict[str, Path],
    corpus: Path,
    folder: Path,
    *,
    share: float = 1.0,
    **settings: Any,
) -> Gradients:
    """Of the first update of every network that is trained; ``share``: of the weights held here."""
    make, process, own = OBJECTIVES[name]
    teacher, kept = teachers[process], KeepGradients()
    common = {"clip": 0.0, "micro_batch_size": settings.pop("micro_batch_size", 4)}
    common["gradient_checkpointing"] = settings.pop("gradient_checkpointing", False)
    module: Any
    if make is None:
        module = teacher_training(teacher, max_updates=1, **common)
    else:
        # a fresh student is far from its teacher, so that gradients are large
        updates = {"max_student_updates": 1, "fresh_student": True}
        module = distillation(teacher, make(), **updates, **common, **own)
    # one rounding can flip a drawn token, and with it everything after: keep roundings small
    settings = {"precision": "64-true", "limit_val_batches": 0, **settings}
    run = trainer(folder, kept, **settings)
    run.fit(module, datamodule=rows(corpus, teacher))
    assert kept.share == pytest.approx(share, abs=0.02)
    return kept.found


def same_gradients(found: Gradients, expected: Gradients) -> None:
    """Within 1e-6, and large enough for that to mean something."""
    assert found.keys() == expected.keys()
    assert sum(float(g.norm()) for g in expected.values()) > 1e-2
    for key, value in expected.items():
        assert float((found[key] - value).abs().max()) < 1e-6, key


@pytest.fixture(scope="module")
def alone(
    teachers: dict[str, Path], corpus: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Gradients]:
    """The gradients of one process, in one piece."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("alone")
    return {name: gradients(name, teachers, corpus, folder) for name in OBJECTIVES}


def test_two_processes_make_the_gradients_of_one(
    alone: dict[str, Gradients], teachers: dict[str, Path], corpus: Path, tmp_path: Path
) -> None:
    def shared(rank: int) -> dict[str, Gradients]:
        ddp = {"devices": 2, "strategy": "ddp_find_unused_parameters_true"}
        return {n: gradients(n, teachers, corpus, tmp_path, **ddp) for n in OBJECTIVES}

    for found in launch(2, shared):
        for name, expected in alone.items():
            same_gradients(found[name], expected)


def test_micro_batches_make_the_gradients_of_a_batch(
    alone: dict[str, Gradients], teachers: dict[str, Path], corpus: Path, tmp_path: Path
) -> None:
    for name, expected in alone.items():
        found = gradients(name, teachers, corpus, tmp_path, micro_batch_size=1)
        same_gradients(found, expected)


def test_sharded_networks_get_the_gradients_of_one_process(
    alone: dict[str, Gradients], teachers: dict[str, Path], corpus: Path, tmp_path: Path
) -> None:
    def sharded(rank: int) -> dict[str, Gradients]:
        fsdp = {"devices": 2, "share": 0.5, "strategy": "sharded", "micro_batch_size": 1}
        return {
            n: gradients(
                n,
                teachers,
                corpus,
                tmp_path,
                gradient_checkpointing=n == "idlm",
                **fsdp,
            )
            for n in OBJECTIVES
        }

    for found in launch(2, sharded):
        for name, expected in alone.items():
            same_gradients(found[name], expected)


SHARED = {"ddp": "ddp_find_unused_parameters_true", "sharded": "sharded"}


def train(
    teacher: Path, corpus: Path, folder: Path, updates: int, **settings: Any
) -> tuple[list[float], L.Trainer]:
    """The losses of a distillation in double precision, until so many student updates."""
    start = settings.pop("ckpt_path", None)
    record = Record()
    module = distillation(teacher, IDLM(), max_student_updates=updates, ema_decay=0.5, lr=1e-4)
    run = trainer(folder, record, precision="64-true", **settings)
    run.fit(module, datamodule=rows(corpus, teacher), ckpt_path=start, weights_only=None)
    losses = [
        update[f"train/{name}_loss"]
        for number, update in enumerate(record.updates)
        for name in [("fake", "student")[number % 2]]
    ]
    return losses, run


def test_a_run_on_two_processes_continues_on_one_and_exports_the_same_model(
    teachers: dict[str, Path], corpus: Path, tmp_path: Path
) -> None:
    teacher = teachers["absorbing"]

    def first_half(rank: int) -> dict[str, list[float]]:
        losses = {}
        for name, strategy in SHARED.items():
            losses[name], run = train(
                teacher, corpus, tmp_path / name, 2, devices=2, strategy=strategy
            )
            run.save_checkpoint(tmp_path / name / "last.ckpt")
        return losses

    torch.set_num_threads(1)
    halves = launch(2, first_half)
    straight, _ = train(teacher, corpus, tmp_path / "straight", 4)
    assert len(straight) == 8
    for name in SHARED:
        folder, checkpoint = tmp_path / name, tmp_path / name / "last.ckpt"
        # what the run exported itself, and what `idlm export` makes of its checkpoint
        main(["export", "--checkpoint", str(checkpoint), "--output", str(folder / "made")])
        exported, made = (idlm.load(folder / n).state_dict() for n in ("export", "made"))
        assert differs(exported, made) == []
        rest, _ = train(teacher, corpus, folder / "rest", 4, ckpt_path=checkpoint)
        for half in halves:
            assert [*half[name], *rest] == pytest.approx(straight, rel=1e-6, abs=1e-9)
        ended, expected = (
            idlm.load(f / "export").state_dict() for f in (folder / "rest", tmp_path / "straight")
        )
        for key, value in expected.items():
            assert torch.allclose(ended[key], value, rtol=0, atol=1e-6), key


def test_two_processes_continue_a_sharded_run_that_one_began(
    teachers: dict[str, Path], corpus: Path, tmp_path: Path
) -> None:
    teacher, last = teachers["absorbing"], tmp_path / "last.ckpt"
    begun, run = train(teacher, corpus, tmp_path / "one", 1)
    run.save_checkpoint(last)
    straight, _ = train(teacher, corpus, tmp_path / "straight", 3)

    def second_half(rank: int) -> list[float]:
        shared = {"devices": 2, "strategy": "sharded", "ckpt_path": last}
        return train(teacher, corpus, tmp_path / "two", 3, **shared)[0]

    for rest in launch(2, second_half):
        assert [*begun, *rest] == pytest.approx(straight, rel=1e-6, abs=1e-9)


def test_what_would_hang_or_shard_wrongly_is_refused_in_a_sentence(
    models: Folders, corpus: Path, tmp_path: Path
) -> None:
    teacher, data = models.teacher, rows(corpus, models.teacher)
    cases: list[tuple[L.LightningModule, Any, str]] = [
        (
            distillation(teacher, Di4C(), fake_lr=None),
            "sharded",
            "Di4C cannot run with strategy sharded.*use ddp_find_unused_parameters_true",
        ),
        (
            teacher_training(teacher, muon_lr=1e-2),
            "sharded",
            "muon_lr is above 0, but Muon needs whole matrices.*set muon_lr to 0, or use",
        ),
        (
            teacher_training(teacher),
            ModelParallelStrategy(data_parallel_size=1, tensor_parallel_size=1),
            "strategy is ModelParallelStrategy.*use strategy sharded",
        ),
        (
            distillation(teacher, DMMD()),
            "ddp",
            "strategy ddp waits for gradients.*use strategy ddp_find_unused_parameters_true",
        ),
        (
            EvaluatorModule(str(teacher), n_layer=1, n_head=1, n_embd=8),
            "sharded",
            "EvaluatorModule does not shard its network.*use strategy ddp",
        ),
    ]

    def refused(rank: int) -> list[str]:
        said = []
        for module, strategy, _ in cases:
            try:
                trainer(tmp_path, strategy=strategy).fit(module, datamodule=data)
                said.append("nothing")
            except UserError as error:
                said.append(str(error))
        return said

    [said] = launch(1, refused)
    for sentence, (_, _, pattern) in zip(said, cases, strict=True):
        assert re.search(pattern, sentence), sentence
