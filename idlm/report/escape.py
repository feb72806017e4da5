"""Text from outside on its way into HTML, CSV, Markdown, LaTeX and pictures: never markup.

Names, paths and samples come from files that anyone may have written. HTML is escaped by the
template engine; everything else passes through one of these functions.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

Value = str | int | float | bool | None

# Controls other than line feed and tab, lone surrogates, and marks that turn the writing direction.
_UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069]")
_LATEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "±": r"$\pm$",
    "\N{EN DASH}": "--",
}
_MARKDOWN = {
    "&": "&amp;",
    "<": "&lt;",
    ">": "&gt;",
    **{mark: f"\\{mark}" for mark in "\\`*_[]|~$#"},
}
# What a spreadsheet takes for the beginning of a formula.
_FORMULA = ("=", "+", "-", "@", "\t")


def tidy(value: object) -> str:
    """Text as every format here can hold it; what none can show becomes U+FFFD."""
    return _UNSAFE.sub("\ufffd", str(value).replace("\r\n", "\n"))


def one_line(value: object) -> str:
    """Tidy text with runs of white space as one space: for cells, titles and labels."""
    return " ".join(tidy(value).split())


def markdown(value: object) -> str:
    """A cell of a Markdown table that shows exactly this text."""
    return _replace(one_line(value), _MARKDOWN)


def latex(value: object) -> str:
    """A cell of a LaTeX table that shows exactly this text."""
    return _replace(one_line(value), _LATEX)


def csv_cell(value: Value) -> str:
    """A cell of a CSV file: numbers so that they parse back equal, text so that it stays text.

    Text that a spreadsheet would run as a formula gets an apostrophe before it.
    """
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value)
    text = one_line(value)
    return f"'{text}" if text.startswith(_FORMULA) else text


def picture_label(value: object, *, longest: int = 40) -> str:
    """A label for matplotlib: one line, cut, and no leading underscore, which would hide it."""
    text = one_line(value)
    text = text if len(text) <= longest else text[: longest - 1] + "…"
    return f" {text}" if text.startswith("_") else text


def _replace(text: str, table: Mapping[str, str]) -> str:
    return "".join(table.get(letter, letter) for letter in text)
