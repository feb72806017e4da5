"""The published numbers: they parse, have sources and units, and no row stands there twice."""

from __future__ import annotations

import re

import pytest

from idlm.errors import UserError
from idlm.evaluation.published import (
    COLUMNS,
    METRICS,
    UNITS,
    frontier_points,
    load_published,
    published_path,
)


def test_every_row_has_an_arxiv_number_a_table_and_a_number():
    rows = load_published()
    assert len(rows) > 120
    for row in rows:
        assert re.match(r"arXiv \d{4}\.\d{5}, \w", row.source), row
        assert any(getattr(row, name) is not None for name in METRICS), row


def test_every_column_of_numbers_has_a_unit():
    words = {"method", "kind", "model", "process", "corpus", "tail", "evaluator"}
    assert set(COLUMNS) - set(UNITS) == words | {"precision", "source", "notes"}
    assert UNITS["entropy"] == "nats per token"
    assert UNITS["accuracy"] == "percent"


def test_numbers_are_of_the_size_their_units_allow():
    for row in load_published():
        assert row.mauve is None or 0 < row.mauve <= 1, row
        assert row.entropy is None or 0 < row.entropy < 6.94, row  # log 1024
        assert row.accuracy is None or 0 < row.accuracy <= 100, row
        assert row.top_p is None or 0 < row.top_p <= 1, row
        assert row.genppl is None or row.genppl > 1, row
        assert row.steps is None or 1 <= row.steps <= 1024, row
        assert row.kind in {
            "student", "teacher", "autoregressive", "data", "baseline", "generator"
        }, row  # fmt: skip
        assert row.precision in {"float64", "float32", "unknown"}, row


def test_well_known_numbers_are_there_with_their_conditions():
    rows = load_published()
    (student,) = (
        r for r in rows if r.method == "IDLM-MDLM" and r.model == "small" and r.steps == 16
    )
    assert (student.genppl, student.genppl_sd, student.entropy) == (32.75, 1.62, 5.42)
    assert (student.mauve, student.gm, student.samples) == (0.93, 0.527, 80)
    assert student.precision == "float32"  # whatever the paper says, methods C.7.1
    (teacher,) = (r for r in rows if r.method == "masked teacher" and r.genppl == 85.9)
    assert (teacher.steps, teacher.entropy, teacher.gm) == (256, 5.59, 0.672)
    assert "arXiv 2603.20155" in teacher.source


def test_points_beside_a_frontier_have_both_numbers_and_one_corpus():
    points = frontier_points(load_published())
    assert len(points) > 60
    assert {p.corpus for p in points} == {"openwebtext"}
    assert all(p.genppl and p.entropy for p in points)
    assert "D-MMD" in {p.method for p in points}


def test_no_number_stands_there_twice_because_another_paper_quotes_it():
    points = [(r.method, r.process, r.steps, r.genppl, r.entropy) for r in load_published()]
    known = [point for point in points if None not in point]
    assert sorted({p for p in known if known.count(p) > 1}) == []


def test_what_no_source_states_is_left_empty():
    rows = load_published()
    silent = [r for r in rows if r.method in ("DiDi-Instruct", "ELF", "FMLM", "FLM")]
    assert len(silent) > 10
    assert {r.top_p for r in silent} == {None}
    assert {r.tail for r in silent} == {""}


def test_float32_of_a_sampler_that_claims_float64_is_explained_in_every_row():
    rows = [r for r in load_published() if r.method.startswith("IDLM-MDLM")]
    assert {r.corpus for r in rows} == {"openwebtext", "gsm8k"}
    assert {r.precision for r in rows} == {"float32"}
    assert all("released" in r.notes for r in rows)


LINES = published_path().read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [
        ([*LINES[:2], LINES[1]], "line 3 repeats line 2"),
        ([LINES[0], LINES[1].replace("arXiv 2602.19066", "a blog")], "begin with an arXiv number"),
        ([LINES[0], LINES[1].replace(",41.45,", ",high,")], r"genppl 'high'; .* per evaluator tok"),
        ([LINES[0], LINES[1] + ",more"], "line 2 has not 24 fields"),
        ([LINES[0], LINES[1][: LINES[1].rindex(",")]], "line 2 has not 24 fields"),
        ([LINES[0].replace("genppl", "ppl"), LINES[1]], "has other columns than method"),
        ([LINES[0], "SDTT,,,,,8" + "," * 18], "line 2 has no kind and no corpus and no source"),
        (
            [LINES[0], 'SDTT,student,,,openwebtext,8,,,,,,,,,,,,,,,,,"arXiv 1234.56789, a",'],
            "line 2 has no number",
        ),
    ],
)
def test_a_row_that_could_mislead_is_refused(tmp_path, lines, sentence):
    path = tmp_path / "published.csv"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    with pytest.raises(UserError, match=sentence):
        load_published(path)


def test_a_file_that_is_not_there_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        load_published(tmp_path / "nowhere.csv")
