"""The relaxed uniform process against closed forms, an independent integral, and counting."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from idlm import random
from idlm.errors import UserError
from idlm.processes import Uniform, relaxation
from idlm.processes.relaxation import GaussianRelaxation, argmax_law
from idlm.random import Stream

GPT2 = 50257


def double(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def normal_cdf(x: float) -> float:
    return 0.5 * math.erfc(-x / math.sqrt(2))


def alpha_at(gamma: float, vocab_size: int) -> float:
    schedule = GaussianRelaxation(vocab_size, gamma_min=gamma, gamma_max=gamma + 1)
    return float(schedule.alpha(double(0.0)))


# gamma, p, alpha, dp/dgamma of the table that Duo's repository ships for GPT-2 (methods B.3)
PUBLISHED = [
    (-4.0, 0.998694, 0.998694, -0.014886),
    (-3.55, 0.945471, 0.945470, -0.310541),
    (-3.0, 0.596244, 0.596236, -0.835131),
    (-2.5, 0.237988, 0.237973, -0.522297),
    (-1.85, 0.049338, 0.049319, -0.124917),
    (-1.0, 0.006206, 0.006186, -0.014060),
]


@pytest.mark.parametrize(("gamma", "p", "alpha", "slope"), PUBLISHED)
def test_the_published_table_is_reproduced_at_its_own_nodes(
    gamma: float, p: float, alpha: float, slope: float
) -> None:
    # the table's look-up by nearest index answers for a gamma up to 2e-5 away; two nodes tie at -3
    grid = np.linspace(-5, -1, 100_000)
    distance = np.abs(grid - gamma)
    candidates = double(*grid[distance < distance.min() + 1e-9])
    law = argmax_law(candidates, GPT2)
    alphas = (GPT2 * law.p - 1) / (GPT2 - 1)
    wrong = torch.stack([law.p - p, alphas - alpha, law.slope - slope]).abs()
    assert float(wrong.amax(0).min()) < 6e-7  # six decimals are printed


def test_nearly_clean_states_keep_the_digits_of_what_is_lost() -> None:
    law = argmax_law(double(-5.0), GPT2)
    assert float(law.rest) == pytest.approx(1.8e-13, rel=0.03, abs=0)  # two digits are published
    assert float(law.slope) == pytest.approx(-6.6e-12, rel=0.01, abs=0)
    assert float(law.p) == 1.0 - float(law.rest)
    schedule = GaussianRelaxation(GPT2, gamma_min=-5.0, gamma_max=-1.0)
    lost = float(law.rest) * GPT2 / (GPT2 - 1)  # -log(1 - lost), which 1 - lost has three digits of
    assert float(schedule.sigma(double(0.0))) == pytest.approx(lost, rel=1e-9, abs=0)


def test_two_states_have_a_closed_form() -> None:
    gamma = torch.linspace(-8, 25, 331, dtype=torch.float64)
    mu = torch.exp(-gamma / 2)
    law = argmax_law(gamma, 2)
    p = double(*(normal_cdf(m / math.sqrt(2)) for m in mu.tolist()))
    rest = double(*(normal_cdf(-m / math.sqrt(2)) for m in mu.tolist()))
    slope = -mu / 4 * torch.exp(-(mu**2) / 4) / math.sqrt(math.pi)
    torch.testing.assert_close(law.p, p, rtol=1e-13, atol=0)  # fp64, sums of 833 terms
    torch.testing.assert_close(law.rest, rest, rtol=1e-12, atol=0)
    torch.testing.assert_close(law.slope, slope, rtol=1e-12, atol=0)
    assert float(argmax_law(double(0.0), 2).p) == pytest.approx(0.760250, abs=5e-7)
    assert float(argmax_law(double(-1.0), 2).p) == pytest.approx(0.878157, abs=5e-7)


@pytest.mark.parametrize("vocab_size", [2, 3, 17, 1000, GPT2])
def test_the_integral_agrees_with_gauss_legendre_quadrature(vocab_size: int) -> None:
    nodes, weights = np.polynomial.legendre.leggauss(400)
    for gamma in (-4.5, -3.0, -1.0, 1.5):
        mu = math.exp(-gamma / 2)
        z = mu + 9 * nodes  # phi(9) is 1e-18
        phi = np.exp(-0.5 * (z - mu) ** 2) / math.sqrt(2 * math.pi)
        cdf = np.array([normal_cdf(v) for v in z])
        both = 9 * weights * phi * cdf ** (vocab_size - 1)
        law = argmax_law(double(gamma), vocab_size)
        # erfc rounds Phi near 1, and the power multiplies that by K
        tolerance = 1e-16 * vocab_size + 1e-13
        assert float(law.p) == pytest.approx(both.sum(), rel=tolerance, abs=tolerance)
        by_mu = ((z - mu) * both).sum()
        assert float(law.slope) == pytest.approx(-mu / 2 * by_mu, abs=10 * tolerance)


@pytest.mark.parametrize("vocab_size", [2, 100, GPT2, 10**6])
def test_a_finer_quadrature_changes_nothing(
    vocab_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    gamma = torch.linspace(-7, 5, 241, dtype=torch.float64)
    here = argmax_law(gamma, vocab_size)
    monkeypatch.setattr(relaxation, "_STEP", 1 / 64)
    monkeypatch.setattr(relaxation, "_LOW", -20.0)
    relaxation._nodes.cache_clear()
    finer = argmax_law(gamma, vocab_size)
    relaxation._nodes.cache_clear()
    for name, one, other in zip(here._fields, here, finer, strict=True):
        torch.testing.assert_close(one, other, rtol=2e-13, atol=0, msg=name)


def test_every_gamma_that_is_allowed_has_an_answer() -> None:
    for k in (2, GPT2):
        law = argmax_law(torch.linspace(-30, 30, 601, dtype=torch.float64), k)
        assert bool(torch.isfinite(torch.stack(law)).all())
        assert bool((law.p.diff() <= 0).all())
        assert bool((law.slope <= 0).all())
        assert float(law.p[0]) == 1.0
        assert float(law.p[-1]) == pytest.approx(1 / k, rel=1e-4, abs=0)


@pytest.mark.parametrize("vocab_size", [2, 5, GPT2])
def test_the_derivative_is_that_of_alpha_also_at_the_edges(vocab_size: int) -> None:
    schedule = GaussianRelaxation(vocab_size, gamma_min=-4.0, gamma_max=-1.0)
    t = torch.linspace(0, 1, 101, dtype=torch.float64)
    h = 1e-3  # five points: h^4/30 times the fifth derivative, about 1e3
    a = [schedule.alpha(t + i * h) for i in (-2, -1, 1, 2)]
    difference = (a[0] - 8 * a[1] + 8 * a[2] - a[3]) / (12 * h)
    torch.testing.assert_close(schedule.dalpha(t), difference, atol=1e-9, rtol=0)
    assert bool((schedule.dalpha(t) < 0).all())


def test_the_default_range_is_duos_curriculum() -> None:
    schedule = GaussianRelaxation(GPT2)
    ends = double(0.0, 1.0)
    assert schedule.gamma(ends).tolist() == pytest.approx([-3.55, -1.85])
    assert schedule.alpha(ends).tolist() == pytest.approx([0.94547, 0.04932], abs=1e-5)
    torch.testing.assert_close(schedule.sigma(ends), -schedule.alpha(ends).log())


def test_the_inverse_returns_the_time_and_refuses_what_is_never_reached() -> None:
    schedule = GaussianRelaxation(GPT2)
    t = torch.linspace(0, 1, 21, dtype=torch.float64)
    torch.testing.assert_close(schedule.inverse(schedule.alpha(t)), t, atol=1e-12, rtol=0)
    ends = torch.tensor([0.0, 1.0])
    torch.testing.assert_close(schedule.inverse(schedule.alpha(ends)), ends, atol=1e-6, rtol=0)
    with pytest.raises(ValueError, match=r"alpha must lie in \[0.0493176, 0.945474\]"):
        schedule.inverse(double(0.5, 0.99))


def test_shape_and_dtype_of_the_times_are_kept() -> None:
    schedule = GaussianRelaxation(5)
    t = torch.full((3, 1), 0.5)
    for method in (schedule.alpha, schedule.dalpha, schedule.sigma, schedule.weight):
        assert method(t).shape == (3, 1)
        assert method(t).dtype == torch.float32


def test_the_argmax_is_distributed_as_the_uniform_process() -> None:
    k, n = 5, 40_000
    schedule = GaussianRelaxation(k, gamma_min=-3.0, gamma_max=1.0)
    t, x = double(0.4), torch.full((1, n), 2)
    keys = {"sample": torch.zeros(1, dtype=torch.int64), "seed": 0, "step": 0}
    noise = random.normal(n, k, stream=Stream.RENOISE, **keys)
    counts = torch.bincount(schedule.state(x, t, noise).argmax(-1)[0], minlength=k).double()

    def chi_square(time: float) -> float:
        alpha = float(schedule.alpha(double(time)))
        expected = torch.full((k,), n * (1 - alpha) / k, dtype=torch.float64)
        expected[2] += n * alpha
        return float(((counts - expected) ** 2 / expected).sum())

    assert chi_square(0.4) < 18.5  # four degrees of freedom: exceeded once in a thousand seeds
    # and the count would notice a gamma that is off by 0.08
    assert chi_square(0.38) > 50
    assert chi_square(0.42) > 50


def test_the_state_of_tokens_and_of_one_hot_rows_is_the_formula_and_its_scores_are_over_tau() -> (
    None
):
    schedule = GaussianRelaxation(4)
    x, noise = torch.tensor([[1, 3], [0, 0]]), torch.randn(2, 2, 4, dtype=torch.float64)
    t = double(0.2, 0.9)
    one_hot = torch.nn.functional.one_hot(x, 4).double()
    by_hand = torch.empty_like(noise)
    for row, gamma in enumerate([-3.55 + 0.2 * 1.7, -3.55 + 0.9 * 1.7]):
        a, s = math.sqrt(1 / (1 + math.exp(gamma))), math.sqrt(1 / (1 + math.exp(-gamma)))
        by_hand[row] = a * one_hot[row] + s * noise[row]
    for times in (t, t[:, None]):
        torch.testing.assert_close(schedule.state(x, times, noise), by_hand, atol=1e-14, rtol=0)
        torch.testing.assert_close(
            schedule.state(one_hot, times, noise), by_hand, atol=1e-14, rtol=0
        )
    assert torch.equal(schedule.scores(noise, tau=0.25), 4 * noise)
    torch.testing.assert_close(schedule.scores(noise), 1000 * noise)  # Duo's tau
    clean = GaussianRelaxation(4, gamma_min=-30.0, gamma_max=0.0)
    assert torch.equal(clean.state(x, double(0.0, 0.0), noise).argmax(-1), x)


def test_gradient_through_a_soft_x_equals_finite_differences() -> None:
    schedule = GaussianRelaxation(4)
    table = torch.randn(4, 3, dtype=torch.float64)
    noise = torch.randn(2, 3, 4, dtype=torch.float64)
    probe = torch.randn(2, 3, 3, dtype=torch.float64)

    def loss(x: Tensor) -> Tensor:
        scores = schedule.scores(schedule.state(x, double(0.3, 0.8), noise), tau=0.5)
        return (torch.softmax(scores, -1) @ table * probe).sum()

    x = torch.softmax(torch.randn(2, 3, 4, dtype=torch.float64), -1).requires_grad_()
    (gradient,) = torch.autograd.grad(loss(x), x)
    h = 1e-5
    for index in [(0, 0, 0), (1, 2, 3), (0, 2, 1)]:
        step = torch.zeros_like(x)
        step[index] = h
        central = (loss(x.detach() + step) - loss(x.detach() - step)) / (2 * h)
        assert float(gradient[index]) == pytest.approx(float(central), abs=1e-9)  # h^2 and rounding
        assert abs(float(central)) > 1e-5


def test_the_uniform_nelbo_on_this_schedule_is_exact_for_a_uniform_denoiser() -> None:
    """Both chains forget alike, so their divergence at t = 0 is the integral plus that at t = 1."""
    k, n = 5, 2000
    schedule = GaussianRelaxation(k, gamma_min=-3.0, gamma_max=0.5)
    t = (torch.arange(n, dtype=torch.float64) + 0.5) / n

    def at(alpha: Tensor) -> Tensor:
        return ((1 - alpha) / k + alpha * torch.eye(k, dtype=torch.float64)[0]).reshape(-1, k)

    def divergence(time: float) -> float:
        q = at(schedule.alpha(double(time)))
        return float((q * (q * k).log()).sum())

    z = torch.arange(k).expand(n, k)
    log_p = torch.full((n, k, k), -math.log(k), dtype=torch.float64)
    nll = Uniform(k, schedule).nll_per_token(log_p, torch.zeros(n, k, dtype=torch.int64), z, t)
    integral = float((at(schedule.alpha(t)[:, None]) * nll).sum(-1).mean())
    # midpoint rule: the second derivative, about 10, over 24 n^2
    assert integral == pytest.approx(divergence(0.0) - divergence(1.0), abs=1e-6)
    assert integral > 0.5


def test_ranges_sizes_shapes_and_temperatures_that_cannot_be_are_refused() -> None:
    with pytest.raises(UserError, match="vocab_size is 1; a process needs at least two states"):
        GaussianRelaxation(1)
    for ends in ((-1.0, -2.0), (-1.0, -1.0), (-31.0, 0.0), (0.0, math.nan)):
        with pytest.raises(UserError, match="choose gamma_min below gamma_max"):
            GaussianRelaxation(5, gamma_min=ends[0], gamma_max=ends[1])
    schedule = GaussianRelaxation(5)
    t = double(0.5)
    with pytest.raises(UserError, match=r"tau is 0.*above 0"):
        schedule.scores(torch.zeros(1, 1, 5), tau=0)
    with pytest.raises(ValueError, match=r"x has shape \(1, 3\) and noise \(1, 2, 5\)"):
        schedule.state(torch.zeros(1, 3, dtype=torch.int64), t, torch.zeros(1, 2, 5))
    with pytest.raises(ValueError, match=r"x has shape \(1, 2, 1\)"):
        schedule.state(torch.zeros(1, 2, 1), t, torch.zeros(1, 2, 5))
    with pytest.raises(ValueError, match=r"noise is torch\.bfloat16; the relaxed state needs fp32"):
        schedule.state(torch.zeros(1, 2), t, torch.zeros(1, 2, 5, dtype=torch.bfloat16))
