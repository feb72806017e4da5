"""``idlm bench oracle`` as a user meets it: records, resuming, refusals."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest

from idlm.bench import oracle_cli, oracle_run, oracle_train
from idlm.cli.shared import Parser
from idlm.errors import UserError

REQUIRED = {"method", "latent", "steps", "seed", "cross_entropy", "entropy_rate", "ngram_tv"}
REQUIRED |= {"violations", "samples", "train_seconds"}


def options(*arguments: str) -> argparse.Namespace:
    parser = Parser(prog="idlm bench oracle")
    oracle_cli.add_arguments(parser)
    return parser.parse_args(arguments)


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[oracle_run.Cell]:
    """Cells that were run; their records are those of exact texts under the cell's name."""
    found: list[oracle_run.Cell] = []
    real = oracle_run.run_cell

    def instead(cell: oracle_run.Cell, plan: oracle_train.Plan, folder: Path) -> list[Any]:
        found.append(cell)
        (record,) = real(oracle_run.Cell("source", cell.seed), plan, folder)
        return [{**record, "method": cell.method, "latent": oracle_run.latent_of(cell)}]

    monkeypatch.setattr(oracle_run, "run_cell", instead)
    return found


def test_one_method_writes_its_records_a_table_and_a_figure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "oracle.json"
    asked = ["--quick", "--method", "dmmd", "--seed", "2", "--latent", "4", "--samples", "3"]
    oracle_cli.run(options(*asked, "--json", str(out)))
    names = {"oracle.json", "oracle.md", "oracle.png", "oracle.teachers"}
    assert {path.name for path in out.parent.iterdir()} == names
    records = json.loads(out.read_text())
    assert [(r["method"], r["latent"], r["steps"], r["seed"]) for r in records] == [
        ("dmmd", 4, 1, 2),
        ("dmmd", 4, 4, 2),
    ]
    assert all(set(r) >= REQUIRED and r["samples"] == 3 for r in records)
    assert (out.parent / "oracle.png").read_bytes().startswith(b"\x89PNG")
    table = (out.parent / "oracle.md").read_text(encoding="utf-8")
    assert "| method | latent | seed | steps | cross-entropy |" in table
    assert table.count("| dmmd | 4 | 2 |") == 2
    printed = capsys.readouterr().out
    assert "cross-entropy" in printed
    assert "of 3 texts of 16 tokens" in printed


def test_table_and_figure_go_where_they_are_told_and_hold_the_whole_file(
    tmp_path: Path, ran: list[oracle_run.Cell]
) -> None:
    out, table, figure = (tmp_path / name for name in ("o.json", "a/t.md", "b/c/f.png"))
    for method in ("teacher", "dmmd"):
        oracle_cli.run(
            options(
                *("--quick", "--method", method, "--json", str(out)),
                *("--table", str(table), "--figure", str(figure)),
            )
        )
    text = table.read_text(encoding="utf-8")
    assert "| teacher |" in text
    assert "| dmmd |" in text
    assert figure.read_bytes().startswith(b"\x89PNG")
    assert not (tmp_path / "o.md").exists()


def test_the_source_alone_is_no_figure(tmp_path: Path) -> None:
    out = tmp_path / "o.json"
    asked = ("--quick", "--method", "source", "--json", str(out))
    with pytest.raises(UserError, match="nothing to draw"):
        oracle_cli.run(options(*asked, "--figure", str(tmp_path / "f.png")))
    assert not out.exists()
    oracle_cli.run(options(*asked))
    assert {path.name for path in tmp_path.iterdir()} == {"o.json", "o.md"}


def test_what_the_file_has_is_not_run_again(tmp_path: Path, ran: list[oracle_run.Cell]) -> None:
    out = str(tmp_path / "oracle.json")
    oracle_cli.run(options("--quick", "--method", "dmmd", "--json", out))
    oracle_cli.run(options("--quick", "--method", "all", "--jobs", "1", "--json", out))
    assert ran.count(oracle_run.Cell("dmmd", 0)) == 1
    assert len(ran) == len(oracle_run.cells(0))
    oracle_cli.run(options("--quick", "--method", "dmmd", "--latent", "64", "--json", out))
    assert len(ran) == len(oracle_run.cells(0))  # 64 is its own
    oracle_cli.run(options("--quick", "--method", "dmmd", "--seed", "1", "--json", out))
    oracle_cli.run(options("--quick", "--method", "dmmd", "--samples", "9", "--json", out))
    assert ran[-2:] == [oracle_run.Cell("dmmd", 1), oracle_run.Cell("dmmd", 0)]
    assert len(json.loads(Path(out).read_text())) == len(ran)


