from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import idlm
from idlm.errors import UserError
from idlm.models import DiffusionConfig, DiffusionLM, load_tokenizer
from idlm.training.teacher import NEW, TeacherModule
from tests.tiny_models import LENGTH, Folders
from tests.training.helpers import (
    QUIET,
    Record,
    copy_of,
    differs,
    rows,
    teacher_training,
    trainer,
)

pytestmark = QUIET


def test_training_lowers_the_nelbo_of_held_out_text(
    models: Folders, corpus: Path, tmp_path: Path
) -> None:
    module = teacher_training(models.teacher, max_updates=40, lr=2e-2)
    data = rows(corpus, models.teacher)
    run = trainer(tmp_path)
    [before] = run.validate(module, datamodule=data, verbose=False)
    run.fit(module, datamodule=data)
    [after] = run.validate(module, datamodule=data, verbose=False)
    assert after["val/nelbo"] < before["val/nelbo"] - 0.5


def test_every_update_logs_loss_gradient_norm_and_tokens_per_second(
    models: Folders, corpus: Path, tmp_path: Path
) -> None:
    record = Record()
    run = trainer(tmp_path, record)
    run.fit(teacher_training(models.teacher), datamodule=rows(corpus, models.teacher))
    assert [u["train/updates"] for u in record.updates] == [1, 2, 3]
    for update in record.updates:
        # an untrained network is uniform over the 300 tokens; masks are weighed by 1/t
        assert 0 < update["train/nelbo"] < 60
        assert update["train/grad_norm"] > 0
        assert update["train/tokens_per_second"] > 0
    assert {"val/nelbo", "val/ppl"} <= run.callback_metrics.keys()


def test_the_run_ends_after_max_updates_and_exports_the_average(
    models: Folders, corpus: Path, tmp_path: Path
) -> None:
    module = teacher_training(models.teacher, export_dir=str(tmp_path / "made"))
    run = trainer(tmp_path)
    run.fit(module, datamodule=rows(corpus, models.teacher))
    assert (module.updates, run.global_step) == (3, 3)
    exported = idlm.load(tmp_path / "made")
    assert differs(copy_of(exported), copy_of(module.ema.module)) == []
    assert differs(copy_of(exported), copy_of(module.model)) != []
    own, given = load_tokenizer(tmp_path / "made"), load_tokenizer(models.teacher)
    assert own.get_vocab() == given.get_vocab()
    card = (tmp_path / "made" / "README.md").read_text()
    assert "| updates | 3 |" in card
    assert "val/nelbo" in card


def test_a_run_without_a_length_is_ended_by_the_trainer(
    models: Folders, corpus: Path, tmp_path: Path
) -> None:
    module = teacher_training(models.teacher, max_updates=0)
    trainer(tmp_path, max_steps=2).fit(module, datamodule=rows(corpus, models.teacher))
    assert module.updates == 2
    assert (tmp_path / "export" / "model.safetensors").exists()


def test_a_decay_without_a_length_is_refused(models: Folders) -> None:
    with pytest.raises(UserError, match="decay is 'linear' but max_updates is 0"):
        teacher_training(models.teacher, max_updates=0, decay="linear")


def test_validation_sees_the_average_with_the_same_noise_every_time(
    models: Folders, corpus: Path, tmp_path: Path
) -> None:
    module = teacher_training(models.teacher, dropout=0.5)
    data = rows(corpus, models.teacher)
    run = trainer(tmp_path)
    run.fit(module, datamodule=data)
    [first] = run.validate(module, datamodule=data, verbose=False)
    with torch.no_grad():
        for weight in module.model.parameters():
            weight.zero_()
    [second] = run.validate(module, datamodule=data, verbose=False)
    assert first == second


def test_testing_is_validating(models: Folders, corpus: Path, tmp_path: Path) -> None:
    module, data = teacher_training(models.teacher), rows(corpus, models.teacher)
    run = trainer(tmp_path)
    [validated] = run.validate(module, datamodule=data, verbose=False)
    [tested] = run.test(module, datamodule=data, verbose=False)
    assert tested == validated


