"""What both benches share: files beside the records, an atomic figure, tasks in stages."""

from __future__ import annotations

import argparse
import math
import multiprocessing
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, Any

import pytest
from matplotlib.figure import Figure

from idlm.bench import shared, store
from idlm.bench.pool import as_done
from idlm.bench.shared import outputs, save_png
from idlm.bench.store import objective_record, student_record
from idlm.cli.bench import run
from idlm.cli.shared import Parser
from idlm.errors import UserError
from idlm.locks import alone_writing
from idlm.objectives import DMMD, SDTT


def options(*arguments: str) -> argparse.Namespace:
    parser = Parser(prog="idlm bench")
    shared.add_arguments(parser, kept="OUT.more")
    return parser.parse_args(arguments)


def test_table_and_figure_stand_beside_the_records_unless_named(tmp_path: Path) -> None:
    out = tmp_path / "new" / "run.v2.json"
    found = outputs(options("--json", str(out)))
    assert (found.table, found.figure) == (out.with_suffix(".md"), out.with_suffix(".png"))
    assert not found.must_draw
    assert shared.beside(Path("a/out"), ".md") == Path("a/out.md")
    named = [str(tmp_path / "t.txt"), str(tmp_path / "f.PNG")]
    found = outputs(options("--json", str(out), "--table", named[0], "--figure", named[1]))
    assert [str(found.table), str(found.figure)] == named
    assert found.must_draw


@pytest.mark.parametrize("bench", ["toys", "oracle"])
@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--figure", "f.pdf"], "--figure is f.pdf; it is a PNG"),
        (["--table", "o.png"], "are not three files"),
        (["--table", "o.json"], "are not three files"),
        (["--latent", "-1", "--method", "dmmd"], "--latent is -1; it must be 0, for none, or more"),
    ],
)
def test_both_benches_refuse_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bench: str, more: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        run([bench, "--quick", "--json", "o.json", *more])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("bench", ["toys", "oracle"])
def test_help_names_every_file_that_is_written(
    bench: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        run([bench, "--help"])
    text = capsys.readouterr().out
    kept = {"toys": "OUT.counts.npz", "oracle": "OUT.teachers"}[bench]
    assert all(name in text for name in ("OUT.json", "OUT.md", "OUT.png", kept))


def test_a_figure_makes_its_folder(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "f.PNG"
    save_png(Figure(), path)
    assert path.read_bytes().startswith(b"\x89PNG")
    assert [p.name for p in path.parent.iterdir()] == ["f.PNG"]


def test_a_figure_that_fails_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "f.png"
    path.write_text("old", encoding="utf-8")

    def half(self: Figure, file: IO[bytes], **kwargs: Any) -> None:
        file.write(b"\x89PNG")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Figure, "savefig", half)
    with pytest.raises(UserError, match=r"f\.png cannot be written \(No space left"):
        save_png(Figure(), path)
    assert [p.name for p in tmp_path.iterdir()] == ["f.png"]
    assert path.read_text(encoding="utf-8") == "old"


def test_a_figure_in_no_folder_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written"):
        save_png(Figure(), tmp_path / "file" / "f.png")


def test_a_link_to_a_figure_stays(tmp_path: Path) -> None:
    link = tmp_path / "link.png"
    link.symlink_to(tmp_path / "real.png")
    save_png(Figure(), link)
    assert link.is_symlink()
    assert (tmp_path / "real.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("jobs", [1, 2])
def test_tasks_are_done_stage_by_stage(jobs: int) -> None:
    found = list(as_done(range, [[2, 1], [3]], jobs))
    assert found[3:] == [(3, 0), (3, 1), (3, 2)]
    assert sorted(found[:3]) == [(1, 0), (2, 0), (2, 1)]


@pytest.mark.parametrize("jobs", [1, 2])
def test_what_is_done_before_a_task_fails_is_given(jobs: int) -> None:
    half, whole = (4.0, 9.0, -1.0, 16.0), (25.0, 36.0)
    found: list[Any] = []
    with pytest.raises(ValueError, match=r"math domain error|nonnegative") as caught:
        found.extend(as_done(partial(map, math.sqrt), [[half, whole], [(1.0,)]], jobs))
    assert {(half, 2.0), (half, 3.0)} <= {*found}
    assert (1.0,) not in {task for task, _ in found}
    if jobs == 2:  # begun, so ended; and the place of the error is told
        assert {(whole, 5.0), (whole, 6.0)} <= {*found}
        assert "_attempt" in str(caught.value.__cause__)


def test_an_objectives_record_is_its_name_and_its_arguments() -> None:
    found = objective_record(SDTT(num_steps=8, min_steps=2, round_updates=3))
    assert found["name"] == "SDTT"
    assert (found["num_steps"], found["min_steps"], found["round_updates"]) == (8, 2, 3)
    assert "round" not in found  # a run changes it
    sharp = objective_record(DMMD(teacher_top_p=0.5))
    assert sharp["sharpening"] == {"temperature": 1.0, "top_p": 0.5, "penalty": None}


def test_a_students_record_has_the_defaults_and_is_what_json_gives_back() -> None:
    found = student_record(DMMD(), {"betas": (0.0, 0.9), "max_student_updates": 7})
    assert (found["updates"], found["betas"], found["clip"]) == (7, [0.0, 0.9], 1.0)
    assert store.as_json(found) == found


def test_two_runs_that_add_to_one_file_at_once_lose_no_record(tmp_path: Path) -> None:
    """Each of four processes adds 25 records, one at a time, as the benches do."""
    path = tmp_path / "out.json"
    fork = multiprocessing.get_context("fork")
    runs = [fork.Process(target=_add, args=(path, name)) for name in range(4)]
    for run_ in runs:
        run_.start()
    for run_ in runs:
        run_.join(60)
    found = store.read_records(path, "test's", {"run": int, "number": int})
    assert sorted((r["run"], r["number"]) for r in found) == [
        (name, number) for name in range(4) for number in range(25)
    ]
    assert [p.name for p in tmp_path.iterdir()] == ["out.json"]


def _add(path: Path, name: int) -> None:
    for number in range(25):
        with store.merging(path):
            others = store.read_records(path, "test's", {"run": int, "number": int})
            store.write_records(path, [*others, {"run": name, "number": number}])


@pytest.mark.parametrize(
    "asked",
    [["toys", "--dataset", "equal", "--method", "teacher"], ["oracle", "--method", "source"]],
    ids=lambda asked: asked[0],
)
def test_a_bench_adds_its_records_while_no_other_run_does(
    asked: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entered: list[Path] = []

    @contextmanager
    def merging(path: Path) -> Iterator[None]:
        entered.append(path)
        yield
        entered.append(path)

    monkeypatch.setattr(store, "merging", merging)
    writes: list[int] = []
    real = store.write_records

    def write(path: Path, records: Any) -> None:
        writes.append(len(entered) % 2)
        real(path, records)

    monkeypatch.setattr(store, "write_records", write)
    out = tmp_path / "o.json"
    run([*asked, "--quick", "--jobs", "1", "--json", str(out)])
    assert writes, "nothing was written"
    assert set(writes) == {1}


def test_a_second_speed_bench_with_the_same_file_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "speed.json"
    argv = ["speed", "--quick", "--case", "startup", "--json", str(out)]
    with (
        alone_writing(out, remedy=""),
        pytest.raises(UserError, match=r"speed\.json is in use by process .* name another --json"),
    ):
        run(argv)
    assert not out.exists()
