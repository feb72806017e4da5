"""``idlm bench oracle`` as a user meets it: records, resuming, refusals."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from idlm.bench import oracle_cli, oracle_methods, oracle_report, oracle_run, oracle_train
from idlm.bench.oracle_methods import METHODS
from idlm.cli.shared import Parser
from idlm.errors import UserError
from idlm.objectives import DMMD, SDTT

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
        who = {"method": cell.method, "process": cell.process}
        settings = oracle_run.settings_record(cell, plan)
        latent = oracle_run.latent_of(cell)
        return [{**record, **who, "latent": latent, "settings": settings}]

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


@pytest.mark.parametrize("what", ["method", "shared", "teacher", "objective"])
def test_a_retuned_cell_is_run_again_and_its_old_records_go(
    tmp_path: Path, ran: list[oracle_run.Cell], monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    out = tmp_path / "oracle.json"
    for method in ("dmmd", "source"):
        oracle_cli.run(options("--quick", "--method", method, "--json", str(out)))
    first = json.loads(out.read_text())
    dmmd = METHODS["dmmd"]
    match what:
        case "method":
            tuned = replace(dmmd, settings={**dmmd.settings, "fake_lr": 1e-7})
            monkeypatch.setitem(METHODS, "dmmd", tuned)
        case "shared":
            monkeypatch.setitem(oracle_methods.SETTINGS, "lr", 1e-7)
        case "teacher":
            monkeypatch.setitem(oracle_train.TEACHER_SETTINGS, "lr", 1e-7)
        case "objective":
            monkeypatch.setitem(METHODS, "dmmd", replace(dmmd, make=lambda _: DMMD(anchor=0.5)))
    for method in ("dmmd", "source"):
        oracle_cli.run(options("--quick", "--method", method, "--json", str(out)))
    assert [cell.method for cell in ran] == ["dmmd", "source", "dmmd"]
    again = json.loads(out.read_text())
    assert len(again) == len(first) == 2
    assert again[0] == first[0]
    assert again[1]["settings"] != first[1]["settings"]


@pytest.mark.parametrize(
    ("more", "teacher", "student"),
    [((), 4, 4), (("--student-updates", "6"), 4, 6), (("--teacher-updates", "5"), 5, 4)],
)
def test_how_long_is_trained_is_what_was_asked_for(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    more: tuple[str, ...],
    teacher: int,
    student: int,
) -> None:
    made: dict[str, list[int]] = {"teacher": [], "student": []}
    factor, after = oracle_train.lr_factor, SDTT.after_student_update

    def of_teacher(update: int, **settings: Any) -> float:
        made["teacher"].append(update)
        return factor(update, **settings)

    def of_student(self: SDTT, networks: Any, average: Any, updates: int) -> None:
        made["student"].append(updates)
        after(self, networks, average, updates)

    monkeypatch.setattr(oracle_train, "lr_factor", of_teacher)
    monkeypatch.setattr(SDTT, "after_student_update", of_student)
    out = tmp_path / "oracle.json"
    oracle_cli.run(options("--quick", "--method", "sdtt", "--json", str(out), *more))
    assert made == {"teacher": [*range(teacher)], "student": [*range(1, student + 1)]}
    for record in json.loads(out.read_text()):
        settings = record["settings"]
        assert (settings["teacher"]["updates"], settings["updates"]) == (teacher, student)


@pytest.mark.parametrize("key", oracle_cli._KEYS)
def test_a_record_that_lacks_what_is_shown_is_no_record(
    tmp_path: Path, ran: list[oracle_run.Cell], key: str
) -> None:
    out = tmp_path / "oracle.json"
    asked = ("--quick", "--method", "teacher", "--json", str(out))
    oracle_cli.run(options(*asked))
    (record,) = json.loads(out.read_text())
    del record[key]
    out.write_text(json.dumps([record]))
    with pytest.raises(UserError, match="no list of the oracle's records"):
        oracle_cli.run(options(*asked))


def test_nothing_is_shown_that_a_record_might_lack(
    tmp_path: Path, ran: list[oracle_run.Cell]
) -> None:
    out = tmp_path / "oracle.json"
    for method in ("teacher", "dmmd"):
        oracle_cli.run(options("--quick", "--method", method, "--json", str(out)))
    records = json.loads(out.read_text())
    bare = [{key: record[key] for key in oracle_cli._KEYS} for record in records]
    assert oracle_report.markdown(bare) == oracle_report.markdown(records)
    oracle_report.print_table(bare)
    oracle_report.save_figure(bare, tmp_path / "f.png")


def test_no_two_lines_of_the_figure_look_alike() -> None:
    found = [cell for cell in oracle_run.cells(0) if oracle_report.drawn(cell.method)]
    looks = oracle_report._looks([(c.method, c.process, oracle_run.latent_of(c)) for c in found])
    seen = [(v["color"], v["linestyle"], v["marker"]) for v in looks.values()]
    assert len(set(seen)) == len(seen) == len(found) == 14
    assert len({v["linestyle"] for line, v in looks.items() if line[0].startswith("teach")}) == 2
    labels = [look["label"] for look in looks.values()]
    assert len(set(labels)) == len(labels)
    assert {"idlm, latent 64", "idlm, no latent", "sdtt", "teacher-uniform"} <= {*labels}
    # students share no colour, but for a method with its own ablation
    colours = {m: {looks[line]["color"] for line in looks if line[0] == m} for m in METHODS}
    assert len(set().union(*colours.values())) == len(METHODS)


def test_the_figure_is_over_sampling_steps(
    tmp_path: Path, ran: list[oracle_run.Cell], monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Figure] = []
    monkeypatch.setattr(oracle_report, "save_png", lambda figure, path: drawn.append(figure))
    asked = ("--quick", "--method", "dmmd", "--json", str(tmp_path / "oracle.json"))
    oracle_cli.run(options(*asked))
    assert {axes.get_xlabel() for axes in drawn[0].axes} == {"sampling steps"}


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
        (("--method", "sdtt", "--latent", "8"), "the student has a latent"),
        (("--method", "vadd", "--latent", "0"), "latent_global 0"),
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
    assert not list(tmp_path.iterdir())  # no teacher, either


@pytest.mark.parametrize("content", ["{}", "[1]", "nothing", '[{"method": "dmmd"}]'])
def test_a_file_that_is_no_list_of_records_is_left_alone(tmp_path: Path, content: str) -> None:
    out = tmp_path / "notes.json"
    out.write_text(content)
    with pytest.raises(
        UserError, match=r"notes\.json (is no list of the oracle's records|cannot be read)"
    ):
        oracle_cli.run(options("--quick", "--jobs", "1", "--json", str(out)))
    assert out.read_text() == content
