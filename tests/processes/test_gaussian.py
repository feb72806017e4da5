"""The Gaussian process against matrix algebra, discrete time, and mixtures with known answers."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product
from typing import get_args

import pytest
import torch
from torch import Tensor

from idlm.errors import UserError
from idlm.processes.gaussian import (
    CosineVP,
    Gaussian,
    LinearLogSNR,
    VariancePreserving,
    Weighting,
    ddpm_sample,
)

SCHEDULES = [CosineVP(), LinearLogSNR(), LinearLogSNR(4.0, -6.0)]
IDS = ["cosine", "linear log-snr", "linear log-snr 4 to -6"]
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=IDS)
PAIRS = [(0.2, 0.7), (0.001, 1.0), (0.95, 1.0), (0.5, 0.500001), (0.01, 0.02)]
Model = Callable[[Tensor, Tensor], Tensor]


def double(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


@every_schedule
def test_variance_is_preserved_and_the_ratio_is_that_of_signal_to_noise(
    schedule: VariancePreserving,
) -> None:
    t = torch.linspace(0, 1, 1001, dtype=torch.float64)
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones_like(t), atol=1e-15, rtol=0)
    inside = slice(1, -1)
    ratio = 2 * torch.log(alpha / sigma)[inside]
    torch.testing.assert_close(schedule.log_snr(t)[inside], ratio, atol=1e-12, rtol=1e-12)
    assert bool((alpha.diff() < 0).all())


@every_schedule
def test_the_derivative_is_that_of_the_log_snr(schedule: VariancePreserving) -> None:
    t = torch.linspace(0.01, 0.99, 99, dtype=torch.float64).requires_grad_()
    (slope,) = torch.autograd.grad(schedule.log_snr(t).sum(), t)
    torch.testing.assert_close(schedule.dlog_snr(t.detach()), slope, rtol=1e-12, atol=0)


def test_the_cosine_schedule_is_the_cosine_also_for_fp32_times_and_at_both_ends() -> None:
    t = torch.linspace(0, 1, 101)
    angle = 0.5 * math.pi * t.double()
    torch.testing.assert_close(CosineVP().alpha(t), torch.cos(angle), atol=1e-15, rtol=0)
    torch.testing.assert_close(CosineVP().sigma(t), torch.sin(angle), atol=1e-15, rtol=0)


def test_the_linear_schedule_starts_and_ends_where_it_was_told() -> None:
    schedule = LinearLogSNR(4.0, -6.0)
    assert schedule.log_snr(double(0.0, 0.5, 1.0)).tolist() == [4.0, -1.0, -6.0]
    assert float(schedule.alpha(double(1.0)) ** 2) == pytest.approx(1 / (1 + math.exp(6)))


def condition(covariance: Tensor, linear: Tensor, z: float) -> tuple[Tensor, Tensor]:
    """Mean weights on (x, z) and variance of z_s given z_t = z for the joint of (z_s, z_t)."""
    gain = covariance[0, 1] / covariance[1, 1]
    mean = linear[0] + gain * (z - linear[1])
    return mean, covariance[0, 0] - gain * covariance[1, 0]


@every_schedule
@pytest.mark.parametrize(("s", "t"), PAIRS)
def test_posterior_is_gaussian_conditioning_on_the_joint(
    schedule: VariancePreserving, s: float, t: float
) -> None:
    """(z_s, z_t) = A (e_1, e_2) + b x: the chain x -> z_s -> z_t, conditioned by its covariance."""
    alpha_s, alpha_t = schedule.alpha(double(s, t))
    sigma_s, sigma_t = schedule.sigma(double(s, t))
    step = alpha_t / alpha_s
    # sigma_t^2 - step^2 sigma_s^2 in the form that keeps its digits
    ratio = (alpha_t * sigma_s / (alpha_s * sigma_t)) ** 2
    mix = torch.stack(
        [
            torch.stack([sigma_s, torch.zeros_like(sigma_s)]),
            torch.stack([step * sigma_s, sigma_t * torch.sqrt(1 - ratio)]),
        ]
    )
    x, z = 1.7, -0.6
    mean, variance = condition(mix @ mix.T, torch.stack([alpha_s * x, alpha_t * x]), z)
    answer = Gaussian(schedule).posterior(double(x)[None], double(z)[None], double(s), double(t))
    # fp64; 1 - ratio is 1e-5 at its smallest, and the variance is sigma_s^2 times that
    torch.testing.assert_close(answer.mean[0, 0], mean, atol=1e-13, rtol=1e-9)
    torch.testing.assert_close(answer.std[0, 0] ** 2, variance, atol=1e-13, rtol=1e-9)


@every_schedule
def test_the_form_with_the_estimated_noise_is_the_textbook_posterior(
    schedule: VariancePreserving,
) -> None:
    """DDPM's eq. 7 for a step of any length: a = alpha_t / alpha_s, beta = 1 - a^2."""
    x, z = torch.randn(1, 4, dtype=torch.float64), torch.randn(1, 4, dtype=torch.float64)
    for s, t in [(0.2, 0.7), (0.05, 1.0), (0.6, 0.9)]:
        alpha_s, alpha_t = schedule.alpha(double(s, t))
        a = alpha_t / alpha_s
        beta = 1 - a**2
        rest_s, rest_t = 1 - alpha_s**2, 1 - alpha_t**2
        mean = (a * rest_s * z + alpha_s * beta * x) / rest_t
        answer = Gaussian(schedule).posterior(x, z, double(s), double(t))
        torch.testing.assert_close(answer.mean, mean, atol=1e-12, rtol=0)  # fp64
        variance = beta * rest_s / rest_t
        torch.testing.assert_close(answer.std[0, 0] ** 2, variance, atol=1e-13, rtol=0)


