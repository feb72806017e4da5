"""The distillation module with networks in memory, and with every kind of objective."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import idlm
from idlm.errors import UserError
from idlm.models import DiffusionConfig, DiffusionLM, load_tokenizer
from idlm.objectives import DMMD, IDLM, DistillationObjective, Draw, LossSum, Networks
from idlm.training import CollapseGuard, DistillationModule
from tests.tiny_models import Folders
from tests.training.helpers import QUIET, copy_of, differs, trainer

pytestmark = [
    *QUIET,
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*have no `val_dataloader`.*"),
]

SIZES: dict[str, Any] = {
    "vocab_size": 5,
    "model_length": 4,
    "hidden_dim": 8,
    "cond_dim": 4,
    "n_blocks": 1,
    "n_heads": 2,
    "dropout": 0.0,
}


def network() -> DiffusionLM:
    torch.manual_seed(0)
    model = DiffusionLM(DiffusionConfig(**SIZES))
    torch.nn.init.normal_(model.backbone.output_layer.linear.weight)
    return model


class Rows(Dataset[dict[str, Tensor]]):
    """Random tokens, or points of a plane."""

    def __init__(self, kind: str) -> None:
        generator = torch.Generator().manual_seed(1)
        points = torch.randn(64, 2, generator=generator)
        tokens = torch.randint(0, 4, (64, 4), generator=generator)
        self.rows, self.kind = (points if kind == "data" else tokens), kind

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        return {self.kind: self.rows[number], "index": torch.tensor(number)}


def loader(kind: str = "input_ids", batch_size: int = 4) -> DataLoader[dict[str, Tensor]]:
    return DataLoader(Rows(kind), batch_size=batch_size)


def distil(teacher: Any, objective: Any, **settings: Any) -> DistillationModule:
    defaults = {"max_student_updates": 3, "lr": 1e-2, "warmup": 1, "ema_decay": 0.5}
    return DistillationModule.from_networks(teacher, objective, **{**defaults, **settings})


class Alone(DistillationObjective):
    """A student that imitates; at every second update it becomes the teacher."""

    processes = ("absorbing",)
    trains = "student"
    latent = (0, 0)
    changes_teacher = True

    def __init__(self) -> None:
        self.rounds = 0
        self._private = torch.zeros(1)

    def student_loss(self, networks: Networks, tokens: Tensor, draw: Draw) -> LossSum:
        assert networks.auxiliary is None
        total = networks.student(tokens).logits.square().sum()
        return LossSum(total, tokens.numel())

    def after_student_update(self, networks: Networks, average: Any, updates: int) -> None:
        if updates % 2 == 0:
            self.rounds += 1
            networks.teacher.load_state_dict(networks.student.state_dict())

    def state_dict(self) -> dict[str, Any]:
        return {"rounds": self.rounds}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.rounds = state["rounds"]


class Together(DistillationObjective):
    """A student and a module beside it in one loss."""

    processes = ("absorbing",)
    trains = "jointly"

    def make_auxiliary(self, teacher: DiffusionLM, student: DiffusionLM) -> nn.Module:
        return nn.Linear(1, 1)

    def student_loss(self, networks: Networks, tokens: Tensor, draw: Draw) -> LossSum:
        assert networks.auxiliary is not None
        assert networks.auxiliary.training == draw.training
        scale = networks.auxiliary(torch.ones(1, 1))
        latent = draw.latent(networks.student, tokens.shape[1])
        logits = networks.student(tokens, latent=latent).logits
        return LossSum((logits * scale).square().sum(), tokens.numel())


def test_networks_in_memory_are_distilled_and_the_one_given_stays_as_it_was(tmp_path: Path) -> None:
    teacher = network()
    before = copy_of(teacher)
    module = distil(teacher, DMMD(), latent_global=2, latent_position=0)
    trainer(tmp_path).fit(module, loader())
    assert module.teacher is teacher
    assert differs(copy_of(teacher), before) == []
    assert module.student_updates == module.fake_updates == 3
    assert module.student.config.latent_global == 2
    assert len(differs(copy_of(module.auxiliary), before)) > 5
    assert list(tmp_path.iterdir()) == []  # no export that nobody asked for


def test_a_student_in_memory_is_copied_and_may_be_of_new_weights(tmp_path: Path) -> None:
    teacher, start = network(), network().with_latent(latent_global=3, latent_position=0)
    with torch.no_grad():
        start.backbone.vocab_embed.embedding.add_(1.0)
    module = distil(teacher, DMMD(), student=start, max_student_updates=1, lr=0.0)
    trainer(tmp_path).fit(module, loader())
    assert module.student is not start
    assert differs(copy_of(module.student), copy_of(start)) == []
    fresh = distil(teacher, DMMD(), fresh_student=True, max_student_updates=1, lr=0.0, seed=5)
    trainer(tmp_path).fit(fresh, loader())
    ours, theirs = (copy_of(n)["backbone.blocks.0.attn_qkv.weight"] for n in (fresh.student, start))
    assert not torch.equal(ours, theirs)


def test_an_objective_without_a_fake_model_trains_the_student_in_every_step(
    tmp_path: Path,
) -> None:
    module = distil(network(), Alone(), max_student_updates=4)
    run = trainer(tmp_path)
    run.fit(module, loader())
    assert (module.student_updates, module.fake_updates, run.global_step) == (4, 0, 4)
    assert not module.student.has_latent
    assert "fake_updates" not in run.callback_metrics


def test_a_teacher_that_the_objective_changes_is_saved_and_resumed(tmp_path: Path) -> None:
    whole = distil(network(), Alone(), max_student_updates=5)
    trainer(tmp_path).fit(whole, loader(batch_size=64))
    first = distil(network(), Alone(), max_student_updates=3)
    run = trainer(tmp_path)
    run.fit(first, loader(batch_size=64))
    run.save_checkpoint(tmp_path / "three.ckpt")
    second = distil(network(), Alone(), max_student_updates=5)
    trainer(tmp_path).fit(second, loader(batch_size=64), ckpt_path=tmp_path / "three.ckpt")
    assert second.objective.rounds == whole.objective.rounds == 2
    assert differs(copy_of(second.teacher), copy_of(whole.teacher)) == []
    assert differs(copy_of(second.student), copy_of(whole.student)) == []
    assert differs(copy_of(whole.teacher), copy_of(network())) != []
    given = network()
    trainer(tmp_path).fit(distil(given, Alone(), max_student_updates=2), loader())
    assert differs(copy_of(given), copy_of(network())) == []


def test_a_joint_objective_trains_both_networks_with_one_optimiser(tmp_path: Path) -> None:
    module = distil(network(), Together())
    run = trainer(tmp_path, limit_val_batches=1)
    torch.manual_seed(3)
    run.fit(module, loader(), loader())
    assert len(run.optimizers) == 1
    held = sum(p.numel() for p in run.optimizers[0].param_groups[0]["params"])
    assert held == sum(
        p.numel() for m in (module.student, module.auxiliary) for p in m.parameters()
    )
    names = {k for k in run.callback_metrics if "entropy" in k}
    assert names == set()  # it logs none, so none is made up
    module.eval()


@pytest.mark.parametrize("name", ["fake_lr", "fake_per_student"])
def test_settings_of_a_fake_model_are_refused_where_there_is_none(name: str) -> None:
    with pytest.raises(UserError, match=f"{name} is 1, but Alone has no fake model"):
        distil(network(), Alone(), **{name: 1})


def test_the_collapse_guard_says_when_there_is_no_entropy_to_watch(tmp_path: Path) -> None:
    run = trainer(tmp_path, CollapseGuard(1.0))
    with pytest.raises(UserError, match="CollapseGuard watches 'train/student_entropy'"):
        run.fit(distil(network(), Alone()), loader())


def test_the_fake_models_rate_is_the_students_if_not_given(tmp_path: Path) -> None:
    module = distil(network(), DMMD(), lr=3e-3)
    run = trainer(tmp_path)
    run.fit(module, loader())
    assert [o.defaults["lr"] for o in run.optimizers] == [3e-3, 3e-3]


def test_a_fake_model_that_is_told_the_input_time_is_trained_saved_and_resumed(
    tmp_path: Path,
) -> None:
    def module(updates: int) -> DistillationModule:
        objective = IDLM(fake_sees="input_time", pure_noise=0.5)
        return distil(network(), objective, max_student_updates=updates, latent_init=1.0)

    whole, first, second = module(2), module(1), module(2)
    trainer(tmp_path).fit(whole, loader(batch_size=64))
    run = trainer(tmp_path)
    run.fit(first, loader(batch_size=64))
    run.save_checkpoint(tmp_path / "one.ckpt")
    trainer(tmp_path).fit(second, loader(batch_size=64), ckpt_path=tmp_path / "one.ckpt")
    assert (second.student_updates, second.fake_updates) == (2, 2)
    for name in ("student", "auxiliary", "ema"):
        ours, theirs = (copy_of(getattr(m, name)) for m in (second, whole))
        assert differs(ours, theirs) == [], name
    assert differs(copy_of(second.student), copy_of(first.student)) != []
    hears = copy_of(whole.auxiliary)["backbone.latent.blocks.0.weight"]
    assert float(hears.abs().max()) > 1e-3  # it was 0


def test_the_card_leaves_out_what_an_objective_keeps_to_itself(tmp_path: Path) -> None:
    module = distil(network(), Alone(), max_student_updates=1, export_dir=str(tmp_path / "out"))
    alone = r"teacher in memory has no tokenizer .*not loaded from a checkpoint.*exported without"
    with pytest.warns(UserWarning, match=alone):
        trainer(tmp_path).fit(module, loader())
    assert not (tmp_path / "out" / "tokenizer.json").exists()
    card = (tmp_path / "out" / "README.md").read_text()
    assert "Alone (rounds=0)" in card
    assert "_private" not in card
    assert "fake_updates" not in card


def test_a_new_latent_can_be_woken_and_one_that_is_there_cannot(tmp_path: Path) -> None:
    module = distil(network(), DMMD(), max_student_updates=1, lr=0.0, latent_init=1.0)
    trainer(tmp_path).fit(module, loader())
    assert module.student.backbone.latent.blocks[0].weight.abs().max() > 0.01
    start = network().with_latent(latent_global=3, latent_position=0)
    with pytest.raises(UserError, match="has a latent already; leave latent_init out"):
        trainer(tmp_path).fit(distil(network(), DMMD(), student=start, latent_init=1.0), loader())


def test_a_teacher_that_was_loaded_lends_the_student_its_tokenizer(
    models: Folders, tmp_path: Path
) -> None:
    teacher, folder = idlm.load(models.teacher), tmp_path / "out"
    settings = {"max_student_updates": 1, "latent_global": 2, "latent_position": 0}
    trainer(tmp_path).fit(distil(teacher, DMMD(), export_dir=str(folder), **settings), loader())
    own = load_tokenizer(models.teacher).get_vocab()
    assert load_tokenizer(folder).get_vocab() == own
    out = idlm.generate(idlm.load(folder), 1, 4, 2, prompt="a")
    assert out.tokens.shape == (1, 4)


@pytest.mark.parametrize("name", ["owner/absent", "absent", "./absent", "\0"])
def test_the_tokenizer_of_a_teacher_in_memory_is_never_fetched(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("idlm.models.files.hub_reachable", lambda: pytest.fail("asked the hub"))
    teacher = network()
    teacher.name_or_path = name
    module = distil(teacher, Alone(), max_student_updates=1, export_dir=str(tmp_path / "out"))
    with pytest.warns(UserWarning, match="exported without one; give tokenizer=FOLDER"):
        trainer(tmp_path).fit(module, loader())
    assert idlm.load(tmp_path / "out").config.vocab_size == 5


def test_a_tokenizer_with_other_tokens_is_not_lent(models: Folders, tmp_path: Path) -> None:
    teacher = network()  # five states
    teacher.name_or_path = str(models.teacher)
    module = distil(teacher, Alone(), max_student_updates=1, export_dir=str(tmp_path / "out"))
    with pytest.warns(UserWarning, match="has 300 tokens, but the network knows 4"):
        trainer(tmp_path).fit(module, loader())


def test_a_training_is_not_warned_of_its_teachers_eval_mode_and_others_still_are(
    tmp_path: Path,
) -> None:
    class Other(L.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.part = nn.Linear(2, 1).eval()

        def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
            return self.part(batch["data"]).sum()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    before = list(warnings.filters)
    trainer(tmp_path).fit(distil(network(), Alone(), max_student_updates=1), loader())
    assert list(warnings.filters) == before
    with pytest.warns(UserWarning, match="eval mode at the start of training"):
        trainer(tmp_path, max_steps=1).fit(Other(), loader("data"))
