"""A training checkpoint tells what it knows of its making, and nothing else is made up."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from idlm.errors import UserError
from idlm.models.cards import Card
from idlm.models.provenance import source_card
from idlm.objectives import DMMD
from idlm.training import DistillationModule, TeacherModule

CHECKPOINTS = Path("logs/version_0/checkpoints")


def trained(folder: Path, state: dict[str, Any], config: dict[str, Any] | None = None) -> Path:
    """A `.ckpt` where `idlm fit` leaves it, with its config.yaml when given."""
    path = folder / CHECKPOINTS / "last.ckpt"
    path.parent.mkdir(parents=True)
    torch.save(state, path)
    if config is not None:
        (path.parent.parent / "config.yaml").write_text(yaml.safe_dump(config))
    return path


def teacher_state(**settings: Any) -> dict[str, Any]:
    return {"hyper_parameters": dict(TeacherModule("tok", **settings).hparams), "updates": 12}


def student_state() -> dict[str, Any]:
    module = DistillationModule("owner/teacher", DMMD(target_steps=4), lr=0.5)
    return {
        "hyper_parameters": dict(module.hparams),
        "student_updates": 5,
        "fake_updates": 6,
    }


RUN = {
    "model": {
        "class_path": "idlm.training.DistillationModule",
        "init_args": {
            "teacher": "owner/teacher",
            "lr": 0.5,
            "betas": [0.9, 0.999],
            "objective": {"class_path": "idlm.objectives.DMMD", "init_args": {"target_steps": 4}},
        },
    },
    "data": {"class_path": "x", "init_args": {"corpus": "mine.txt", "length": 64, "seed": 0}},
}


def card_of(path: Path, **options: Any) -> Card:
    card = source_card(path, **options)
    assert card is not None
    return card


def test_a_teachers_checkpoint_gives_a_teachers_card(tmp_path: Path) -> None:
    card = card_of(trained(tmp_path, teacher_state(lr=0.125)))
    assert "A teacher trained with the continuous-time masked NELBO" in card.intro
    assert "exponential moving average" in card.intro
    assert "| updates | 12 |" in card.sections["Training"]
    assert "| lr | 0.125 |" in card.sections["Training"]
    assert card.sections["Data"] == "Not stated."


def test_raw_weights_are_called_raw(tmp_path: Path) -> None:
    card = card_of(trained(tmp_path, teacher_state()), raw=True)
    assert "moving average" not in card.intro
    assert "raw" in card.intro


def test_the_run_beside_a_students_checkpoint_names_objective_and_data(tmp_path: Path) -> None:
    card = card_of(trained(tmp_path, student_state(), RUN))
    assert "Distilled with DMMD (target_steps=4)." in card.intro
    assert "| student_updates | 5 |" in card.sections["Training"]
    assert "| corpus | mine.txt |" in card.sections["Data"]
    assert "| length | 64 |" in card.sections["Data"]
    assert card.front["base_model"] == "owner/teacher"


def test_without_the_run_the_objective_is_not_stated(tmp_path: Path) -> None:
    card = card_of(trained(tmp_path, student_state()))
    assert "Distilled with an objective that is not stated." in card.intro
    assert card.sections["Data"] == "Not stated."


MAKING = {
    "objective": "MyIDLM",
    "objective_settings": {"target_steps": 8, "deep": [[1]]},
    "tokenizer": "owner/tokens",
    "data": {"corpus": "theirs.txt", "length": 32, "deep": {"a": 1}},
}


def test_what_a_checkpoint_says_itself_counts_before_any_configuration(tmp_path: Path) -> None:
    state = {**student_state(), "making": MAKING, "network": {"process": "uniform"}}
    card = card_of(trained(tmp_path, state, RUN))
    assert "Distilled with MyIDLM (target_steps=8)." in card.intro
    assert card.intro.startswith("# Few-step uniform diffusion generator")
    assert "| corpus | theirs.txt |" in card.sections["Data"]
    assert "| tokenizer | owner/tokens |" in card.sections["Data"]
    assert "deep" not in card.text()  # single values only: the file may be from anywhere
    again = card_of(trained(tmp_path / "b", {**teacher_state(), "making": MAKING}))
    assert "| length | 32 |" in again.sections["Data"]


@pytest.mark.parametrize("making", ["x", {"objective": 3, "data": [1], "tokenizer": {}}, {}])
def test_a_making_that_says_nothing_is_not_believed(tmp_path: Path, making: Any) -> None:
    card = card_of(trained(tmp_path, {**student_state(), "making": making}))
    assert "Distilled with an objective that is not stated." in card.intro
    assert card.sections["Data"] == "Not stated."


def test_of_the_logs_of_an_older_run_the_newest_that_fits_is_believed(tmp_path: Path) -> None:
    path = tmp_path / "checkpoints" / "last.ckpt"
    path.parent.mkdir()
    torch.save(student_state(), path)
    for version, (steps, lr) in enumerate([(1, 0.5), (2, 0.5), (3, 0.25)]):
        given = {"init_args": {"target_steps": steps}, "class_path": "idlm.objectives.DMMD"}
        run = {"model": {"init_args": {"lr": lr, "objective": given}}}
        file = tmp_path / "logs" / f"version_{version}" / "config.yaml"
        file.parent.mkdir(parents=True)
        file.write_text(yaml.safe_dump(run))
        os.utime(file, (version, version))
    assert "Distilled with DMMD (target_steps=2)." in card_of(path).intro


def test_the_configuration_of_another_run_is_not_believed(tmp_path: Path) -> None:
    other = {**RUN, "model": {**RUN["model"], "init_args": {"lr": 0.25}}}
    card = card_of(trained(tmp_path, student_state(), other))
    assert "an objective that is not stated" in card.intro


def test_the_authors_checkpoints_state_their_settings(tmp_path: Path) -> None:
    config = {
        "algo": {"name": "duo_base"},
        "data": {"train": "openwebtext-train", "tokenizer_name_or_path": "gpt2"},
        "optim": {"lr": 3e-4},
        "loader": {"global_batch_size": "${eval:1+1}"},
    }
    state = {"hyper_parameters": {"config": config}, "global_step": 1000}
    card = card_of(trained(tmp_path, state))
    assert "algorithm: duo_base" in card.intro
    assert "| corpus | openwebtext-train |" in card.sections["Data"]
    assert "| learning rate | 0.0003 |" in card.sections["Training"]
    assert "| global_step | 1000 |" in card.sections["Training"]
    assert "batch" not in card.sections["Training"]  # only its own run could compute it
    assert card.sections["Metrics"] == "Not stated."


def test_a_checkpoint_that_states_nothing_gives_no_card(tmp_path: Path) -> None:
    assert source_card(trained(tmp_path / "a", {"hyper_parameters": {"lr": 1}})) is None
    assert source_card(trained(tmp_path / "b", {"state_dict": {}})) is None


def test_nothing_in_a_checkpoint_is_run(tmp_path: Path) -> None:
    witness = tmp_path / "witness"

    class Config:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (witness,)

    with pytest.raises(UserError):
        source_card(trained(tmp_path, {"hyper_parameters": Config()}))
    assert not witness.exists()


def test_a_folder_gives_the_card_beside_the_weights_or_none(tmp_path: Path) -> None:
    assert source_card(tmp_path) is None
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n# Title\n")
    assert card_of(tmp_path).front == {"license": "mit"}
    (tmp_path / "README.md").write_text("---\na: [\n---\n")
    with pytest.raises(UserError, match=r"README\.md cannot be read as a model card"):
        source_card(tmp_path)
