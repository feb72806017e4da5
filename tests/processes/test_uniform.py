"""The uniform process against the published closed forms."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from idlm.processes import Uniform
from idlm.schedules import LogLinear

K = 5


def case(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Log-probabilities, tokens, states (some of them the token) and times."""
    log_p = torch.log_softmax(2 * torch.randn(4, 9, K, dtype=dtype), -1)
    x0 = torch.randint(0, K, (4, 9))
    z = torch.where(torch.rand(4, 9) < 0.4, x0, torch.randint(0, K, (4, 9)))
    return log_p, x0, z, torch.tensor([0.02, 0.3, 0.7, 0.98], dtype=dtype)


def published_nll(log_p: Tensor, x0: Tensor, z: Tensor, t: Tensor) -> Tensor:
    """The one-hot form of UDLM's loss (methods B.2), term by term."""
    alpha = (1 - (1 - 1e-3) * t).double()[:, None]
    xbar = K * alpha[..., None] * log_p.double().exp() + 1 - alpha[..., None]
    e = (x0 == z).double()
    at_z, at_x = (xbar.gather(-1, i[..., None])[..., 0] for i in (z, x0))
    term1 = K * (1 / ((1 - alpha) + K * alpha * e) - 1 / at_z)
    c = (1 - alpha) / (K * alpha + 1 - alpha)
    term2 = -(e * c + 1 - e) * (xbar.log().sum(-1) - K * at_z.log())
    term2 = term2 - (1 - e) * K * alpha / (1 - alpha) * (at_x.log() - at_z.log())
    term2 = term2 + ((K - 1) * c * e - (1 - e) / c) * c.log()
    return -(1 - 1e-3) / (K * alpha) * (term1 - term2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nll_is_the_published_one_hot_form_to_ten_digits(dtype: torch.dtype) -> None:
    log_p, x0, z, t = case(dtype)
    nll = Uniform(K).nll_per_token(log_p, x0, z, t)
    assert nll.dtype == torch.float64
    # fp64 throughout, also from fp32 log-probabilities, whose sum is not exactly one
    torch.testing.assert_close(nll, published_nll(log_p, x0, z, t), atol=1e-12, rtol=1e-10)


def test_the_nelbo_of_five_states_is_the_fine_sum_of_discrete_time_divergences() -> None:
    """Random p_theta that changes with the state; z_t averaged by its law (methods B.2)."""
    process, steps, clean = Uniform(K), 4_000, 1
    guess = torch.log_softmax(torch.randn(K, K, dtype=torch.float64), -1)  # by the state
    grid = torch.linspace(0.01, 1.0, steps + 1, dtype=torch.float64)
    s, t, middle = grid[:-1], grid[1:], (grid[:-1] + grid[1:]) / 2
    state, x = torch.arange(K).expand(steps, K), torch.full((steps, K), clean)

    def law(time: Tensor) -> Tensor:
        alpha = process.schedule.alpha(time).unsqueeze(-1)
        return alpha * (state == clean) + (1 - alpha) / K

    truth = process.posterior(x, state, s, t)
    model = process.posterior(guess.exp()[state], state, s, t)
    discrete = (law(t) * (truth * (truth / model).log()).sum(-1)).sum()
    rate = process.nll_per_token(guess[state], x, state, middle)
    continuous = (law(middle) * rate).sum() * 0.99 / steps
    assert float(continuous) > 0.1
    # a right-end rule of 4,000 steps against a midpoint rule
    assert float(discrete) == pytest.approx(float(continuous), rel=4e-3)


def test_nll_is_a_divergence_zero_only_where_the_denoiser_is_the_target() -> None:
    process = Uniform(K)
    log_p, _, z, t = case()
    soft = log_p.exp()
    zero = process.nll_per_token(log_p, soft, z, t)
    torch.testing.assert_close(zero, torch.zeros_like(zero), atol=1e-10, rtol=0)
    assert bool((process.nll_per_token(log_p.roll(1, 0), soft, z, t) > 1e-6).all())


@pytest.mark.parametrize("soft", [False, True])
def test_the_difference_of_two_nlls_is_theirs_in_value_and_gradient(soft: bool) -> None:
    process, (log_p, x0, z, t) = Uniform(K), case()
    target = log_p.roll(2, 0).exp() if soft else x0
    tables = [table.detach().requires_grad_() for table in (log_p, log_p.roll(1, 0))]
    if soft:
        tables.append(target.requires_grad_())
    mine = process.nll_difference(*tables[:2], target, z, t)
    first, second = (process.nll_per_token(table, target, z, t) for table in tables[:2])
    torch.testing.assert_close(mine, first - second, rtol=1e-10, atol=1e-12)
    weight = torch.arange(1.0, 1 + mine.numel()).view_as(mine)
    ours, theirs = (
        torch.autograd.grad((weight * value).sum(), tables) for value in (mine, first - second)
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
    assert float(mine.detach().abs().max()) > 1


def test_the_gradient_reaches_denoiser_and_soft_target() -> None:
    process = Uniform(K)
    logits = torch.randn(1, 2, K, dtype=torch.float64, requires_grad=True)
    soft = torch.randn(1, 2, K, dtype=torch.float64, requires_grad=True)
    z, t = torch.tensor([[1, 3]]), torch.tensor([0.4], dtype=torch.float64)

    def loss(logits: Tensor, soft: Tensor) -> Tensor:
        return process.nll_per_token(process.log_probs(logits, z), soft.softmax(-1), z, t)

    assert torch.autograd.gradcheck(loss, (logits, soft))


def test_the_posterior_is_the_published_expression() -> None:
    process = Uniform(K)
    log_p, _, z, t = case()
    s = t / 3
    alpha_t, alpha_s = (process.schedule.alpha(time)[:, None, None] for time in (t, s))
    step, x, here = alpha_t / alpha_s, log_p.exp(), torch.nn.functional.one_hot(z, K).double()
    top = K * alpha_t * x * here + (step - alpha_t) * here + (alpha_s - alpha_t) * x
    top = top + (1 - step) * (1 - alpha_s) / K
    expected = top / (K * alpha_t * (x * here).sum(-1, keepdim=True) + 1 - alpha_t)
    answer = process.posterior(x, z, s, t)
    torch.testing.assert_close(answer, expected, atol=1e-14, rtol=1e-12)  # fp64
    torch.testing.assert_close(answer.sum(-1), torch.ones_like(answer[..., 0]))


def test_a_soft_x0_is_plugged_in_which_is_not_the_mixture_of_hard_ones() -> None:
    process = Uniform(3)
    soft = torch.tensor([[[0.7, 0.2, 0.1]]], dtype=torch.float64)
    z = torch.tensor([[1]])
    s, t = (torch.tensor([time], dtype=torch.float64) for time in (0.3, 0.6))
    mixture = sum(
        soft[..., v, None] * process.posterior(torch.tensor([[v]]), z, s, t) for v in range(3)
    )
    plugged = process.posterior(soft, z, s, t)
    assert float((plugged - mixture).abs().max()) > 1e-2


def test_times_in_fp32_are_rounded_as_in_the_published_code() -> None:
    log_p, x0, z, t = case()
    process, single = Uniform(K), t.float()
    rounded = (1 - (1 - 1e-3) * single).double()
    exact = (1 - rounded) / (1 - 1e-3)  # the fp64 time of that alpha
    torch.testing.assert_close(
        process.nll_per_token(log_p, x0, z, single),
        process.nll_per_token(log_p, x0, z, exact),
        atol=0,
        rtol=1e-10,
    )


def test_log_probs_of_half_precision_logits_are_fp32() -> None:
    logits = torch.randn(1, 2, K).bfloat16()
    log_p = Uniform(K, LogLinear()).log_probs(logits, torch.zeros(1, 2, dtype=torch.int64))
    assert log_p.dtype == torch.float32
    torch.testing.assert_close(log_p, torch.log_softmax(logits.float(), -1))


def test_noise_that_cannot_tell_all_states_apart_is_refused() -> None:
    process, x0 = Uniform(50258), torch.zeros(1, 4, dtype=torch.int64)
    for draw in (
        lambda noise: process.corrupt(x0, torch.tensor([0.5]), noise),
        lambda noise: process.prior((1, 4), like=x0, noise=noise),
    ):
        with pytest.raises(ValueError, match=r"noise is torch\.float32.*needs float64"):
            draw(torch.rand(1, 4))


def test_a_token_that_changes_may_turn_into_every_state() -> None:
    process, n = Uniform(1000), 200_000
    x0 = torch.zeros(1, n, dtype=torch.int64)
    t = torch.tensor([0.5], dtype=torch.float64)
    z = process.corrupt(x0, t, torch.rand(1, n, dtype=torch.float64))
    assert z.unique().numel() == 1000
    edge = process.corrupt(x0, t, torch.full((1, n), 0.5 * (1 - 1e-3) - 1e-12, dtype=torch.float64))
    assert int(edge.max()) == 999
