"""``idlm bench toys`` as a user meets it: records, resuming, refusals, table and figure."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from idlm.bench import toy_cli, toy_run, toys
from idlm.bench.toy_methods import METHODS, TEACHER
from idlm.bench.toy_report import markdown, summarise
from idlm.bench.toy_run import QUICK, Cell, Teachers, cells, run_cell
from idlm.cli.bench import run
from idlm.errors import UserError

REQUIRED = {"dataset", "method", "latent", "steps", "seed", "tv", "js", "floor_tv", "samples"}
REQUIRED |= {"train_seconds"}


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[Cell]:
    """Cells that were run; their samples are the truth's own, their training took no time."""
    found: list[Cell] = []

    def instead(toy: toys.Toy, *args: Any, **kwargs: Any) -> tuple[toys.Toy, float]:
        return toy, 0.0

    def truth(model: Any, toy: toys.Toy, *, count: int, steps: int, seed: int) -> torch.Tensor:
        return toy.sample(count, torch.Generator().manual_seed(seed + steps))

    real = toy_run.run_cell

    def counted(cell: Cell, plan: toy_run.Plan, teachers: Teachers) -> toy_run.Outcome:
        found.append(cell)
        return real(cell, plan, teachers)

    monkeypatch.setattr(toy_run, "train_teacher", instead)
    monkeypatch.setattr(toy_run, "distil", instead)
    monkeypatch.setattr(toy_run, "sample", truth)
    monkeypatch.setattr(toy_run, "run_cell", counted)
    return found


def bench(output: Path, *more: str) -> list[dict[str, Any]]:
    run(["toys", "--quick", "--jobs", "1", "--json", str(output), *more])
    return json.loads(output.read_text(encoding="utf-8"))


@pytest.mark.parametrize("method", [TEACHER, *METHODS])
def test_every_method_trains_and_samples(method: str) -> None:
    (first, *_) = cells(["circles"], [method], [0])
    records, counts = run_cell(first, QUICK, Teachers())
    assert [r["steps"] for r in records] == ([1, 2, 4, 16] if method == TEACHER else [1, 2, 4])
    assert all(r.keys() >= REQUIRED for r in records)
    assert all(0.0 <= r["tv"] <= 1.0 for r in records)
    assert int(counts.sum()) == QUICK.samples
    assert records[0]["tv"] == pytest.approx(
        0.5 * float((counts[:-1] / counts.sum() - toys.load("circles", bins=8).probs).abs().sum())
        + 0.5 * float(counts[-1] / counts.sum())
    )


def test_a_cell_with_one_seed_comes_out_the_same_twice() -> None:
    (cell,) = cells(["equal"], ["dmmd"], [1])
    first, second = (run_cell(cell, QUICK, Teachers())[0] for _ in range(2))
    assert [r["tv"] for r in first] == [r["tv"] for r in second]


def test_one_cell_writes_its_records(tmp_path: Path, ran: list[Cell]) -> None:
    output = tmp_path / "new" / "o.json"
    records = bench(
        output, "--dataset", "checkerboard", "--method", "idlm", "--latent", "5", "--seed", "3"
    )
    assert [(r["method"], r["latent"], r["seed"], r["steps"]) for r in records] == [
        ("idlm", 5, 3, steps) for steps in (1, 2, 4)
    ]
    assert all(r.keys() >= REQUIRED for r in records)
    # 2000 samples of the truth itself
    assert all(r["tv"] == pytest.approx(r["floor_tv"], rel=0.3) for r in records)


def test_what_is_there_is_kept_and_not_run_again(tmp_path: Path, ran: list[Cell]) -> None:
    output = tmp_path / "o.json"
    first = bench(output, "--dataset", "circles", "--method", "dmmd")
    assert len(ran) == 1
    assert bench(output, "--dataset", "circles", "--method", "dmmd") == first
    assert len(ran) == 1
    both = bench(output, "--dataset", "circles", "--method", "idlm")
    assert len(ran) == 2
    assert len(both) == 6
    assert all(r in both for r in first)
    # another setting is another record
    bench(output, "--dataset", "circles", "--method", "idlm", "--samples", "100")
    assert len(ran) == 3


