"""What is not finite is named before it reaches a weight, an average or an optimiser."""

from __future__ import annotations

import copy
import io
import math
from contextlib import nullcontext, redirect_stderr
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from idlm.cli.main import main
from idlm.objectives import IDLM, LossSum
from idlm.reliability.compare import same
from idlm.reliability.tiny import make_tiny
from idlm.training import DistillationModule
from idlm.training.evaluator import EvaluatorModule
from idlm.training.finite import Part, describe
from tests.launched import launch
from tests.tiny_models import LENGTH, Folders
from tests.training.helpers import QUIET, distillation, rows, trainer

pytestmark = QUIET


class Poisoned(IDLM):
    """Makes the student's loss or its gradient not finite where sample 22 is in the micro batch."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.what = what

    def student_loss(self, networks: Any, tokens: Tensor, draw: Any) -> LossSum:
        result = super().student_loss(networks, tokens, draw)
        if not draw.training or 22 not in draw.sample.tolist():
            return result
        if self.what == "loss":
            logs = {**result.logs, "student_entropy": torch.tensor(math.nan)}
            return LossSum(result.total * math.inf, result.tokens, logs)
        kink = (result.total - result.total.detach()).abs().sqrt()  # 0, with infinite slope
        return LossSum(result.total + kink, result.tokens, result.logs)


def everything(module: Any) -> dict[str, Any]:
    optimizers = [copy.deepcopy(optimizer.state_dict()) for optimizer in module.trainer.optimizers]
    state = {name: local(value).clone() for name, value in module.state_dict().items()}
    return {"state": state, "optimizers": optimizers, "updates": module.student_updates}


@pytest.mark.parametrize(
    ("what", "words"),
    [
        # batch 5 is the student's third; micro batches of two: 22 has a neighbour
        ("loss", r"the loss is not finite \(student_entropy nan\), samples 22 to 23;"),
        ("gradient", r"the gradient of student\.\S+, .* and \d+ more is not finite, samples 20 to"),
    ],
)
def test_the_term_and_the_samples_are_named_and_nothing_has_changed(
    what: str, words: str, models: Folders, corpus: Path, tmp_path: Path
) -> None:
    module = distillation(models.teacher, Poisoned(what), max_student_updates=9, micro_batch_size=2)
    kept: dict[str, Any] = {}
    refuse = module._refuse

    def note(*args: Any) -> None:
        kept.update(everything(module))
        refuse(*args)

    module._refuse = note  # type: ignore[method-assign]
    with pytest.raises(FloatingPointError, match=f"student update 5: .*{words}") as caught:
        trainer(tmp_path).fit(module, datamodule=rows(corpus, models.teacher))
    assert "no weight was changed, no average and no optimiser's state" in str(caught.value)
    assert kept["updates"] == module.student_updates == 2
    assert all(bool(v.isfinite().all()) for v in kept["state"].values())
    assert kept["optimizers"][0]["state"][0]["step"] == 2
    assert same(everything(module), kept)


def test_the_state_after_the_refusal_is_that_of_a_run_that_ended_before(
    models: Folders, corpus: Path, tmp_path: Path
) -> None:
    """The student's own: the fake model has had one update more."""
    found = []
    for updates in (2, 9):
        module = distillation(models.teacher, Poisoned("loss"), max_student_updates=updates)
        with nullcontext() if updates == 2 else pytest.raises(FloatingPointError):
            trainer(tmp_path).fit(module, datamodule=rows(corpus, models.teacher))
        found.append(everything(module))
    before, after = found
    own = [k for k in before["state"] if k.startswith(("student.", "ema."))]
    assert len(own) > 10
    assert same({k: after["state"][k] for k in own}, {k: before["state"][k] for k in own})
    assert same(after["optimizers"][0], before["optimizers"][0])


def identity(value: Tensor) -> Tensor:
    return value


def test_data_that_are_not_finite_come_before_everything_they_cause() -> None:
    data = torch.zeros(4, 2)
    data[2, 1] = math.inf
    batch = {"data": data, "index": torch.arange(8, 12)}
    bad = [Part(batch["index"], {"loss": torch.tensor(math.nan)})]
    gradients = [("weight", torch.tensor([math.nan]))]
    assert describe(batch, bad, gradients, identity) == "the data (data) are not finite, sample 10"


def test_a_norm_too_large_for_its_type_is_told_from_a_bad_gradient() -> None:
    batch = {"input_ids": torch.zeros(2, 2, dtype=torch.long), "index": torch.arange(2)}
    fine = [Part(batch["index"], {"loss": torch.tensor(1.0)})]
    said = describe(batch, fine, [("weight", torch.full((2,), 3e38))], identity)
    assert said == "the norm of all gradients is not finite, though each of them is, samples 0 to 1"


