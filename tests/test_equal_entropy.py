"""Generative perplexity at equal entropy."""

from __future__ import annotations

import math

import pytest

from idlm.equal_entropy import OUTSIDE, matched_entropy

# log GenPPL is linear in entropy between these: 100 at 4.0 nats, 400 at 4.4
CURVE = [(4.4, 400.0), (4.0, 100.0), (3.6, 50.0)]


@pytest.mark.parametrize(
    ("entropy", "expected"),
    [(4.2, 200.0), (4.1, 100.0 * math.sqrt(2.0)), (3.8, math.sqrt(5000.0)), (4.0, 100.0)],
)
def test_the_teachers_log_perplexity_is_interpolated_linearly_in_entropy(entropy, expected):
    found = matched_entropy(CURVE, (entropy, 90.0))
    assert found.teacher_gen_ppl == pytest.approx(expected, rel=1e-12)
    assert found.ratio == pytest.approx(90.0 / expected, rel=1e-12)
    assert found.note == ""


@pytest.mark.parametrize("entropy", [3.59, 4.41])
def test_outside_the_curve_there_is_no_number(entropy):
    found = matched_entropy(CURVE, (entropy, 90.0))
    assert (found.ratio, found.teacher_gen_ppl, found.note) == (None, None, OUTSIDE)


def test_both_ends_of_the_curve_belong_to_it():
    assert matched_entropy(CURVE, (4.4, 400.0)).ratio == pytest.approx(1.0)
    assert matched_entropy(CURVE, (3.6, 25.0)).ratio == pytest.approx(0.5)


def test_a_curve_of_one_point_or_none_compares_at_that_point_only():
    assert matched_entropy([(4.0, 100.0)], (4.0, 50.0)).ratio == pytest.approx(0.5)
    assert matched_entropy([(4.0, 100.0)], (4.1, 50.0)).note == OUTSIDE
    assert matched_entropy([], (4.0, 50.0)).note == OUTSIDE


def test_a_student_on_the_temperature_curve_has_gained_nothing():
    # what lowering the temperature does must never count as an improvement
    assert matched_entropy(CURVE, (3.8, math.sqrt(5000.0))).ratio == pytest.approx(1.0)
