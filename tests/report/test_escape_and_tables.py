from __future__ import annotations

import csv
import io
import re

import pytest

from idlm.report import escape
from idlm.report.conditions import condition_tables, flatten, grouped
from idlm.report.tables import Column, Table

VALUES = [0.1 + 0.2, 1e-300, 145.18510186803616, -2.5, float("inf"), 7, None, True]


def table(rows, columns=("name", "value")) -> Table:
    return Table("t", "A title", [Column(title) for title in columns], rows)


def parse(text: str) -> list[list[str]]:
    return list(csv.reader(io.StringIO(text)))


def test_csv_parses_back_to_the_very_same_numbers():
    found = parse(table([("a", value) for value in VALUES]).csv())
    assert found[0] == ["name", "value"]
    for value, (_, cell) in zip(VALUES, found[1:], strict=True):
        if value is None:
            assert cell == ""
        elif value is True:
            assert cell == "true"
        else:
            assert float(cell) == value


def test_csv_keeps_text_with_commas_quotes_and_lines_in_one_cell():
    found = parse(table([('a, "b"\nc', 1)]).csv())
    assert found[1] == ['a, "b" c', "1"]


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)"])
def test_a_text_in_csv_is_never_a_formula(text):
    assert parse(table([(text, 1)]).csv())[1][0] == f"'{text}"


def test_a_markdown_cell_shows_its_text_and_nothing_else():
    shown = table([("a|b <i>*c*</i> `d` [e](f) g_h\n# i", 1.23456789)]).markdown()
    line = shown.splitlines()[2]
    assert line == (r"| a\|b &lt;i&gt;\*c\*&lt;/i&gt; \`d\` \[e\](f) g\_h \# i | 1.23457 |")
    assert shown.splitlines()[1] == "| --- | ---: |"


def test_a_latex_cell_shows_its_text_and_nothing_else():
    shown = table([(r"a_b & 50% $x$ {c} ~^#\d <e>", 2)]).latex()
    assert (
        r"a\_b \& 50\% \$x\$ \{c\} \textasciitilde{}\textasciicircum{}\#\textbackslash{}d "
        r"\textless{}e\textgreater{} & 2 \\"
    ) in shown
    assert shown.startswith("% A title\n\\begin{tabular}{lr}\n")


def test_a_title_cannot_leave_its_latex_comment():
    shown = Table("t", "a\n\\input{b}", [Column("c")], [(1,)]).latex()
    assert shown.splitlines()[0] == r"% a \input{b}"


@pytest.mark.parametrize("letter", ["\x00", "\x1b", "\ud800", "\u202e"])
def test_what_no_format_can_hold_becomes_a_replacement_character(letter):
    assert escape.tidy(f"a{letter}b") == "a\ufffdb"
    escape.tidy(letter).encode("utf-8")


def test_a_label_that_matplotlib_would_hide_or_that_is_too_long_is_still_shown():
    assert escape.picture_label("_hidden").startswith(" _")
    assert len(escape.picture_label("x" * 100)) == 40


def test_a_column_stands_right_only_if_all_of_it_is_numbers():
    found = table([("a", 1), ("b", None)]).numeric
    assert found == [False, True]
    assert table([("a", "none"), ("b", 2)]).numeric == [False, False]


def test_flatten_names_every_leaf():
    found = flatten({"a": {"b": 1, "c": {}}, "d": [1, 2.5], "e": [{"f": None}], "g": True})
    assert found == {"a.b": 1, "a.c": "none", "d": "1, 2.5", "e.0.f": None, "g": True}


def test_conditions_stand_once_if_all_records_share_them_and_else_record_by_record():
    records = [{"seed": 0, "dtype": "float64"}, {"seed": 1, "dtype": "float64"}]
    varying, shared = condition_tables("c", "Every condition", records)
    assert [column.title for column in varying.columns] == ["seed"]
    assert varying.rows == [[0], [1]]
    assert list(shared.rows) == [("dtype", "float64")]


def test_a_condition_that_few_records_have_is_not_lost():
    records = [{"a": number} for number in range(3)]
    records[1]["rare"] = "here"
    (found,) = condition_tables("c", "Every condition", records)
    assert [column.title for column in found.columns] == ["a", "more"]
    assert [row[1] for row in found.rows] == ["", "rare = here", ""]


def test_numbers_of_each_sample_are_no_conditions():
    records = [
        {"seed": seed, "per_sample": {"nats": [1.5 + seed] * 64, "tokens": [9] * 64}}
        for seed in range(2)
    ]
    tables = condition_tables("t", "t", records)
    titles = [column.title for table in tables for column in table.columns]
    text = "".join(table.csv() + table.markdown() + table.latex() for table in tables)
    assert "seed" in titles
    assert "per_sample" not in text
    assert "1.5" not in text


def test_conditions_tell_a_number_from_a_truth_value():
    found = condition_tables("c", "Every condition", [{"a": 1}, {"a": True}])
    assert [column.title for column in found[0].columns] == ["a"]


def test_records_that_differ_in_seed_and_result_are_one_group():
    records = [{"lr": 0.1, "seed": seed, "tv": seed / 10} for seed in (0, 1)]
    assert grouped(records, over=("seed",), without=("tv",)) == [{"lr": 0.1, "seed": [0, 1]}]


def test_hostile_text_leaves_no_markup_in_any_format(make):
    made = table([(make.HOSTILE, 1)])
    assert "<script>" not in made.markdown()
    assert not re.search(r"(?<!\\)[|`$\[]x?", made.markdown().splitlines()[2].strip("| ")[:60])
    assert r"\input" not in made.latex()
