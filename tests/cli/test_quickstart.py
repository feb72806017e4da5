from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

import idlm
from idlm.cli import main, quickstart, shared
from idlm.cli.quickstart import tell
from idlm.cli.quickstart_plan import FRESH, Plan, affordable_samples
from idlm.cli.quickstart_table import comparison
from idlm.paths import repo_dir
from idlm.samples import read_samples
from tests.tiny_models import LENGTH, SENTENCES, make_models


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    """The quickstart's plan on tiny models, tiny text and two student updates."""
    root = tmp_path_factory.mktemp("models")
    folders = make_models(root)
    corpus = root / "text.txt"
    corpus.write_text("\n".join(SENTENCES * 40), encoding="utf-8")
    return Plan(
        teacher=str(folders.teacher),
        student=str(folders.student),
        evaluator=str(folders.evaluator),
        overrides=(
            "--model.init_args.max_student_updates",
            "2",
            "--trainer.accelerator",
            "cpu",
            "--data.init_args.global_batch_size",
            "2",
        ),
        corpus=str(corpus),
        length=LENGTH,
        target=4,
        teacher_steps=(2, 4),
        student_steps=(2, 4),
        temperatures=(0.5,),
        samples=(2, 2),
    )


@pytest.fixture(scope="module")
def told(plan, tmp_path_factory):
    """The folder of a quickstart that ran to its end, and what it returned."""
    folder = tmp_path_factory.mktemp("out") / "quickstart"
    return folder, tell(plan, folder)


def test_the_story_measures_teacher_student_and_the_fresh_one(told):
    _, results = told
    rows = [(c["label"], c["steps"], c["temperature"]) for c in results["cells"]]
    assert rows == [
        ("teacher", 2, 1.0),
        ("teacher", 4, 1.0),
        ("teacher", 4, 0.5),
        ("student", 2, 1.0),
        ("student", 4, 1.0),
        (FRESH, 4, 1.0),
    ]
    assert all(c["num_samples"] == 2 for c in results["cells"])
    assert results["reference"]["num_samples"] == 2


def test_the_files_hold_what_was_shown(told):
    folder, results = told
    assert json.loads((folder / "results.json").read_text())["cells"] == results["cells"]
    assert (folder / "frontier.png").read_bytes()[:4] == b"\x89PNG"
    header, rows = read_samples(folder / "samples" / "teacher-4-T0.5.jsonl")
    assert (header["steps"], header["temperature"], len(rows)) == (4, 0.5, 2)
    assert len(list((folder / "samples").iterdir())) == len(results["cells"])


def test_the_fresh_student_was_really_trained(told, plan):
    folder, _ = told
    fresh, teacher = idlm.load(folder / "student"), idlm.load(plan.teacher)
    assert fresh.has_latent
    moved = [
        not fresh.get_parameter(name).equal(value) for name, value in teacher.named_parameters()
    ]
    assert any(moved)
    log = next((folder / "distillation").rglob("metrics.csv")).read_text().splitlines()
    column = log[0].split(",").index("student_updates")
    assert log[-1].split(",")[column] == "2.0"


def test_what_is_printed_names_the_table_the_warning_and_the_files(plan, tmp_path, capsys):
    small = replace(plan, teacher_steps=(4,), student_steps=(4,))
    tell(small, tmp_path / "q")
    out, err = capsys.readouterr()
    for word in (
        "teacher, 4 calls",
        "student, 4 calls",
        "tokens per call",
        "GenPPL",
        "entropy",
        "seconds",
        "held-out text (2 rows)",
        "± one standard error",
        FRESH,
        "frontier.png",
        "results.json",
        "samples",
    ):
        assert word in out, word
    assert "distilling" in err


def test_a_second_run_replaces_the_first(told, plan):
    folder, results = told
    small = replace(plan, teacher_steps=(4,), student_steps=(4,))
    again = tell(small, folder)
    same = [c for c in results["cells"] if c["label"] == "student" and c["steps"] == 4]
    assert [c["gen_ppl"] for c in again["cells"] if c["label"] == "student"] == [
        c["gen_ppl"] for c in same
    ]
    (folder / "results.json").write_text(json.dumps(results))  # as the other tests found it


def test_a_machine_too_slow_for_one_update_still_gets_its_table(plan, tmp_path, capsys):
    slow = replace(plan, overrides=(*plan.overrides, "--trainer.max_steps", "0"))
    results = tell(slow, tmp_path / "q")
    assert FRESH not in {c["label"] for c in results["cells"]}
    assert "before the first student update" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("seconds_per_step", "expected"), [(1e-6, 16), (0.08, 12), (0.12, 8), (10.0, 4)]
)
def test_the_number_of_samples_fits_the_time(seconds_per_step, expected):
    # 124 + 2 * 16 steps of the teacher, 60 of the student, 16 of the fresh one: 232 per sample
    assert affordable_samples(Plan(), seconds_per_step) == expected


def test_the_default_plan_is_what_was_promised():
    plan = Plan()
    cells = plan.cells(16, Path("student"))
    assert {c.steps for c in cells if c.label == "teacher"} == {4, 8, 16, 32, 64}
    assert {c.steps for c in cells if c.label == "student"} == {4, 8, 16, 32}
    assert [c.steps for c in cells if c.label == FRESH] == [16]
    assert (plan.teacher, plan.student) == ("python-docs-teacher", "python-docs-student-16step")


def test_the_shipped_distillation_fits_the_budget_and_matches_the_plan():
    config = yaml.safe_load((repo_dir() / "configs" / "quickstart.yaml").read_text())
    assert config["trainer"]["max_time"] == "00:00:02:00"
    assert config["model"]["init_args"]["teacher"] == Plan().teacher
    assert config["data"]["init_args"]["length"] == Plan().length
    assert config["data"]["init_args"]["corpus"] == Plan().corpus


def test_equal_entropy_is_said_in_words_and_never_extrapolated():
    row = {"label": "student", "steps": 16, "teacher_steps": 16, "temperature": 1.0}
    matched = [
        row | {"ratio": 0.8, "teacher_gen_ppl": 120.0},
        row | {"label": FRESH, "ratio": None, "teacher_gen_ppl": None},
        row | {"teacher_steps": 64, "ratio": 2.0, "teacher_gen_ppl": 1.0},
    ]
    first, second = comparison({"matched": matched}, 16).splitlines()
    assert "0.80 times the GenPPL" in first
    assert "no comparison at equal entropy" in second


def test_missing_bundled_models_are_one_sentence_and_exit_2(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(shared, "resolve", str)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main.main(["quickstart"])
    assert stop.value.code == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "the bundled model 'python-docs-teacher' is not in" in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--output", "{file}"], "is a file; name a folder"),
        (["--output", "{file}/below"], "is a file, not a folder"),
        (["--seed", "x"], "invalid int value"),
        (["--fast"], "unrecognized arguments: --fast"),
    ],
)
def test_mistakes_are_said_before_anything_runs(arguments, sentence, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(quickstart, "tell", lambda *args: pytest.fail("it ran"))
    (tmp_path / "file").write_text("")
    filled = [word.format(file=tmp_path / "file") for word in arguments]
    with pytest.raises(SystemExit) as stop:
        main.main(["quickstart", *filled])
    assert stop.value.code == 2
    assert sentence in capsys.readouterr().err