@every_schedule
@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
def test_posterior_averaged_over_z_t_is_the_marginal_at_s_for_every_eta(
    schedule: VariancePreserving, eta: float
) -> None:
    process = Gaussian(schedule)
    for s, t in PAIRS:
        # the mean is affine in z_t: its value and slope give the moments of the mixture
        x = double(1.3, 1.3)[:, None]
        z = double(0.0, 1.0)[:, None]
        mean, std = process.posterior(x, z, double(s, s), double(t, t), eta=eta)
        slope = mean[1] - mean[0]
        middle = mean[0] + slope * schedule.alpha(double(t)) * 1.3
        torch.testing.assert_close(middle, 1.3 * schedule.alpha(double(s)), atol=1e-12, rtol=0)
        variance = (slope * schedule.sigma(double(t))) ** 2 + std[0] ** 2
        torch.testing.assert_close(variance, schedule.sigma(double(s)) ** 2, atol=1e-12, rtol=0)


def test_posterior_mean_is_linear_in_the_prediction_of_x() -> None:
    process = Gaussian()
    first, second, z = torch.randn(3, 2, 5, dtype=torch.float64)
    s, t = double(0.2, 0.5), double(0.4, 1.0)
    means = [process.posterior(x, z, s, t).mean for x in (first, second)]
    mixed = process.posterior(0.3 * first + 0.7 * second, z, s, t).mean
    torch.testing.assert_close(mixed, 0.3 * means[0] + 0.7 * means[1], atol=1e-13, rtol=0)


def test_a_step_to_time_zero_gives_x_and_a_step_of_no_length_gives_the_state() -> None:
    process = Gaussian()
    x, z = torch.randn(2, 2, 3, dtype=torch.float64)
    to_zero = process.posterior(x, z, double(0.0, 0.0), double(0.3, 1.0))
    assert torch.equal(to_zero.mean, x)
    assert bool((to_zero.std == 0).all())
    stay = process.posterior(x, z, double(0.3, 0.8), double(0.3, 0.8))
    torch.testing.assert_close(stay.mean, z, atol=1e-14, rtol=0)
    assert bool((stay.std == 0).all())


