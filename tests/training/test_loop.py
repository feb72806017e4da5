"""What every training promises: the update, its schedule, its average, its end."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from idlm.errors import UserError
from idlm.objectives import IDLM, LossSum, masked_nelbo
from idlm.random import Stream
from idlm.training import teacher as teacher_module
from idlm.training.loop import average_weights, lr_factor
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


class Gradients(L.Callback):
    """The gradients that the last update of each network used."""

    def __init__(self) -> None:
        self.found: dict[str, torch.Tensor] = {}

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *args: Any) -> None:
        named = module.named_parameters()
        self.found.update({n: p.grad.clone() for n, p in named if p.grad is not None})

    @property
    def norm(self) -> float:
        return float(torch.stack([g.norm() for g in self.found.values()]).norm())


# Micro batches


@pytest.mark.parametrize("size", [1, 2, 3])
def test_a_batch_in_micro_batches_has_the_gradient_of_the_whole(
    size: int, models: Folders, corpus: Path, tmp_path: Path
) -> None:
    found = []
    for micro_batch_size in (4, size):
        record, gradients = Record(), Gradients()
        module = distillation(
            models.teacher, max_student_updates=1, micro_batch_size=micro_batch_size, clip=0.0
        )
        run = trainer(tmp_path, record, gradients, precision="64-true")
        run.fit(module, datamodule=rows(corpus, models.teacher))
        found.append((gradients.found, record.updates[-1]))
    (whole, logged), (parts, logged_parts) = found
    assert any(name.startswith("student.") and g.abs().max() > 1e-6 for name, g in whole.items())
    assert any(name.startswith("auxiliary.") and g.abs().max() > 1e-6 for name, g in whole.items())
    for name, gradient in whole.items():
        # fp64; times and losses' weights are fp32 but the same in both
        torch.testing.assert_close(parts[name], gradient, atol=1e-9, rtol=1e-6)
    for key in ("train/fake_loss", "train/student_loss", "train/student_grad_norm"):
        assert logged_parts[key] == pytest.approx(logged[key], rel=1e-5)


def test_a_micro_batch_without_masked_positions_leaves_the_logged_means_alone(
    models: Folders, corpus: Path, tmp_path: Path
) -> None:
    class Halves(IDLM):
        calls = 0

        def student_loss(self, *args: Any) -> LossSum:
            result = super().student_loss(*args)
            self.calls += 1
            entropy = math.nan if self.calls % 2 else 2.5
            return LossSum(result.total, result.tokens, {"student_entropy": torch.tensor(entropy)})

    record = Record()
    module = distillation(models.teacher, Halves(), max_student_updates=1, micro_batch_size=2)
    trainer(tmp_path, record, limit_val_batches=0).fit(
        module, datamodule=rows(corpus, models.teacher)
    )
    assert record.updates[-1]["train/student_entropy"] == 2.5


@pytest.mark.parametrize(("name", "value"), [("micro_batch_size", 0), ("clip", -1.0)])
def test_impossible_sizes_are_refused(name: str, value: float, models: Folders) -> None:
    with pytest.raises(UserError, match=f"{name} is {value}"):
        teacher_training(models.teacher, **{name: value})


# Clipping


def test_clipping_scales_the_gradient_and_the_logged_norm_is_the_one_before(
    models: Folders, corpus: Path, tmp_path: Path
) -> None:
    norms, logged = [], []
    for clip in (0.0, 1e-3):
        record, gradients = Record(), Gradients()
        module = teacher_training(models.teacher, max_updates=1, clip=clip)
        run = trainer(tmp_path, record, gradients)
        run.fit(module, datamodule=rows(corpus, models.teacher))
        norms.append(gradients.norm)
        logged.append(record.updates[0]["train/grad_norm"])
    assert logged[0] == logged[1] > 1e-2
    assert norms[0] == pytest.approx(logged[0], rel=1e-5)
    assert norms[1] == pytest.approx(1e-3, rel=1e-2)


def test_clipping_changes_the_step(models: Folders, corpus: Path, tmp_path: Path) -> None:
    moved = []
    for clip in (0.0, 1e-9):  # far below AdamW's eps, so that the step itself shrinks
        module = teacher_training(models.teacher, max_updates=1, clip=clip)
        module.configure_model()
        before = copy_of(module.model)
        trainer(tmp_path).fit(module, datamodule=rows(corpus, models.teacher))
        after = copy_of(module.model)
        moved.append(max(float((after[name] - before[name]).abs().max()) for name in before))
    assert moved[1] < 0.1 * moved[0]


# Learning rates


def test_the_learning_rate_warms_up_and_stays_or_falls_to_zero() -> None:
    def factors(decay: Any) -> list[float]:
        return [lr_factor(step, warmup=2, decay=decay, total=6) for step in range(8)]

    assert factors("constant") == [0.5, 1, 1, 1, 1, 1, 1, 1]
    assert factors("linear") == [0.5, 1, 1, 0.75, 0.5, 0.25, 0, 0]
    assert factors("cosine") == pytest.approx(
        [0.5, 1, 1, 0.5 + 0.125**0.5, 0.5, 0.5 - 0.125**0.5, 0, 0]
    )
    assert lr_factor(0, warmup=0, decay="constant", total=1) == 1.0


# Average


def test_the_average_starts_at_the_first_weights_and_follows_mdlms_recursion() -> None:
    network = torch.nn.Linear(2, 2).double()
    average = average_weights(network, 0.4)
    expected = network.weight.detach().clone()
    for n in range(1, 8):
        with torch.no_grad():
            network.weight.normal_()
        average.update_parameters(network)
        decay = min(0.4, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * network.weight.detach()
        torch.testing.assert_close(average.module.weight, expected, atol=1e-12, rtol=0)
    assert not any(p.requires_grad for p in average.parameters())


@pytest.mark.parametrize("decay", [-0.1, 1.0])
def test_an_impossible_averaging_decay_is_refused(decay: float) -> None:
    with pytest.raises(UserError, match=rf"ema_decay is {decay}"):
        average_weights(torch.nn.Linear(1, 1), decay)


# What stops an update


@pytest.mark.parametrize("network", ["fake", "student"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_the_run_and_changes_nothing(
    network: str, value: float, models: Folders, corpus: Path, tmp_path: Path
) -> None:
    class Broken(IDLM):
        def break_(self, result: LossSum, which: str) -> LossSum:
            total = result.total * value if which == network else result.total
            return LossSum(total, result.tokens, result.logs)

        def student_loss(self, *args: Any) -> LossSum:
            return self.break_(super().student_loss(*args), "student")

        def auxiliary_loss(self, *args: Any) -> LossSum:
            return self.break_(super().auxiliary_loss(*args), "fake")

    module = distillation(models.teacher, Broken())
    module.configure_model()
    before = {name: copy_of(getattr(module, name)) for name in ("student", "auxiliary", "ema")}
    with pytest.raises(FloatingPointError, match=f"{network} update .* no weight was changed"):
        trainer(tmp_path).fit(module, datamodule=rows(corpus, models.teacher))
    untouched = ("student", "ema", "auxiliary") if network == "fake" else ("student", "ema")
    for name in untouched:
        assert differs(copy_of(getattr(module, name)), before[name]) == []
    assert module.student_updates == 0
    assert module.fake_updates == (0 if network == "fake" else 1)


def test_a_gradient_that_is_not_finite_stops_the_run(
    models: Folders, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def steep(*args: Any) -> LossSum:
        result = masked_nelbo(*args)
        kink = (result.total - result.total.detach()).abs().sqrt()  # 0, with infinite slope
        return LossSum(result.total + kink, result.tokens, result.logs)

    monkeypatch.setitem(teacher_module._NELBO, "absorbing", steep)
    with pytest.raises(FloatingPointError, match=r"teacher update 0: loss \d.*gradient norm nan"):
        trainer(tmp_path).fit(
            teacher_training(models.teacher), datamodule=rows(corpus, models.teacher)
        )


# Dropout


@pytest.mark.parametrize("kind", ["cpu", "cuda", "mps", "xpu"])
def test_dropout_is_tied_to_the_update_on_every_kind_of_device(
    kind: str, models: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, seeded = teacher_training(models.teacher), []
    monkeypatch.setattr(type(module), "device", property(lambda _: torch.device(kind)))
    with torch.random.fork_rng(devices=[]):
        monkeypatch.setattr(torch, "manual_seed", seeded.append)
        module._seed_dropout(17)
        if kind == "cpu":
            assert torch.default_generator.initial_seed() == 17
    # that one reaches the generators of all backends, and takes long where CUDA is not up
    assert seeded == ([] if kind == "cpu" else [17])


# What is refused before the first update


def test_precisions_that_lose_updates_are_refused(
    models: Folders, corpus: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"precision is 'bf16-true'.*32-true, bf16-mixed, 64-true"):
        trainer(tmp_path, precision="bf16-true").fit(
            teacher_training(models.teacher), datamodule=rows(corpus, models.teacher)
        )


def test_data_in_another_vocabulary_is_refused(
    models: Folders, corpus: Path, tmp_path: Path
) -> None:
    from idlm.data import train_bpe

    other = train_bpe([corpus.read_text()], 280, tmp_path / "other")
    with pytest.raises(UserError, match=r"is cut into the 280 tokens of .*other.*the 300"):
        trainer(tmp_path).fit(distillation(models.teacher), datamodule=rows(corpus, other))


# Validation


def test_a_validation_row_has_the_same_noise_on_any_topology(models: Folders) -> None:
    module = teacher_training(models.teacher)

    def named(numbers: list[int]) -> dict[int, tuple[float, float]]:
        draw = module.validation_draw({"index": torch.tensor(numbers)})
        times, noise = draw.times(Stream.TIME), draw.uniform(stream=Stream.CORRUPT)
        return dict(zip(numbers, zip(times.tolist(), noise.tolist(), strict=True), strict=True))

    whole = named([*range(19)])
    for processes, size in ((1, 8), (2, 8), (3, 4), (2, 1)):
        for rank in range(processes):
            own = [*range(rank, 19, processes)]
            for first in range(0, len(own), size):
                part = own[first : first + size]
                assert named(part) == {number: whole[number] for number in part}


@pytest.mark.parametrize("processes", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("count", [4, 13, 64])
def test_the_times_of_any_processes_validation_rows_cover_the_interval(
    processes: int, count: int, models: Folders
) -> None:
    module = teacher_training(models.teacher)
    for rank in range(processes):
        numbers = torch.arange(rank, rank + count * processes, processes)
        times = module.validation_draw({"index": numbers}).times(Stream.TIME).sort().values
        gaps = torch.diff(times, prepend=torch.zeros(1), append=torch.ones(1))
        # of rows in order the largest gap of a lattice is about 2 / count
        assert float(gaps.max()) < 4.5 / count + 1 / 89
