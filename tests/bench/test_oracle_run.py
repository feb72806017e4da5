"""Training, sampling and the records of ``idlm bench oracle``, on networks that learn nothing."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from idlm import random
from idlm.bench import oracle_run, oracle_train
from idlm.bench.oracle import oracle_language
from idlm.bench.oracle_methods import METHODS
from idlm.bench.oracle_run import Cell, cells, matches, run_cell
from idlm.bench.oracle_train import QUICK, Plan, distil
from idlm.errors import UserError
from idlm.models import DiffusionLM
from idlm.objectives.pairing import check_pairing
from idlm.objectives.rounds import SelfDistillation
from idlm.processes import Absorbing, Uniform

PLAN = replace(QUICK, samples=4, teacher_updates=2, student_updates=2)


@pytest.fixture
def teacher(tmp_path: Path) -> DiffusionLM:
    return oracle_train.obtain_teacher("absorbing", 0, PLAN, tmp_path)[0]


def test_a_teacher_has_a_record_for_each_number_of_steps(tmp_path: Path) -> None:
    records = run_cell(Cell("teacher", 3), PLAN, tmp_path)
    assert [r["steps"] for r in records] == [1, 16]
    # a step in which nothing is revealed makes no call
    assert [r["nfe"] for r in records] == [1, pytest.approx(16, abs=4)]
    for record in records:
        assert (record["method"], record["latent"], record["seed"]) == ("teacher", 0, 3)
        assert (record["samples"], record["epsilon"]) == (4, 1e-4)
        assert record["entropy_rate"] == oracle_language().entropy(16) / 16
        assert record["cross_entropy"] > record["entropy_rate"]  # it learnt nothing
        assert 0 < record["floor_ngram_tv"] < record["ngram_tv"] <= 1
        assert record["violations"] > 1
        assert record["train_seconds"] > 0


def test_exact_texts_are_the_floor(tmp_path: Path) -> None:
    (record,) = run_cell(Cell("source", 0), PLAN, tmp_path)
    assert (record["process"], record["settings"]) == ("none", {})
    assert record["violations"] == record["impossible"] == record["train_seconds"] == 0
    assert record["ngram_tv"] == record["floor_ngram_tv"]
    assert not list(tmp_path.iterdir())  # no teacher was needed


def test_students_of_both_processes_are_distilled_and_scored(tmp_path: Path) -> None:
    for name in ("dmmd", "dmmd-uniform"):
        records = run_cell(Cell(name, 0, 8), PLAN, tmp_path)
        assert [r["steps"] for r in records] == [1, 4]
        assert {(r["method"], r["latent"]) for r in records} == {(name, 8)}
        assert {r["process"] for r in records} == {METHODS[name].process}


@pytest.mark.parametrize(
    ("method", "latent", "sizes"),
    [("dmmd", 64, (64, 8)), ("dmmd", 4, (4, 8)), ("dmmd", 0, (0, 0)), ("vadd", 4, (4, 0))],
)
def test_the_latent_has_the_size_that_was_asked_for(
    teacher: DiffusionLM, method: str, latent: int, sizes: tuple[int, int]
) -> None:
    student, _ = distil(METHODS[method], PLAN, teacher, seed=0, latent=latent)
    config = student.config
    assert (config.latent_global, config.latent_position) == sizes


@pytest.mark.parametrize("name", ["idlm", "sdtt", "duo-dcd"])
def test_the_student_is_trained_and_the_teacher_is_not(name: str) -> None:
    plan = replace(PLAN, student_updates=10)  # of sdtt and duo-dcd every round
    teacher = oracle_train.train_teacher(METHODS[name].process, 0, plan)
    before = {k: v.clone() for k, v in teacher.state_dict().items()}
    student, _ = distil(METHODS[name], plan, teacher, seed=0, latent=0)
    assert all(torch.equal(v, before[k]) for k, v in teacher.state_dict().items())
    assert any(not torch.equal(v, before[k]) for k, v in student.state_dict().items())


def test_a_teacher_is_trained_once_for_a_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[Plan] = []
    train = oracle_train.train_teacher

    def counted(process: str, seed: int, plan: Plan) -> DiffusionLM:
        trained.append(plan)
        return train(process, seed, plan)

    monkeypatch.setattr(oracle_train, "train_teacher", counted)
    first, seconds = oracle_train.obtain_teacher("uniform", 0, PLAN, tmp_path)
    # how long students are trained has no part in it
    again, stored = oracle_train.obtain_teacher(
        "uniform", 0, replace(PLAN, student_updates=9), tmp_path
    )
    assert len(trained) == 1
    assert stored == seconds
    for a, b in zip(first.state_dict().values(), again.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    oracle_train.obtain_teacher("uniform", 0, replace(PLAN, teacher_updates=3), tmp_path)
    assert [p.teacher_updates for p in trained] == [2, 3]


def test_a_teacher_of_other_settings_is_trained_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, _ = oracle_train.obtain_teacher("uniform", 0, PLAN, tmp_path)
    monkeypatch.setitem(oracle_train.TEACHER_SETTINGS, "lr", 0.1)
    again, _ = oracle_train.obtain_teacher("uniform", 0, PLAN, tmp_path)
    pairs = zip(first.state_dict().values(), again.state_dict().values(), strict=True)
    assert any(not torch.equal(a, b) for a, b in pairs)


def test_no_two_uses_of_a_seed_share_their_noise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training, distillation, held-out loss and sampling, and the texts of each."""
    use = ["nothing"]
    keys: dict[int, set[str]] = {}
    real = random._words

    def noted(shape: Any, sample: Any, seed: int, step: int, stream: int) -> Any:
        keys.setdefault(seed, set()).add(use[0])
        return real(shape, sample, seed, step, stream)

    monkeypatch.setattr(random, "_words", noted)
    parts = [(oracle_train, "train_teacher"), (oracle_run, "distil"), (oracle_run, "generate")]
    for module, name in [*parts, (oracle_run, "held_out_nelbo")]:
        monkeypatch.setattr(module, name, named(use, name, getattr(module, name)))
    for seed in (0, 1):
        for method in ("teacher", "dmmd", "source"):
            run_cell(Cell(method, seed), PLAN, tmp_path)
    shared = {seed: uses for seed, uses in keys.items() if len(uses) > 1}
    assert shared == {}
    found = [sorted(uses) for uses in keys.values()]
    for name in ("train_teacher", "distil", "held_out_nelbo"):
        assert found.count([name]) >= 4, name  # texts and noise, of two seeds
    assert found.count(["generate"]) == 2


