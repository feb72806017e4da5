"""The shipped page was made from the shipped files."""

from __future__ import annotations

import csv
import hashlib

from idlm.paths import repo_dir
from idlm.report.recognise import collect

ROOT = repo_dir()
TABLE = ROOT / "eval" / "results" / "report" / "tables" / "source-files.csv"


def test_the_shipped_page_was_made_from_the_results_that_are_shipped():
    with open(TABLE, encoding="utf-8", newline="") as file:
        stated = {row["file"]: row["sha256"] for row in csv.DictReader(file)}
    for name, digest in stated.items():
        content = (ROOT / name).read_bytes()
        assert hashlib.sha256(content).hexdigest()[:12] == digest, (
            f"{name} has changed: idlm report eval/results --output eval/results/report"
        )
        page = TABLE.parents[1] / "index.html"
        assert digest in page.read_text(encoding="utf-8")


def test_the_shipped_page_leaves_no_result_out_that_a_report_reads():
    with open(TABLE, encoding="utf-8", newline="") as file:
        stated = {row["file"] for row in csv.DictReader(file)}
    shipped = ROOT / "eval" / "published.csv"
    read = collect([ROOT / "eval" / "results"], published=shipped).sources
    assert {str((ROOT / name).relative_to(ROOT)) for name, _, _ in read} == stated