def test_the_whole_table_has_every_pair_that_exists(tmp_path: Path, ran: list[Cell]) -> None:
    output, figure, table = (tmp_path / name for name in ("o.json", "f.png", "t.md"))
    records = bench(output, "--seed", "0", "1", "--figure", str(figure), "--table", str(table))
    found = {(r["dataset"], r["method"]) for r in records}
    assert found == {
        (dataset, method)
        for dataset in toys.NAMES
        for method in (TEACHER, *METHODS)
        if dataset != "equal" or method == TEACHER or METHODS[method].process != "gaussian"
    }
    latents = {r["latent"] for r in records if r["method"] == "dmmd"}
    assert latents == {0, 16}
    assert {r["seed"] for r in records} == {0, 1}
    assert figure.read_bytes().startswith(b"\x89PNG")
    lines = table.read_text(encoding="utf-8").splitlines()
    assert lines[0].startswith("| data | method |")
    assert any(line.startswith("| spirals | di4c | absorbing | 16 | 2 |") for line in lines)


def test_a_row_of_the_table_is_mean_and_deviation_over_seeds() -> None:
    shared = {"dataset": "circles", "method": "dmmd", "process": "absorbing", "latent": 16}
    shared |= {"floor_tv": 0.02, "train_seconds": 3.0, "steps": 1}
    (row,) = summarise([{**shared, "seed": s, "tv": tv} for s, tv in enumerate((0.1, 0.2, 0.3))])
    assert row.at(1) == "0.200 ± 0.100"
    assert row.at(2) == ""
    assert "| circles | dmmd | absorbing | 16 | 1 | 0.100 |" in markdown(
        [{**shared, "seed": 0, "tv": 0.1}]
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dataset", "spiral"], "did you mean 'spirals'"),
        (["--method", "dmd"], "did you mean 'dmmd'|did you mean 'dmd2'"),
        (["--method", "mm", "--dataset", "equal"], "points of the plane"),
        (["--method", "mm", "--dataset", "circles", "--latent", "4"], "noise of method 'mm'"),
        (["--method", "teacher", "--latent", "4"], "a teacher has none"),
        (["--method", "sdtt", "--dataset", "circles", "--latent", "4"], "has a latent"),
        (["--method", "vadd", "--dataset", "circles", "--latent", "0"], "latent_global 0"),
        (["--method", "dmmd", "--latent", "-1"], "--latent is -1"),
        (["--latent", "4"], "name one method"),
        (["--jobs", "0"], "--jobs is 0"),
        (["--samples", "0"], "--samples is 0"),
        (["--bins", "30"], "multiple of 4"),
        (["--longer", "0"], "--longer is 0.0"),
        (["--seed", "-1"], "--seed is -1"),
    ],
)
def test_what_does_not_fit_is_refused_in_a_sentence(
    tmp_path: Path, arguments: list[str], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        run(["toys", "--quick", "--json", str(tmp_path / "o.json"), *arguments])
    assert not (tmp_path / "o.json").exists()


def test_a_file_of_something_else_is_left_alone(tmp_path: Path, ran: list[Cell]) -> None:
    output = tmp_path / "o.json"
    output.write_text('[{"method": "other"}]', encoding="utf-8")
    with pytest.raises(UserError, match="no list of the toys' records"):
        bench(output, "--dataset", "circles", "--method", "idlm")
    assert output.read_text(encoding="utf-8") == '[{"method": "other"}]'


def test_a_bench_must_be_named() -> None:
    with pytest.raises(UserError, match="invalid choice: 'toy'"):
        run(["toy"])
    with pytest.raises(UserError, match="toys\\|oracle"):
        run([])
    assert toy_cli.ALL == "all"