def test_corruption_leaves_data_at_time_zero_and_only_noise_at_time_one() -> None:
    process = Gaussian()
    x, noise = torch.randn(2, 4, 2, 3, dtype=torch.float64)
    assert torch.equal(process.corrupt(x, torch.zeros(4), noise), x)
    at_one = process.corrupt(x, torch.ones(4), noise)
    torch.testing.assert_close(at_one, noise, atol=1e-15, rtol=0)
    assert torch.equal(process.prior((4, 2, 3), like=x, noise=noise), noise)
    drawn = process.prior((20_000, 1), like=x)
    assert drawn.dtype == torch.float64
    # four standard errors
    assert abs(float(drawn.mean())) < 4 / math.sqrt(20_000)
    assert abs(float(drawn.var()) - 1) < 4 * math.sqrt(2 / 20_000)


def test_times_of_shape_b_and_b_1_mean_the_same_in_the_dtype_of_the_data() -> None:
    process = Gaussian()
    x, z, noise = torch.randn(3, 3, 3)  # B = D: a transposed broadcast would pass unseen
    s, t = torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0.5, 0.6, 0.9])
    flat = [process.corrupt(x, t, noise), *process.posterior(x, z, s, t)]
    column = [
        process.corrupt(x, t[:, None], noise),
        *process.posterior(x, z, s[:, None], t[:, None]),
    ]
    for one, other in zip(flat, column, strict=True):
        assert torch.equal(one, other)
        assert one.dtype == torch.float32
    row = process.schedule.alpha(t[2]) * x[2] + process.schedule.sigma(t[2]) * noise[2]
    torch.testing.assert_close(flat[0][2], row.float())
    assert process.loss(x, z, t[:, None]).shape == (3,)


@pytest.mark.parametrize("schedule", SCHEDULES[1:], ids=IDS[1:])
def test_nelbo_integrand_is_the_limit_of_the_discrete_time_divergences(
    schedule: VariancePreserving,
) -> None:
    """sum over steps of KL(q(z_s | z_t, x) || q(z_s | z_t, x_hat)), x_hat moving with t."""
    process = Gaussian(schedule)
    n = 20_000
    grid = torch.linspace(0, 1, n + 1, dtype=torch.float64)
    s, t = grid[:-1], grid[1:]
    middle = (s + t) / 2
    x = double(0.5, -1.0).expand(n, 2)
    z = torch.zeros(n, 2, dtype=torch.float64)

    def predict(time: Tensor) -> Tensor:
        return torch.stack([0.5 - time**3, -1 + 0.2 * time], -1)

    true, model = process.posterior(x, z, s, t), process.posterior(predict(middle), z, s, t)
    discrete = ((true.mean - model.mean) ** 2 / (2 * true.std**2)).sum()
    continuous = process.loss(predict(middle), x, middle, "nelbo").mean()
    torch.testing.assert_close(discrete, continuous, rtol=1e-6, atol=0)  # order 1 / n^2
    assert float(continuous) > 0.01


@every_schedule
def test_weights_are_what_their_names_say(schedule: VariancePreserving) -> None:
    process = Gaussian(schedule)
    t = torch.linspace(0.01, 0.99, 99, dtype=torch.float64)
    snr = (schedule.alpha(t) / schedule.sigma(t)) ** 2
    at = t.clone().requires_grad_()
    (slope,) = torch.autograd.grad(torch.exp(schedule.log_snr(at)).sum(), at)
    expected = {
        "constant": torch.ones_like(t),
        "snr": snr,
        "snr+1": 1 / schedule.sigma(t) ** 2,
        "truncated-snr": torch.where(snr > 1, snr, 1.0),
        "nelbo": -slope / 2,
    }
    assert set(expected) == set(get_args(Weighting))
    x, guess = torch.randn(2, 99, 3, dtype=torch.float64)
    for name, weight in expected.items():
        torch.testing.assert_close(process.weight(t, name), weight, rtol=1e-10, atol=0)
        by_hand = weight * ((x - guess) ** 2).sum(-1)
        torch.testing.assert_close(process.loss(guess, x, t, name), by_hand, rtol=1e-10, atol=0)


