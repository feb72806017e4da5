"""Whatever a user gets wrong: exit code 2, one sentence with value and remedy, nothing written."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from idlm.cli.main import COMMANDS, main
from tests.reliability.bad_input import Case, World, tree
from tests.reliability.cases_files import FILES
from tests.reliability.cases_options import OPTIONS
from tests.reliability.cases_training import TRAINING

CASES = [*OPTIONS, *FILES, *TRAINING]
SENTENCE = "idlm: error: "


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World().make(tmp_path_factory.mktemp("world"))


def check(case: Case, code: object, out: str, err: str) -> None:
    """The promise about what a user sees."""
    assert code == 2, f"exit code {code}: {err[-700:]}"
    [line] = err.splitlines()
    assert line.startswith(SENTENCE)
    missing = [part for part in case.says if part not in line]
    assert not missing, f"{missing} is not in: {line}"
    assert len(line) < 1500
    assert line.isprintable()
    assert "Traceback" not in out


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_bad_input_is_one_sentence_and_leaves_everything_as_it_was(
    case: Case,
    world: World,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delenv("IDLM_DEBUG", raising=False)
    monkeypatch.chdir(tmp_path)
    here = tmp_path / "here"
    here.mkdir()
    if case.make is not None:
        case.make(here, world)
    before, good = tree(tmp_path), tree(Path(world["corpus"]).parent)
    with pytest.raises(SystemExit) as stop:
        main(case.arguments(world, here))
    out, err = capfd.readouterr()
    check(case, stop.value.code, out, err)
    assert tree(tmp_path) == before
    assert tree(Path(world["corpus"]).parent) == good
    hidden = Path(os.environ["IDLM_CACHE"]).rglob(".*")
    assert [path for path in hidden if path.suffix != ".lock"] == []  # locks are taken again


@pytest.mark.parametrize(
    "name", ["no config", "steps as a word", "nothing to measure", "no rows", "no threads"]
)
def test_the_installed_command_says_the_same_in_a_process_of_its_own(
    name: str, world: World, tmp_path: Path
) -> None:
    [case] = [case for case in CASES if case.name == name]
    here = tmp_path / "here"
    here.mkdir()
    if case.make is not None:
        case.make(here, world)
    before = tree(tmp_path)
    process = subprocess.run(
        [sys.executable, "-m", "idlm.cli.main", *case.arguments(world, here)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={k: v for k, v in os.environ.items() if k != "IDLM_DEBUG"},
        check=False,
        timeout=120,
    )
    check(case, process.returncode, process.stdout, process.stderr)
    assert tree(tmp_path) == before


def test_every_command_has_its_cases() -> None:
    counted = Counter(case.line.split()[0] for case in CASES)
    for name in COMMANDS:
        assert counted[name] >= (1 if name in ("validate", "test", "quickstart") else 5), name
    benches = {case.line.split()[1] for case in CASES if case.line.startswith("bench ")}
    assert {"toys", "oracle", "speed"} <= benches
    assert len(CASES) >= 60
    assert [name for name, count in Counter(case.name for case in CASES).items() if count > 1] == []


def test_an_option_of_one_value_given_twice_counts_as_given_last(
    world: World, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "s.jsonl"
    line = f"--checkpoint {world['student']} --steps 0 --steps 2 --num-samples 1 --seed 1 --seed 5"
    main(["generate", *line.split(), "--device", "cpu", "--output", str(path)])
    assert '"steps": 2' in path.read_text().splitlines()[0]
    assert "seed 5" in capfd.readouterr().out
