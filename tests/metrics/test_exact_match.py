"""Exact match: completions of both kinds, the count of every end, and the error of a share."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest

from idlm.errors import UserError
from idlm.metrics import ExactMatch
from idlm.metrics.exact_match import program_in, wilson
from idlm.sandbox import Limits

TINYGSM = '''def simple_math_problem() -> int:
    """
    Janet's ducks lay 16 eggs per day. She eats three and bakes with four.
    """
    eggs = 16
    sold = eggs - 3 - 4
    result = sold * 2
    return result
'''


@pytest.mark.parametrize(
    ("completion", "rule", "verdict", "how"),
    [
        (TINYGSM, "auto", "correct", "program"),
        ("9 * 2 = 18\n#### 18", "auto", "correct", "marker"),
        ("9 * 2 = 18\n#### 19", "auto", "wrong", "marker"),
        ("She has 18.", "last", "correct", "last"),
        ("She has 18.", "auto", "syntax", "program"),
        ("She has 18.", "marker", "no_answer", "marker"),
        (TINYGSM.replace("* 2", "* 3"), "auto", "wrong", "program"),
        (TINYGSM.replace("* 2", "/ 0"), "auto", "error", "program"),
        (TINYGSM.replace("return result", "return"), "program", "no_answer", "program"),
        (TINYGSM.replace("return result", "return 'about $18'"), "auto", "correct", "program"),
        (TINYGSM.replace("return result", "return float('nan')"), "auto", "no_answer", "program"),
        (TINYGSM.replace("return result", "return result * 1.0"), "auto", "correct", "program"),
        (TINYGSM.replace("return result", "while True: pass"), "auto", "time", "program"),
        ("import os\n" + TINYGSM, "auto", "import", "program"),
        (TINYGSM + "Question: how many cows\n", "auto", "correct", "program"),
        (TINYGSM + "\n\ndef simple(", "auto", "correct", "program"),
        ("```python\n" + TINYGSM + "```\nSo it is 17.", "auto", "correct", "program"),
        ("```\nprint(9 * 2)\n```", "auto", "correct", "program"),
        ("```result = 18```", "auto", "correct", "program"),
        (TINYGSM.replace("\n", "\r\n"), "auto", "correct", "program"),
        (TINYGSM[: TINYGSM.index("return")], "auto", "no_answer", "program"),
        ("", "auto", "no_answer", "program"),
        ("[MASK]", "auto", "error", "program"),
    ],
)
def test_a_completion_is_judged(completion: str, rule: str, verdict: str, how: str) -> None:
    metric = ExactMatch(rule, weak=True, limits=Limits(seconds=0.5))
    found = metric.judge(completion, Fraction(18))
    assert (found.verdict, found.how) == (verdict, how), found
    assert (found.number is None) is (verdict not in ("correct", "wrong"))


def test_every_end_is_counted_and_the_share_has_its_error() -> None:
    metric = ExactMatch(weak=True)
    metric.update(["#### 1", "#### 2", "#### 3", "#### 4"], [Fraction(n) for n in (1, 2, 3, 5)])
    metric.update(["1 cow", "import os", "#### none"], [Fraction(0)] * 3)
    found = metric.details()
    assert (found["problems"], found["correct"], found["wrong"], found["failed"]) == (7, 3, 1, 3)
    assert found["failed_by_reason"] == {"import": 1, "syntax": 1, "no_answer": 1}
    assert found["exact_match"] == float(metric.compute()) == pytest.approx(3 / 7)
    # the sample standard deviation of three 1s and four 0s, over the root of seven
    assert found["exact_match_stderr"] == pytest.approx(math.sqrt(12 / 7 / 6 / 7))


def test_two_halves_merged_equal_one() -> None:
    completions = ["#### 1", "#### 2", "x", "#### 4"]
    answers = [Fraction(n) for n in (1, 3, 3, 4)]
    whole, half, other = (ExactMatch(weak=True) for _ in range(3))
    whole.update(completions, answers)
    half.update(completions[:1], answers[:1])
    other.update(completions[1:], answers[1:])
    half.merge_state(other)
    assert half.details() == whole.details()


def test_wilsons_interval_by_hand() -> None:
    # 0 of 10 at z = 2: the middle is 0.2 / 1.4, and so is the half width
    assert wilson(0, 10, z=2.0) == pytest.approx([0.0, 0.4 / 1.4])
    low, high = wilson(5, 10)
    assert low + high == pytest.approx(1.0)
    assert (round(low, 4), round(high, 4)) == (0.2366, 0.7634)
    assert wilson(0, 0) == [0.0, 1.0]


def test_the_first_fence_is_the_program() -> None:
    assert program_in("so\n```py\na = 1\n```\n```\nb\n```") == "a = 1\n"
    assert program_in("a = 1") == "a = 1"


def test_conditions_say_how_programs_were_held() -> None:
    found = ExactMatch(weak=True, limits=Limits(seconds=2)).conditions()
    assert (found["program_seconds"], found["answer_rule"]) == (2, "auto")
    assert set(found["program_isolation"]) == {"seccomp", "network_namespace"}
    assert "program_seconds" not in ExactMatch("marker").conditions()


def test_an_unknown_rule_is_refused() -> None:
    with pytest.raises(UserError, match="the answer rule is 'first'; choose one of auto, marker"):
        ExactMatch("first")


def test_completions_and_answers_belong_together() -> None:
    with pytest.raises(ValueError, match="1 completions for 2 answers"):
        ExactMatch("last").update(["1"], [Fraction(1), Fraction(2)])