class Mixture:
    """A mixture of Gaussians with diagonal covariance and its exact E[x | z_t]."""

    def __init__(self, share: Tensor, mean: Tensor, std: Tensor) -> None:
        self.share, self.mean, self.std = share, mean, std  # [C], [C, D], [C, D]

    def density(self, x: Tensor) -> Tensor:
        scaled = (x.unsqueeze(-2) - self.mean) / self.std
        norm = self.std.prod(-1) * (2 * math.pi) ** (self.mean.shape[1] / 2)
        return (self.share / norm * torch.exp(-0.5 * (scaled**2).sum(-1))).sum(-1)

    def expected_x(self, z: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        variance = alpha**2 * self.std**2 + sigma**2
        residual = z.unsqueeze(-2) - alpha * self.mean
        log_weight = (self.share / variance.sqrt().prod(-1)).log()
        log_weight = log_weight - 0.5 * (residual**2 / variance).sum(-1)
        each = self.mean + alpha * self.std**2 / variance * residual
        return (torch.softmax(log_weight, -1).unsqueeze(-1) * each).sum(-2)


ONE = Mixture(double(0.3, 0.7), double(-1.0, 1.5)[:, None], double(0.6, 0.9)[:, None])
TWO = Mixture(
    double(0.4, 0.6),
    torch.tensor([[-1.0, 0.5], [1.0, -0.5]], dtype=torch.float64),
    torch.tensor([[0.6, 0.9], [0.8, 0.7]], dtype=torch.float64),
)


@pytest.mark.parametrize(("data", "points"), [(ONE, 161), (TWO, 29)], ids=["1-d", "2-d"])
@pytest.mark.parametrize("t", [0.3, 0.8])
def test_the_loss_is_least_at_the_posterior_mean_of_a_mixture(
    data: Mixture, points: int, t: float
) -> None:
    """The expectation over x and noise is a trapezoid sum, so the optimum is exact, not sampled."""
    process = Gaussian()
    dim = data.mean.shape[1]
    line = torch.linspace(-6.5, 6.5, points, dtype=torch.float64)
    grid = torch.cartesian_prod(*[line] * (2 * dim))
    x, noise = grid[:, :dim], grid[:, dim:]
    mass = data.density(x) * torch.exp(-0.5 * (noise**2).sum(-1)) / (2 * math.pi) ** (dim / 2)
    mass = mass * float(line[1] - line[0]) ** (2 * dim)
    assert float(mass.sum()) == pytest.approx(1.0, abs=1e-6)
    times = double(t).expand(len(x))
    z = process.corrupt(x, times, noise)
    optimum = data.expected_x(
        z, process.schedule.alpha(double(t)), process.schedule.sigma(double(t))
    )
    features = torch.stack([torch.ones_like(z), z, torch.sin(2 * z), torch.exp(-(z**2))])
    size = torch.zeros(4, dim, dtype=torch.float64, requires_grad=True)

    def risk(prediction: Tensor) -> Tensor:
        return (mass * process.loss(prediction, x, times, "truncated-snr")).sum()

    least = risk(optimum + (size[:, None] * features).sum(0))
    (gradient,) = torch.autograd.grad(least, size)
    # the grid: normals of width 0.6 at distance 0.46 at worst, exp(-2 (0.6 pi / 0.46)^2)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), atol=1e-5, rtol=0)
    for feature, coordinate in product(features, range(dim)):
        change = torch.zeros_like(feature)
        change[:, coordinate] = 0.05 * feature[:, coordinate]
        assert float(risk(optimum + change)) > float(least.detach()) + 1e-4


def impulses(process: Gaussian, model: Model, steps: int, eta: float) -> tuple[Tensor, Tensor]:
    """Offset and coefficients on each step's noise of a sampler that is affine in its noise."""
    noise = torch.zeros(steps, steps + 1, 1, dtype=torch.float64)
    noise[torch.arange(steps), torch.arange(steps)] = 1.0
    out = ddpm_sample(process, model, noise, eta=eta)[:, 0]
    return out[-1], out[:-1] - out[-1]


def gaussian_denoiser(process: Gaussian, mean: float, std: float) -> Model:
    data = Mixture(double(1.0), double(mean)[:, None], double(std)[:, None])

    def model(z: Tensor, t: Tensor) -> Tensor:
        return data.expected_x(z, process.schedule.alpha(t[0]), process.schedule.sigma(t[0]))

    return model


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_many_steps_sample_gaussian_data_and_the_error_halves_with_twice_the_steps(
    eta: float,
) -> None:
    process = Gaussian()
    model = gaussian_denoiser(process, 0.7, 1.6)
    errors = []
    for steps in (128, 256):
        offset, on = impulses(process, model, steps, eta)
        # exact whatever the number of steps: the mean of E[x | z] is the mean of x
        assert float(offset) == pytest.approx(0.7, abs=1e-10)
        errors.append(float((on**2).sum()) - 1.6**2)
        assert bool((on[1:] != 0).any()) == (eta > 0)
    assert abs(errors[1]) < 0.05
    assert errors[1] == pytest.approx(errors[0] / 2, rel=0.05)


def test_one_step_is_one_call_of_the_model_at_pure_noise() -> None:
    calls = []

    def model(z: Tensor, t: Tensor) -> Tensor:
        calls.append(t)
        return 2 * z

    noise = torch.randn(1, 5, 2, 3)
    assert torch.equal(ddpm_sample(Gaussian(), model, noise), 2 * noise[0])
    ddpm_sample(Gaussian(), model, torch.randn(4, 5, 2, 3))
    assert [t.tolist() for t in calls] == [[v] * 5 for v in (1.0, 1.0, 0.75, 0.5, 0.25)]
    assert {t.dtype for t in calls} == {torch.float32}


def test_many_steps_sample_a_mixture() -> None:
    process = Gaussian()

    def model(z: Tensor, t: Tensor) -> Tensor:
        return ONE.expected_x(z, process.schedule.alpha(t[0]), process.schedule.sigma(t[0]))

    x = ddpm_sample(process, model, torch.randn(150, 20_000, 1, dtype=torch.float64))[:, 0]
    below = [float((x < edge).double().mean()) for edge in (-1.5, -0.5, 0.5, 1.5, 2.5)]
    for edge, share in zip((-1.5, -0.5, 0.5, 1.5, 2.5), below, strict=True):
        normal = torch.special.ndtr((edge - ONE.mean[:, 0]) / ONE.std[:, 0])
        # four standard errors of 20,000 samples, and 0.005 for 150 steps
        assert share == pytest.approx(float((ONE.share * normal).sum()), abs=0.019)
    # one step, in contrast, gives the mean and no mixture
    once = ddpm_sample(process, model, torch.randn(1, 100, 1, dtype=torch.float64))
    torch.testing.assert_close(once, torch.full_like(once, 0.75), atol=1e-12, rtol=0)


def test_matching_states_are_draws_of_the_posterior_without_gradient() -> None:
    process = Gaussian()
    x = torch.randn(3, 4, requires_grad=True)
    z, noise = torch.randn(2, 3, 4)
    s, t = torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0.5, 0.6, 0.9])
    for eta in (0.5, 1.0):
        state = process.matching_state(x, z, s, t, noise, eta=eta)
        mean, std = process.posterior(x.detach(), z, s, t, eta=eta)
        assert torch.equal(state, mean + std * noise)
        assert not state.requires_grad
    default = process.matching_state(x, z, s, t, noise)
    assert torch.equal(default, state)
    assert process.posterior(x, z, s, t).mean.requires_grad


def test_what_cannot_be_is_refused_with_a_sentence() -> None:
    process, x = Gaussian(), torch.zeros(1, 2)
    s, t = double(0.2), double(0.4)
    with pytest.raises(UserError, match=r"eta is 0, but moment matching needs a random z_s"):
        process.matching_state(x, x, s, t, x, eta=0)
    for eta in (-0.1, 1.1, math.nan):
        with pytest.raises(UserError, match=r"eta is .*; choose a number from 0 \(DDIM\) to 1"):
            process.posterior(x, x, s, t, eta=eta)
    with pytest.raises(UserError, match="weighting is 'edm'; choose one of constant, snr, "):
        process.weight(t, "edm")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="noise has 0 steps"):
        ddpm_sample(process, lambda z, t: z, torch.zeros(0, 1, 2))
    for ends in ((1.0, 2.0), (1.0, 1.0), (math.inf, 0.0), (math.nan, 0.0)):
        with pytest.raises(UserError, match="both must be finite, the minimum below"):
            LinearLogSNR(*ends)
