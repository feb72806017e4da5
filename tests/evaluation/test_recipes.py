"""A study of recipes makes each run once, against one teacher curve, under stated conditions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from idlm.evaluation import recipes
from idlm.objectives import DMMD, IDLM
from idlm.paths import repo_dir
from tests.tiny_models import LENGTH, Folders, make_models
from tests.training.helpers import QUIET, write_corpus

pytestmark = QUIET


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("study")
    models: Folders = make_models(folder)
    small = {"max_student_updates": None, "micro_batch_size": 4, "lr": 1e-3, "fake_lr": 1e-3}
    return {
        "teacher": str(models.teacher),
        "evaluator": str(models.evaluator),
        "corpus": str(write_corpus(folder / "corpus.txt")),
        "length": LENGTH,
        "batch_size": 4,
        "student_updates": 2,
        "validate_every": 1,
        "steps": 2,
        "num_samples": 2,
        "temperatures": [1.2, 1.0, 0.5],
        "seeds": [0],
        "base": {k: v for k, v in small.items() if v is not None} | {"warmup": 1},
        "recipes": {
            "plain": {"latent_global": 2, "latent_position": 2},
            "inverse": {"objective": {"IDLM": {"time_draws": "tied"}}, "fake_per_student": 2},
        },
    }


def write(study: dict[str, Any], folder: Path, **changes: Any) -> list[str]:
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump({**study, **changes}))
    return ["--study", str(path), "--output", str(folder / "out.json"), "--accelerator", "cpu"]


def test_a_study_makes_each_run_once_against_one_teacher_curve(
    study: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipes.main([*write(study, tmp_path), "--only", "inverse"])
    first = json.loads((tmp_path / "out.json").read_text())
    assert [run["recipe"] for run in first["runs"]] == ["inverse"]
    assert len(first["teacher_curve"]) == 3
    assert [p["student_updates"] for p in first["runs"][0]["judged"]] == [1, 2]
    recipes.main(write(study, tmp_path))
    both = json.loads((tmp_path / "out.json").read_text())
    assert both["runs"][0] == first["runs"][0]  # read, not made again
    assert [run["recipe"] for run in both["runs"]] == ["inverse", "plain"]
    assert both["teacher_curve"] == first["teacher_curve"]
    assert {"gen_ppl", "entropy", "frontier_ratio", "student_entropy"} < both["runs"][1]["judged"][
        0
    ].keys()
    capsys.readouterr()
    recipes.main(write(study, tmp_path))
    assert "GenPPL" not in capsys.readouterr().out


def test_a_student_outside_the_teachers_curve_is_kept_without_a_ratio(
    study: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # temperatures so low that nothing at temperature 1 has as little entropy
    low = write(study, tmp_path, temperatures=[0.02, 0.01])
    recipes.main([*low, "--only", "plain"])
    (run,) = json.loads((tmp_path / "out.json").read_text())["runs"]
    assert [point["frontier_ratio"] for point in run["judged"]] == [None, None]
    assert all(point["gen_ppl"] > 0 for point in run["judged"])
    assert "plain, seed 0: outside the teacher's curve, GenPPL" in capsys.readouterr().out


def test_under_other_conditions_nothing_is_carried_over(
    study: dict[str, Any], tmp_path: Path
) -> None:
    recipes.main([*write(study, tmp_path), "--only", "plain"])
    recipes.main([*write(study, tmp_path, num_samples=3), "--only", "inverse"])
    found = json.loads((tmp_path / "out.json").read_text())
    assert [run["recipe"] for run in found["runs"]] == ["inverse"]
    assert found["conditions"]["num_samples"] == 3
    assert found["conditions"]["teacher_revision"].startswith("sha256:")


def test_a_recipe_names_its_objective() -> None:
    assert vars(recipes.make_objective(None, 8)) == vars(DMMD(target_steps=8))
    tied = recipes.make_objective({"IDLM": {"time_draws": "tied"}}, 8)
    assert vars(tied) == vars(IDLM(time_draws="tied"))
    assert recipes.make_objective({"DMMD": {"target_steps": 4}}, 8).target_steps == 4


def test_the_shipped_study_is_one_this_program_can_run() -> None:
    shipped = recipes.read_study(repo_dir() / "eval" / "recipes.yaml")
    for recipe in shipped.recipes.values():
        recipes.make_objective(recipe.get("objective"), shipped.steps)


@pytest.mark.parametrize(
    ("changes", "arguments", "told"),
    [
        ({"samples": 3}, [], "has ['samples'] too many"),
        ({}, ["--only", "magic"], "--only names ['magic']; the study has inverse, plain"),
        ({"recipes": {"x": {"objective": {"GAN": {}}}}}, [], "objective 'GAN' is unknown"),
        ({"recipes": {"x": {"latent_global": 2, "objective": {"LossSum": {}}}}}, [], "'LossSum'"),
    ],
)
def test_a_study_that_cannot_be_run_is_told_in_one_sentence(
    changes: dict[str, Any],
    arguments: list[str],
    told: str,
    study: dict[str, Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as stop:
        recipes.main([*write(study, tmp_path, **changes), *arguments])
    assert stop.value.code == 2
    assert told in capsys.readouterr().err
