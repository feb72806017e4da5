"""The program that counts cases: what passes, what fails, and what is not there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from idlm.errors import UserError
from idlm.paths import repo_dir
from idlm.reliability import cases
from idlm.reliability.cases import SUITES, Suite, tried
from tests.reliability.test_bad_input import CASES

FEW = """
import pytest
@pytest.mark.parametrize("n", [1, 2, 3])
def test_number(n): assert n != 2
@pytest.mark.skip
def test_number_on_another_machine(): pass
def test_other(): assert False
"""


def test_cases_are_counted_as_they_ended_and_a_failure_is_no_success(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "test_few.py").write_text(FEW)
    monkeypatch.setattr(cases, "SUITES", {"few": Suite("test_few.py", "test_number")})
    monkeypatch.setattr(cases, "repo_dir", lambda: tmp_path)
    out = tmp_path / "figures.json"
    with pytest.raises(SystemExit) as stop:
        cases.main(["--output", str(out)])
    assert stop.value.code == 1
    assert "few: 2 passed, 1 failed, 1 skipped" in capsys.readouterr().out
    found = json.loads(out.read_text())["cases"]
    assert [found[key] for key in ("passed", "failed", "skipped")] == [2, 1, 1]


@pytest.mark.parametrize(
    ("suite", "sentence"),
    [
        (Suite("gone.py"), "gone.py is not there; run this in a checkout"),
        (Suite("broken.py"), r"pytest could not run broken.py \(.*\); install"),
        (Suite("few.py", "test_gone"), "no test of few.py begins with test_gone"),
    ],
)
def test_what_cannot_be_counted_is_refused(suite: Suite, sentence: str, tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("raise ValueError")
    (tmp_path / "few.py").write_text("def test_one(): pass")
    with pytest.raises(UserError, match=sentence):
        tried(tmp_path, {"it": suite})


def test_the_figures_of_the_project_are_of_every_suite_and_none_failed() -> None:
    found = json.loads((repo_dir() / "eval" / "results" / "reliability.json").read_text())["cases"]
    assert found["command"] == "python -m idlm.reliability.cases"
    assert {name: counts["file"] for name, counts in found["suites"].items()} == {
        name: suite.file for name, suite in SUITES.items()
    }
    assert (found["failed"], found["passed"]) == (
        0,
        sum(counts["passed"] for counts in found["suites"].values()),
    )
    bad = found["suites"]["bad_input"]["passed"]
    assert 60 <= bad <= len(CASES)