def named(use: list[str], name: str, function: Any) -> Any:
    """A function during whose calls ``use`` holds its name."""

    def inside(*args: Any, **kwargs: Any) -> Any:
        before, use[0] = use[0], name
        try:
            return function(*args, **kwargs)
        finally:
            use[0] = before

    return inside


@pytest.mark.parametrize("process", ["absorbing", "uniform"])
def test_a_teacher_learns_and_its_nelbo_stays_above_the_entropy(process: str) -> None:
    # the sd of the NELBO over 8,000 rows is 0.04 nats: short times are rare and weigh much
    plan = replace(QUICK, teacher_updates=150, batch_size=32, samples=8000)
    rate = oracle_language().entropy(plan.length) / plan.length
    nelbo = oracle_train.held_out_nelbo(oracle_train.train_teacher(process, 0, plan), plan, 0)
    assert rate < nelbo < math.log(42) - 0.1  # log 42 is what knowing nothing costs


def test_all_methods_are_run_and_their_latents_left_out_where_that_tells_something() -> None:
    found = cells(5)
    assert {c.seed for c in found} == {5}
    assert [c.method for c in found if c.latent is None] == list(oracle_run.NAMES)
    assert {c.method for c in found if c.latent == 0} == {"idlm", "dmmd"}


@pytest.mark.parametrize("name", METHODS)
def test_every_method_fits_its_teachers_process_and_ends_its_rounds(name: str) -> None:
    method = METHODS[name]
    objective = method.make(500)
    process = Absorbing(43) if method.process == "absorbing" else Uniform(42)
    check_pairing(objective, process)
    if isinstance(objective, SelfDistillation):
        assert objective.last_round * objective.round_updates < 500


def test_a_record_belongs_to_its_cell_and_plan_alone(tmp_path: Path) -> None:
    (record,) = run_cell(Cell("source", 0), PLAN, tmp_path)
    assert matches(record, Cell("source", 0), PLAN)
    assert not matches(record, Cell("source", 1), PLAN)
    assert not matches(record, Cell("teacher", 0), PLAN)
    assert not matches(record, Cell("source", 0), replace(PLAN, samples=5))
    distilled: dict[str, Any] = {**record, "method": "dmmd", "latent": 64}
    assert matches(distilled, Cell("dmmd", 0), PLAN)
    assert matches(distilled, Cell("dmmd", 0, 64), PLAN)
    assert not matches(distilled, Cell("dmmd", 0, 0), PLAN)


def test_cells_that_do_not_exist_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no method 'ddpm'; choose one of source, teacher, "):
        run_cell(Cell("ddpm", 0), PLAN, tmp_path)
    with pytest.raises(UserError, match="latent is 8, but teacher has none"):
        run_cell(Cell("teacher", 0, 8), PLAN, tmp_path)
    with pytest.raises(UserError, match="latent is -1"):
        run_cell(Cell("dmmd", 0, -1), PLAN, tmp_path)


def test_a_method_that_takes_no_latent_says_so(teacher: DiffusionLM) -> None:
    with pytest.raises(UserError, match="latent"):
        distil(METHODS["sdtt"], PLAN, teacher, seed=0, latent=8)
    with pytest.raises(UserError, match="latent"):
        distil(METHODS["vadd"], PLAN, teacher, seed=0, latent=0)
