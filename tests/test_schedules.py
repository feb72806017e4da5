"""Schedules: alpha, its derivative, the weight that follows, and the stratified times."""

from __future__ import annotations

import math

import pytest
import torch

from idlm.errors import UserError
from idlm.schedules import Cosine, LogLinear, Schedule, make_schedule, stratified_times

SCHEDULES = [LogLinear(), LogLinear(0.1), LogLinear(0.0), Cosine(), Cosine(0.1)]
IDS = ["log-linear", "log-linear eps 0.1", "log-linear eps 0", "cosine", "cosine eps 0.1"]
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=IDS)
INSIDE = torch.linspace(0.001, 0.999, 999, dtype=torch.float64)


@every_schedule
def test_the_derivative_is_that_of_alpha(schedule: Schedule) -> None:
    t = INSIDE.clone().requires_grad_()
    (derivative,) = torch.autograd.grad(schedule.alpha(t).sum(), t)
    # fp64, one product of numbers near 1
    torch.testing.assert_close(schedule.dalpha(INSIDE), derivative, atol=1e-12, rtol=0)
    assert bool((schedule.dalpha(INSIDE) < 0).all())


@every_schedule
def test_alpha_falls_from_one_to_eps(schedule: Schedule) -> None:
    ends = schedule.alpha(torch.tensor([0.0, 1.0], dtype=torch.float64))
    assert float(ends[0]) == 1.0
    assert float(ends[1]) == pytest.approx(schedule.eps, abs=1e-15)
    assert bool((schedule.alpha(INSIDE).diff() < 0).all())


@every_schedule
def test_the_weight_is_the_rate_of_masking_over_the_masked_share(schedule: Schedule) -> None:
    quotient = -schedule.dalpha(INSIDE) / (1.0 - schedule.alpha(INSIDE))
    # 1 - alpha is 1e-6 at its smallest (cosine at t = 0.001): ten digits are left
    torch.testing.assert_close(schedule.weight(INSIDE), quotient, rtol=1e-9, atol=0)


@every_schedule
def test_the_inverse_returns_the_time(schedule: Schedule) -> None:
    # arccos at alpha = 1 - 1e-6 keeps half of the digits
    torch.testing.assert_close(schedule.inverse(schedule.alpha(INSIDE)), INSIDE, atol=1e-9, rtol=0)


@every_schedule
def test_sigma_is_minus_the_logarithm_of_alpha(schedule: Schedule) -> None:
    torch.testing.assert_close(
        schedule.sigma(INSIDE), -torch.log(schedule.alpha(INSIDE)), atol=1e-14, rtol=1e-12
    )


@every_schedule
def test_shape_and_dtype_of_the_times_are_kept(schedule: Schedule) -> None:
    t = torch.full((3, 1), 0.5)
    for method in (schedule.alpha, schedule.dalpha, schedule.sigma, schedule.weight):
        assert method(t).shape == (3, 1)
        assert method(t).dtype == torch.float32


def test_the_log_linear_weight_is_one_over_t_to_the_last_bit() -> None:
    for dtype in (torch.float32, torch.float64):
        t = torch.logspace(-6, 0, 500, dtype=dtype)
        assert torch.equal(LogLinear().weight(t), 1.0 / t)


def test_the_published_constants_of_the_log_linear_schedule() -> None:
    t = torch.tensor([0.25, 0.5, 1.0], dtype=torch.float64)
    schedule = make_schedule("log-linear")
    expected = torch.tensor([1 - 0.999 * x for x in (0.25, 0.5, 1.0)], dtype=torch.float64)
    torch.testing.assert_close(schedule.alpha(t), expected, atol=1e-15, rtol=0)
    assert float(schedule.sigma(t)[-1]) == pytest.approx(-math.log(1e-3), rel=1e-12)


def test_sigma_keeps_its_digits_at_small_times_in_fp32() -> None:
    t = torch.tensor([1e-6, 1e-5, 1e-4])
    exact = LogLinear().sigma(t.double())
    # log(1 - x) formed in fp32 would be off by up to 6 per cent here
    torch.testing.assert_close(LogLinear().sigma(t).double(), exact, rtol=1e-6, atol=0)


def test_the_cosine_schedule_is_that_of_the_published_code() -> None:
    t = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
    expected = [1e-3 + (1 - 1e-3) * math.cos(x * math.pi / 2) for x in (0.0, 0.5, 1.0)]
    assert Cosine().alpha(t).tolist() == pytest.approx(expected, abs=1e-15)


def test_the_weight_is_finite_in_fp32_at_the_smallest_training_time() -> None:
    t = torch.tensor([1e-3])
    for schedule in (LogLinear(), Cosine()):
        exact = schedule.weight(t.double())
        torch.testing.assert_close(schedule.weight(t).double(), exact, rtol=1e-6, atol=0)


def test_unknown_schedules_and_eps_are_refused() -> None:
    with pytest.raises(UserError, match="schedule is 'linear'; choose one of cosine, log-linear"):
        make_schedule("linear")
    for name in ("log-linear", "cosine"):
        for eps in (-0.1, 1.0):
            with pytest.raises(UserError, match=f"eps of the {name} schedule is {eps}; it must"):
                make_schedule(name, eps)


def test_stratified_times_put_one_time_into_each_stratum() -> None:
    size = 64
    index = torch.randperm(size)
    times = stratified_times(index, size, torch.rand(size, dtype=torch.float64), minimum=1e-3)
    stratum = ((times - 1e-3) / (1 - 1e-3) * size).floor().long()
    assert torch.equal(stratum, index)
    assert times.dtype == torch.float64


def test_stratified_times_are_uniform_inside_their_stratum() -> None:
    noise = torch.linspace(0, 1, 11, dtype=torch.float64)[:-1]
    times = stratified_times(torch.full((10,), 3), 8, noise, minimum=0.2)
    expected = 0.2 + 0.8 * (3 + noise) / 8
    torch.testing.assert_close(times, expected, atol=1e-15, rtol=0)


def test_stratified_times_reach_from_the_minimum_to_below_one() -> None:
    edge = torch.tensor([0.0, 1.0 - 2.0**-53], dtype=torch.float64)
    times = stratified_times(torch.tensor([0, 511]), 512, edge)
    assert float(times[0]) == 1e-3
    assert 0.999 < float(times[1]) <= 1.0