def test_finished_cells_are_kept_when_a_later_one_fails(
    tmp_path: Path, ran: list[oracle_run.Cell], monkeypatch: pytest.MonkeyPatch
) -> None:
    good = oracle_run.run_cell

    def fails_at_third(cell: oracle_run.Cell, plan: Any, folder: Path) -> Any:
        if len(ran) == 2:
            raise FloatingPointError("student update 7")
        return good(cell, plan, folder)

    monkeypatch.setattr(oracle_run, "run_cell", fails_at_third)
    out = tmp_path / "oracle.json"
    with pytest.raises(FloatingPointError):
        oracle_cli.run(options("--quick", "--jobs", "1", "--json", str(out)))
    kept = [r["method"] for r in json.loads(out.read_text())]
    assert kept == ["teacher", "teacher-uniform"]  # what others need is done first
    monkeypatch.setattr(oracle_run, "run_cell", good)
    oracle_cli.run(options("--quick", "--jobs", "1", "--json", str(out)))
    assert len(json.loads(out.read_text())) == len(ran) == len(oracle_run.cells(0))


def test_records_stand_in_the_order_of_the_methods(
    tmp_path: Path, ran: list[oracle_run.Cell]
) -> None:
    out = tmp_path / "oracle.json"
    for method in ("dmmd", "teacher", "idlm"):
        oracle_cli.run(
            options(
                "--quick", "--jobs", "1", "--method", method, "--seed", "1", "0", "--json", str(out)
            )
        )
    found = [(r["method"], r["seed"]) for r in json.loads(out.read_text())]
    assert found == [(m, seed) for m in ("teacher", "idlm", "dmmd") for seed in (0, 1)]


def test_a_teacher_is_there_before_two_cells_need_it() -> None:
    first, rest = oracle_cli._stages(oracle_run.cells(0) + oracle_run.cells(1))
    needed = {(cell.process, cell.seed) for cell in rest if cell.method != "source"}
    assert [(cell.method, cell.seed) for cell in first] == [
        ("teacher", 0),
        ("teacher-uniform", 0),
        ("teacher", 1),
        ("teacher-uniform", 1),
    ]
    assert needed == {(cell.process, cell.seed) for cell in first}
    assert len(first) + len(rest) == 2 * len(oracle_run.cells(0))


def test_several_processes_give_the_records_of_one(tmp_path: Path) -> None:
    together, alone = tmp_path / "together.json", tmp_path / "alone.json"
    cells = [oracle_run.Cell(name, 0) for name in ("source", "teacher", "sdtt")]
    plan = oracle_train.QUICK
    for path, jobs in ((together, 2), (alone, 1)):
        found = dict(oracle_cli._run(cells, plan, tmp_path / path.stem, jobs))
        path.write_text(json.dumps([_timeless(r) for cell in cells for r in found[cell]]))
    assert together.read_text() == alone.read_text()


def _timeless(record: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in record.items() if not k.endswith("seconds")}


def test_options_that_do_not_fit_are_refused_before_anything_runs(
    tmp_path: Path, ran: list[oracle_run.Cell]
) -> None:
    out = str(tmp_path / "oracle.json")
    for arguments, sentence in (
        (("--method", "ddpm"), "no method 'ddpm'; choose one of source, teacher"),
        (("--latent", "8"), "--method all takes each method's own"),
        (("--method", "teacher", "--latent", "8"), "teacher has none"),
        (("--jobs", "0"), "--jobs is 0; it must be at least 1"),
        (("--samples", "1"), "--samples is 1; it must be at least 2"),
        (("--student-updates", "0"), "--student-updates is 0"),
        (("--seed", "0", "-1"), "--seed is -1; it must be in 0"),
    ):
        with pytest.raises(UserError, match=sentence):
            oracle_cli.run(options(*arguments, "--json", out))
    with pytest.raises(UserError, match="required: --json"):
        options("--method", "dmmd")
    assert not ran
    assert not Path(out).exists()


@pytest.mark.parametrize("content", ["{}", "[1]", "nothing", '[{"method": "dmmd"}]'])
def test_a_file_that_is_no_list_of_records_is_left_alone(tmp_path: Path, content: str) -> None:
    out = tmp_path / "notes.json"
    out.write_text(content)
    with pytest.raises(
        UserError, match=r"notes\.json (is no list of the oracle's records|cannot be read)"
    ):
        oracle_cli.run(options("--quick", "--jobs", "1", "--json", str(out)))
    assert out.read_text() == content