@pytest.mark.parametrize("size", [None, 16], ids=["left out", "its own"])
def test_init_starts_from_the_checkpoint_and_its_sizes(size: int | None, models: Folders) -> None:
    module = teacher_training(models.teacher, init=str(models.teacher), hidden_dim=size)
    module.configure_model()
    assert differs(copy_of(module.model), copy_of(idlm.load(models.teacher))) == []
    assert module.model.config.hidden_dim == 16


@pytest.mark.parametrize(("name", "value"), [("hidden_dim", 64), ("schedule", "cosine")])
def test_init_with_another_size_or_schedule_is_refused(
    name: str, value: Any, models: Folders
) -> None:
    module = teacher_training(models.teacher, init=str(models.teacher), **{name: value})
    with pytest.raises(UserError, match=f"{name} is {value} but init .* leave {name} out"):
        module.configure_model()


def test_a_new_network_has_mdlms_sizes_where_none_are_given() -> None:
    module = TeacherModule("unused")
    given = {k: module.hparams[k] for k in NEW}
    assert set(given.values()) == {None}
    assert DiffusionConfig(**NEW).to_dict().items() >= NEW.items()
    assert (NEW["hidden_dim"], NEW["cond_dim"], NEW["dropout"]) == (768, 128, 0.1)


def test_init_may_have_another_context(models: Folders) -> None:
    module = teacher_training(models.teacher, init=str(models.teacher), model_length=2 * LENGTH)
    module.configure_model()
    assert module.model.config.model_length == 2 * LENGTH


def test_init_may_have_another_dropout(models: Folders) -> None:
    module = teacher_training(models.teacher, init=str(models.teacher), dropout=0.25)
    module.configure_model()
    rates = {m.p for m in module.model.modules() if isinstance(m, torch.nn.Dropout)}
    assert rates == {0.25} == {module.model.config.dropout}


def test_init_with_another_vocabulary_is_refused(
    models: Folders, corpus: Path, tmp_path: Path
) -> None:
    from idlm.data import train_bpe

    other = train_bpe([corpus.read_text()], 280, tmp_path / "other")
    module = teacher_training(other, init=str(models.teacher))
    with pytest.raises(UserError, match=r"has vocab_size 301 but the tokenizer .* needs 281"):
        module.configure_model()


def test_the_first_weights_depend_on_the_seed_alone(models: Folders) -> None:
    made = []
    for seed in (1, 1, 2):
        torch.manual_seed(len(made))
        module = teacher_training(models.teacher, seed=seed)
        module.configure_model()
        made.append(copy_of(module.model))
    assert differs(made[0], made[1]) == []
    assert differs(made[0], made[2]) != []


def test_muon_and_nothing_else_moves_the_block_matrices(
    models: Folders, corpus: Path, tmp_path: Path
) -> None:
    before = copy_of(idlm.load(models.teacher))
    matrices = {
        name
        for name in before
        if ".blocks." in name and before[name].ndim == 2 and ".adaLN" not in name
    }
    assert len(matrices) == 4
    for muon_lr in (1e-9, 1e-1):
        module = teacher_training(models.teacher, init=str(models.teacher), muon_lr=muon_lr)
        trainer(tmp_path).fit(module, datamodule=rows(corpus, models.teacher))
        far = {
            name
            for name, value in copy_of(module.model).items()
            if (value - before[name]).abs().max() > 1e-3
        }
        assert far & matrices == (matrices if muon_lr == 1e-1 else set())
        assert far - matrices


def test_compiling_leaves_names_and_results_as_they_are(
    models: Folders, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled = []

    def in_place(self: DiffusionLM, **options: Any) -> None:
        compiled.append(self)
        self.backbone.compile(backend="eager", dynamic=False)  # inductor needs a C++ compiler

    monkeypatch.setattr(DiffusionLM, "compile_backbone", in_place)
    losses = []
    for on in (False, True):
        record = Record()
        module = teacher_training(models.teacher, max_updates=2, compile=on)
        folder = tmp_path / str(on)
        trainer(folder, record, limit_val_batches=0).fit(
            module, datamodule=rows(corpus, models.teacher)
        )
        losses.append([u["train/nelbo"] for u in record.updates])
        assert copy_of(idlm.load(folder / "export")).keys() == module.model.state_dict().keys()
    assert compiled == [module.model]
    assert not any("_orig_mod" in name for name in module.state_dict())
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
