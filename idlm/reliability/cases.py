"""How many wrong inputs, hostile files and hostile programs are tried, and how they end.

``python -m idlm.reliability.cases --output eval/results/reliability.json`` runs the tests that try
them, in the checkout, and counts.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from argparse import ArgumentParser
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

from idlm.errors import UserError
from idlm.paths import repo_dir
from idlm.reliability.record import record, told


class Suite(NamedTuple):
    """Tests that try cases of one kind.

    Attributes:
        file: in the checkout.
        test: how the names of the tests that count begin.
    """

    file: str
    test: str = "test_"


SUITES: dict[str, Suite] = {
    "bad_input": Suite("tests/reliability/test_bad_input.py", "test_bad_input_is_one_sentence"),
    "properties": Suite("tests/reliability/test_properties.py"),
    "security": Suite("tests/reliability/test_security.py"),
    "hostile_programs": Suite("tests/sandbox/test_run.py", "test_hostile_programs_fail"),
    "hostile_pickles": Suite("tests/models/test_unpickle.py"),
    "damaged_checkpoints": Suite("tests/training/test_checkpoint_io.py"),
}


def tried(root: Path, suites: Mapping[str, Suite]) -> dict[str, dict[str, Any]]:
    """Run the suites, one after the other.

    Args:
        root: of the checkout.
        suites: by name.

    Returns:
        For each suite its file, and how many cases passed, failed and were skipped on this machine.

    Raises:
        UserError: if the tests are not here, or cannot be run.
    """
    return {name: _counted(root, suite) for name, suite in suites.items()}


def _counted(root: Path, suite: Suite) -> dict[str, Any]:
    if not (root / suite.file).is_file():
        raise UserError(f"{root / suite.file} is not there; run this in a checkout, not a wheel")
    with tempfile.TemporaryDirectory(prefix="idlm-cases-") as folder:
        report = Path(folder) / "report.xml"
        command = ["-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}"]
        done = subprocess.run(
            [sys.executable, *command, suite.file],
            cwd=root,
            env=os.environ | {"PYTHONPATH": str(root)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        # 0 all passed, 1 some failed
        if done.returncode not in (0, 1) or not report.exists():
            last = (done.stdout.strip().splitlines() or ["no word"])[-1]
            raise UserError(f"pytest could not run {suite.file} ({last}); install idlm[dev]")
        cases = [
            case
            for case in ElementTree.parse(report).getroot().iter("testcase")
            if case.get("name", "").startswith(suite.test)
        ]
    if not cases:
        raise UserError(f"no test of {suite.file} begins with {suite.test}; correct SUITES")
    failed = sum(any(part.tag in ("failure", "error") for part in case) for case in cases)
    skipped = sum(any(part.tag == "skipped" for part in case) for case in cases)
    passed = len(cases) - failed - skipped
    return {"file": suite.file, "passed": passed, "failed": failed, "skipped": skipped}


def main(argv: Sequence[str] | None = None) -> None:
    """The command line: exit code 0 if no case failed, 1 if one did."""
    parser = ArgumentParser(prog="python -m idlm.reliability.cases", description=__doc__)
    parser.add_argument("--output", metavar="JSON", help="put the figures under `cases` here")
    args = parser.parse_args(argv)
    suites = tried(repo_dir(), SUITES)
    for name, counts in suites.items():
        words = ", ".join(f"{counts[key]} {key}" for key in ("passed", "failed", "skipped"))
        print(f"{name}: {words}")
    total = {
        key: sum(counts[key] for counts in suites.values())
        for key in ("passed", "failed", "skipped")
    }
    if args.output:
        figures = {"command": "python -m idlm.reliability.cases", **total, "suites": suites}
        print(f"written: {record(args.output, 'cases', figures)}")
    if total["failed"]:
        sys.exit(1)


if __name__ == "__main__":
    told(main)
