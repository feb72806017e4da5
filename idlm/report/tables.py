"""A table and its three forms that one can copy: CSV, Markdown and LaTeX."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass

from idlm.report import escape
from idlm.report.escape import Value

NOTHING = "\N{EN DASH}"
Row = Sequence[Value]


@dataclass(frozen=True)
class Column:
    """A column.

    Attributes:
        title: its head.
        form: format of its floats; six significant digits if not given.
    """

    title: str
    form: str = ".6g"


@dataclass(frozen=True)
class Table:
    """Rows of raw values; only the page, Markdown and LaTeX round them.

    Attributes:
        name: of its files, made here and never from outside.
        title: above it.
        columns: as many as each row has values.
        rows: the values.
        note: below it.
    """

    name: str
    title: str
    columns: Sequence[Column]
    rows: Sequence[Row]
    note: str = ""

    @property
    def numeric(self) -> list[bool]:
        """Of each column, whether it has numbers and nothing else, so that it stands right."""
        found = []
        for place in range(len(self.columns)):
            values = [row[place] for row in self.rows if row[place] is not None]
            found.append(all(_is_number(value) for value in values))
        return found

    @property
    def shown(self) -> list[list[str]]:
        """The cells as a reader sees them."""
        return [
            [_show(value, column) for value, column in zip(row, self.columns, strict=True)]
            for row in self.rows
        ]

    def csv(self) -> str:
        """RFC 4180 with unrounded numbers; a value that is not there is an empty cell."""
        stream = io.StringIO()
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow([escape.csv_cell(column.title) for column in self.columns])
        writer.writerows([escape.csv_cell(value) for value in row] for row in self.rows)
        return stream.getvalue()

    def markdown(self) -> str:
        """A GitHub table."""
        rule = ["---:" if right else "---" for right in self.numeric]
        lines = [[escape.markdown(column.title) for column in self.columns], rule]
        lines += [[escape.markdown(cell) for cell in row] for row in self.shown]
        return "".join("| " + " | ".join(line) + " |\n" for line in lines)

    def latex(self) -> str:
        """A tabular that needs no package."""
        sides = "".join("r" if right else "l" for right in self.numeric)
        lines = [[escape.latex(column.title) for column in self.columns]]
        lines += [[escape.latex(cell) for cell in row] for row in self.shown]
        head, *body = (" & ".join(line) + r" \\" for line in lines)
        parts = [f"% {escape.one_line(self.title)}", rf"\begin{{tabular}}{{{sides}}}", r"\hline"]
        return "\n".join([*parts, head, r"\hline", *body, r"\hline", r"\end{tabular}", ""])


def _is_number(value: Value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _show(value: Value, column: Column) -> str:
    if value is None:
        return NOTHING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return format(value, column.form)
    return escape.one_line(value)