def test_processes_agree_on_the_samples_and_give_the_reason_of_the_one_that_has_it() -> None:
    """Rank 0 is fine, rank 1 has a bad loss; gradients are bad on both, as DDP leaves them."""
    indices = [torch.arange(0, 2), torch.arange(2, 4)]
    parts = [
        [Part(indices[0], {"loss": torch.tensor(1.0)})],
        [Part(indices[1], {"loss": torch.tensor(math.nan)})],
    ]
    gradients = [("weight", torch.tensor([math.nan]))]
    sent: list[Tensor] = []

    def send(value: Tensor) -> Tensor:
        sent.append(value)
        return value

    for index, part in zip(indices, parts, strict=True):
        describe({"index": index}, part, gradients, send)
    both = torch.stack(sent)
    said = [
        describe({"index": index}, part, gradients, lambda _: both)
        for index, part in zip(indices, parts, strict=True)
    ]
    assert said == ["the loss is not finite, samples 2 to 3"] * 2


@pytest.mark.parametrize("strategy", ["ddp_find_unused_parameters_true", "sharded"])
def test_a_bad_sample_on_one_of_two_processes_stops_both_and_is_named_once(
    strategy: str, tmp_path: Path
) -> None:
    command = make_tiny(tmp_path / "tiny").command(tmp_path / "run", updates=9)
    command += ["--trainer.devices=2", f"--trainer.strategy={strategy}"]
    real, kept = IDLM.student_loss, dict[str, Any]()
    refuse = DistillationModule._refuse

    def student_loss(self: Any, networks: Any, tokens: Tensor, draw: Any) -> LossSum:
        result = real(self, networks, tokens, draw)
        # update 5 is the student's second; 22 and 23 are the second process's
        bad = draw.training and 22 in draw.sample.tolist()
        return replace(result, total=result.total * math.nan) if bad else result

    def note(module: Any, *args: Any) -> None:
        kept.update(everything(module))
        kept["module"] = module
        refuse(module, *args)

    def work(rank: int) -> tuple[Any, str, bool, bool]:
        IDLM.student_loss = student_loss  # type: ignore[method-assign]
        DistillationModule._refuse = note  # type: ignore[method-assign]
        with redirect_stderr(io.StringIO()) as err, pytest.raises(SystemExit) as stop:
            main(command)
        module = kept.pop("module")
        finite = all(bool(full.isfinite().all()) for full in map(local, kept["state"].values()))
        return stop.value.code, err.getvalue(), same(everything(module), kept), finite

    (code, said, unchanged, finite), other = launch(2, work)
    assert (code, unchanged, finite) == (2, True, True), said
    assert other[0] == 2
    assert other[2:] == (True, True)
    assert "idlm:" not in other[1]
    [line] = [x for x in said.splitlines() if x.startswith("idlm:")]
    assert line.startswith("idlm: error: student update 5: loss nan")
    assert "the loss is not finite, samples 22 to 23; no weight was changed" in line
    assert torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt")["global_step"] == 3


def local(value: Tensor) -> Tensor:
    """This process's part."""
    return value.to_local() if isinstance(value, DTensor) else value


def test_a_training_that_diverges_ends_the_command_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def student_loss(self: Any, networks: Any, tokens: Tensor, draw: Any) -> LossSum:
        return LossSum(next(networks.student.parameters()).sum() * math.nan, tokens.numel())

    monkeypatch.setattr("idlm.objectives.IDLM.student_loss", student_loss)
    with pytest.raises(SystemExit) as stop:
        main(make_tiny(tmp_path / "tiny").command(tmp_path / "run", updates=3))
    assert stop.value.code == 2
    (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("idlm:")]
    assert line.startswith("idlm: error: student update 2: loss nan")
    assert "samples 8 to 11" in line


def test_an_evaluator_is_not_poisoned_either(models: Folders, tmp_path: Path) -> None:
    module = EvaluatorModule(
        str(models.teacher), n_layer=1, n_head=2, n_embd=8, n_positions=LENGTH, lr=1e-3
    )
    batches = [
        {"input_ids": torch.randint(0, 200, (2, LENGTH)), "index": torch.arange(2 * n, 2 * n + 2)}
        for n in range(3)
    ]
    kept: dict[str, Tensor] = {}
    nll, calls = module.nll, []

    def poisoned(rows: Tensor) -> Tensor:
        calls.append(len(rows))
        if len(calls) < 3:
            return nll(rows)
        kept.update({k: v.clone() for k, v in module.state_dict().items()})
        return nll(rows) * math.nan

    loader = torch.utils.data.DataLoader(batches, None)
    module.nll = poisoned  # type: ignore[method-assign]
    with pytest.raises(FloatingPointError, match=r"evaluator update 2: loss nan.*samples \[4, 5\]"):
        trainer(tmp_path).fit(module, loader, loader)
    assert same(module.state_dict(), kept)
