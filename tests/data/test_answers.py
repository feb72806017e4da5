"""Numbers read out of text, and compared."""

from __future__ import annotations

from fractions import Fraction

import pytest

from idlm.data.answers import last_number, marked_number, read_number, same_number


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("42", 42),
        ("42.", 42),
        ("-42", -42),
        ("+42", 42),
        ("\u221242", -42),  # the minus of typesetting
        ("1,234", 1234),
        ("1,234,567.50", Fraction("1234567.5")),
        ("12,5", 12),  # no group of three: the comma ends the number
        ("1,2345", 1),
        ("$5", 5),
        ("$ 5", 5),
        ("-$5.25", Fraction("-5.25")),
        ("$-5", -5),
        ("\u20ac1,000", 1000),
        ("\u00a37", 7),
        ("75%", 75),
        ("18 eggs", 18),
        ("18eggs", 18),
        ("10am", 10),
        ("3.0", 3),
        (".5", Fraction(1, 2)),
        ("-.5", Fraction(-1, 2)),
        ("1e3", 1000),
        ("1e+20", 10**20),
        ("2.5e-1", Fraction(1, 4)),
        ("3/4", Fraction(3, 4)),
        ("3 / 4 of it", Fraction(3, 4)),
        ("1.2.3", Fraction("1.2")),
        ("(7)", 7),
        ("**7**", 7),
        ("\\boxed{7}", 7),
        ("= 7", 7),
        ("x2 is 9", 9),  # part of a name is no number
        ("v1.5 costs 4", 4),
        ("10-5", 10),
        ("5/0 or 3", 3),
        ("the answer is forty-two", None),
        ("nan", None),
        ("inf", None),
        ("", None),
        ("-", None),
        ("$", None),
        ("...", None),
        ("9" * 200, None),
    ],
)
def test_the_first_number_of_a_text_is_read_exactly(text: str, number: object) -> None:
    assert read_number(text) == number


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("5 apples and 7 pears", 7),
        ("10 - 3 = 7 dollars.", 7),
        ("it went from 10 to -3", -3),
        ("10-5", 5),
        ("no number", None),
    ],
)
def test_the_last_number_of_a_text_can_be_asked_for(text: str, number: object) -> None:
    assert last_number(text) == number


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("16 - 3 - 4 = <<16-3-4=9>>9 eggs\n9 * 2 = $<<9*2=18>>18\n#### 18", 18),
        ("#### 1,080", 1080),
        ("####-5", -5),
        ("#### $70,000", 70000),
        ("#### 42 dollars a day", 42),
        ("#### 42\n\nQuestion: 7 cows\n#### 9", 42),  # the first: it wrote on
        ("#### \n42", 42),
        ("####\tnone", None),
        ("#### the 3 of them have 42", 3),
        ("the answer is 42", None),
        ("### 42", None),
    ],
)
def test_the_number_behind_the_marker_is_the_answer(text: str, number: object) -> None:
    assert marked_number(text) == number


@pytest.mark.parametrize(
    ("given", "wanted", "same"),
    [
        (Fraction(18), Fraction(18), True),
        (Fraction(0.1 + 0.2), Fraction("0.3"), True),
        (Fraction("17.99999999"), Fraction(18), True),
        (Fraction("17.9999"), Fraction(18), False),
        (Fraction(-18), Fraction(18), False),
        (Fraction(10**9 + 1), Fraction(10**9), True),
        (Fraction(10**6 + 2), Fraction(10**6), False),
        (Fraction(1, 10**7), Fraction(0), True),
    ],
)
def test_numbers_are_the_same_up_to_a_millionth(
    given: Fraction, wanted: Fraction, same: bool
) -> None:
    assert same_number(given, wanted) is same
