"""Numbers as answers: reading them out of text, and comparing them.

A problem of GSM8K has one number as its answer, written behind ``####``. A model answers in text of
the same form, or by a program that returns the number (TinyGSM, arXiv 2312.09241).
"""

from __future__ import annotations

import re
from fractions import Fraction

MARKER = "####"
# Numbers that only look different: a program's float carries rounding errors of about 1e-16.
TOLERANCE = Fraction(1, 10**6)
_LONGEST = 100  # digits of an exponent or a number: beyond it nobody counts eggs

_MINUS = str.maketrans({"\u2212": "-", "\u2013": "-", "\uff0d": "-", "\u00a0": " ", "\u202f": " "})
_CURRENCY = "$\u20ac\u00a3\u00a5"
_DIGITS = r"(?:\d{1,3}(?:,\d{3})+|\d+)"
# A number inside text: "$1,234.50", "-.5", "3e4", "3/4". Not the 2 of "x2" or of "v1.2.3".
_NUMBER = re.compile(
    rf"(?<![\w.])(?<!\d,)(?P<sign>[-+]?)(?:[{_CURRENCY}]\s?)?(?P<sign2>-?)"
    rf"(?P<whole>{_DIGITS})?(?P<point>\.\d+)?(?P<exponent>[eE][-+]?\d{{1,3}})?"
    rf"(?:\s?/\s?(?P<below>{_DIGITS}))?(?![\w]*\d)"
)


def read_number(text: str) -> Fraction | None:
    """The first number in a text, exactly; None if there is none.

    Commas between groups of three digits, a currency sign, a sign before or behind it, and what
    follows the number (units, a full stop, ``%``) do not matter; ``3/4`` is a fraction, ``1e3`` a
    thousand. A comma elsewhere ends a number, as does a second decimal point.
    """
    for found in _NUMBER.finditer(text.translate(_MINUS)):
        if (number := _value(found)) is not None:
            return number
    return None


def last_number(text: str) -> Fraction | None:
    """The last number in a text, read as :func:`read_number` reads the first."""
    values = (_value(found) for found in _NUMBER.finditer(text.translate(_MINUS)))
    return next((value for value in reversed([*values]) if value is not None), None)


def marked_number(text: str) -> Fraction | None:
    """The number behind the first ``####`` of a text, on the same line.

    The first, because a model that has answered may go on to a problem of its own.
    """
    _, marker, rest = text.partition(MARKER)
    return read_number(rest.lstrip().split("\n", 1)[0]) if marker else None


def same_number(given: Fraction, wanted: Fraction) -> bool:
    """Whether two answers are the same number but for rounding errors.

    The difference is at most a millionth of the larger of 1 and the wanted number.
    """
    return abs(given - wanted) <= TOLERANCE * max(Fraction(1), abs(wanted))


def _value(found: re.Match[str]) -> Fraction | None:
    whole, point, exponent, below = found.group("whole", "point", "exponent", "below")
    if whole is None and point is None:
        return None
    if len(whole or "") > _LONGEST or len(point or "") > _LONGEST:
        return None
    number = Fraction(f"{(whole or '0').replace(',', '')}{point or ''}{exponent or ''}")
    if below is not None:
        divisor = int(below.replace(",", ""))
        if divisor == 0:
            return None
        number /= divisor
    return -number if "-" in found.group("sign") + found.group("sign2") else number
