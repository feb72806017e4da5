"""What both benches share: files beside the records, an atomic figure, tasks in stages."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from idlm.bench import shared
from idlm.bench.shared import as_done, outputs, save_png
from idlm.cli.bench import run
from idlm.cli.shared import Parser
from idlm.errors import UserError


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

    def half(self: Figure, name: Path, **kwargs: Any) -> None:
        Path(name).write_bytes(b"\x89PNG")
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
    stages = [[4.0, 9.0], [16.0]]
    found = list(as_done(math.sqrt, stages, jobs))
    assert found[-1] == (16.0, 4.0)
    assert sorted(found[:2]) == [(4.0, 2.0), (9.0, 3.0)]
