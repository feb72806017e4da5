"""A batch gives the same gradients on one process, on two, and in micro batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.plugins import DoublePrecision
from torch import Tensor

import idlm
from idlm.cli.main import main
from idlm.models import DiffusionConfig, DiffusionLM, export_folder, load_tokenizer
from idlm.objectives import DMMD, IDLM, SDTT, VADD
from idlm.training.sharding import ShardedStrategy, full_state
from tests.launched import launch
from tests.tiny_models import LENGTH, Folders
from tests.training.helpers import QUIET, Record, differs, distillation, rows, trainer

pytestmark = QUIET

OBJECTIVES = {
    "idlm": (IDLM, "absorbing", {}),
    "dmmd": (lambda: DMMD(target_steps=4), "absorbing", {}),
    "dmmd_uniform": (lambda: DMMD(target_steps=4), "uniform", {}),
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
        self.losses: list[float] = []

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any
    ) -> None:
        parts = {"student": pl_module.student, "auxiliary": pl_module.auxiliary}
        for part, network in parts.items():
            for name, p in [] if network is None else network.named_parameters():
                if p.grad is not None:
                    self.found[f"{part}.{name}"] = full_state(p.grad).clone()


def gradients(
    name: str, teachers: dict[str, Path], corpus: Path, folder: Path, **settings: Any
) -> Gradients:
    """Of the first update of every network that the objective trains."""
    make, process, own = OBJECTIVES[name]
    teacher, micro = teachers[process], settings.pop("micro_batch_size", 4)
    kept = KeepGradients()
    module = distillation(
        teacher,
        make(),
        fresh_student=True,  # far from its teacher, so that gradients are large
        max_student_updates=1,
        micro_batch_size=micro,
        clip=0.0,
        **own,
    )
    # one rounding can flip a drawn token, and with it everything after: keep roundings small
    settings = {"precision": "64-true", "limit_val_batches": 0, **settings}
    run = trainer(folder, kept, **settings)
    run.fit(module, datamodule=rows(corpus, teacher))
    return kept.found


def test_two_processes_and_micro_batches_make_the_gradients_of_one_process(
    teachers: dict[str, Path], corpus: Path, tmp_path: Path
) -> None:
    def shared(rank: int) -> dict[str, Gradients]:
        ddp = {"devices": 2, "strategy": "ddp_find_unused_parameters_true"}
        return {n: gradients(n, teachers, corpus, tmp_path, **ddp) for n in OBJECTIVES}

    torch.set_num_threads(1)
    both = launch(2, shared)
    for name in OBJECTIVES:
        alone = gradients(name, teachers, corpus, tmp_path)
        parts = gradients(name, teachers, corpus, tmp_path, micro_batch_size=1)
        assert {key.split(".")[0] for key in alone} >= {"student"}
        assert sum(float(g.norm()) for g in alone.values()) > 1e-2, name
        for other in (parts, *(found[name] for found in both)):
            assert other.keys() == alone.keys()
            for key, expected in alone.items():
                worst = float((other[key] - expected).abs().max())
                assert worst < 1e-6, (name, key, worst)


def test_sharded_networks_get_the_gradients_of_one_process(
    teachers: dict[str, Path], corpus: Path, tmp_path: Path
) -> None:
    # Lightning's strategy knows no precision="64-true", but the plugin of that name
    double = {"precision": None, "plugins": [DoublePrecision()]}

    def sharded(rank: int) -> dict[str, Gradients]:
        fsdp = {"devices": 2, "micro_batch_size": 1, **double}
        return {
            n: gradients(n, teachers, corpus, tmp_path, strategy=ShardedStrategy(), **fsdp)
            for n in OBJECTIVES
        }

    torch.set_num_threads(1)
    both = launch(2, sharded)
    for name in OBJECTIVES:
        alone = gradients(name, teachers, corpus, tmp_path)
        for found in both:
            assert found[name].keys() == alone.keys()
            for key, expected in alone.items():
                worst = float((found[name][key] - expected).abs().max())
                assert worst < 1e-6, (name, key, worst)


SHARED = {"ddp": lambda: "ddp_find_unused_parameters_true", "sharded": ShardedStrategy}


def train(
    teacher: Path, corpus: Path, folder: Path, updates: int, **settings: Any
) -> tuple[list[float], L.Trainer]:
    """The losses of a distillation in double precision, until so many student updates."""
    start = settings.pop("ckpt_path", None)
    record = Record()
    module = distillation(teacher, IDLM(), max_student_updates=updates, ema_decay=0.5, lr=1e-4)
    plugins = [DoublePrecision()]
    run = trainer(folder, record, precision=None, plugins=plugins, **settings)
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
                teacher, corpus, tmp_path / name, 2, devices=2, strategy=strategy()
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
        shared = {"devices": 2, "strategy": ShardedStrategy(), "ckpt_path": last}
        return train(teacher, corpus, tmp_path / "two", 3, **shared)[0]

    for rest in launch(2, second_half):
        assert [*begun, *rest] == pytest.approx(straight, rel=1e-6, abs=1e-9)
