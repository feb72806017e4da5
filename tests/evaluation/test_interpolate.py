from __future__ import annotations

import numpy as np
import pytest

from idlm.evaluation.interpolate import smooth, straight


def at(rule, x, y, place):
    return float(rule(np.array([x], float), np.array([y], float), np.array([place], float))[0])


@pytest.mark.parametrize("rule", [straight, smooth])
def test_both_rules_meet_the_points_in_any_order_and_end_with_them(rule):
    x, y = [3.0, 1.0, 2.0, 5.0], [9.0, 1.0, 4.0, 25.0]
    for place, value in zip(x, y, strict=True):
        assert at(rule, x, y, place) == pytest.approx(value, abs=1e-12)
    assert np.isnan(at(rule, x, y, 0.99))
    assert np.isnan(at(rule, x, y, 5.01))


def test_straight_lines_are_weighted_means():
    assert at(straight, [0, 1, 3], [0, 2, 6], 0.25) == pytest.approx(0.5)
    assert at(straight, [0, 1, 3], [0, 2, 7], 2.0) == pytest.approx(4.5)


def test_the_smooth_curve_by_hand():
    # x = 0, 1, 2 with slopes 1 and 3: the middle tangent is their harmonic mean 6/4, the left one
    # (3 * 1 - 3) / 2 = 0, so at 1/2 the cubic is 1/2 - 1.5/8
    assert at(smooth, [0, 1, 2], [0, 1, 4], 0.5) == pytest.approx(0.5 - 1.5 / 8)


def test_the_smooth_curve_bends_with_the_points_and_never_overshoots():
    x, y = [0, 1, 2, 3], [0.0, 0.2, 1.0, 3.0]
    places = np.linspace(0, 3, 61)
    values = [at(smooth, x, y, p) for p in places]
    assert np.all(np.diff(values) >= 0)
    lines = [at(straight, x, y, p) for p in places]
    assert np.all(np.array(values) <= np.array(lines) + 1e-12)  # a convex curve lies below
    assert max(at(smooth, [0, 1, 2, 3], [0, 1, 1, 0], p) for p in places) <= 1.0 + 1e-12


def test_a_smooth_curve_is_closer_to_a_parabola_than_straight_lines():
    x = np.linspace(4.8, 5.6, 5)
    places = np.linspace(4.85, 5.55, 30)
    errors = {
        rule: max(abs(at(rule, x, (x - 4) ** 2, p) - (p - 4) ** 2) for p in places)
        for rule in (straight, smooth)
    }
    assert errors[smooth] < errors[straight] / 2


def test_two_points_at_one_place_make_no_infinity():
    assert np.isfinite(at(smooth, [1, 1, 2], [0, 1, 2], 1.0))
    assert at(straight, [1, 1], [0, 2], 1.0) == pytest.approx(1.0)
