"""The absorbing process against Bayes, against counting, and against its discrete-time limit."""

from __future__ import annotations

import math
from itertools import product

import pytest
import torch
from torch import Tensor

from idlm.errors import UserError
from idlm.processes import LOG_ZERO, Absorbing, make_process
from idlm.schedules import Cosine, LogLinear, Schedule

V = 3
MASK = V - 1
SCHEDULES = [LogLinear(), Cosine()]
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=["log-linear", "cosine"])


def double(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def forward_kernel(keep: float) -> Tensor:
    """q(later | earlier) as a V x V table when a token survives with probability ``keep``."""
    table = keep * torch.eye(V, dtype=torch.float64)
    table[:, MASK] += 1.0 - keep
    return table


@every_schedule
@pytest.mark.parametrize(("s", "t"), [(0.2, 0.7), (0.0, 1.0), (0.95, 1.0), (0.5, 0.5001)])
def test_posterior_is_bayes_rule_on_the_joint(schedule: Schedule, s: float, t: float) -> None:
    alpha_s, alpha_t = schedule.alpha(double(s, t)).tolist()
    to_s, s_to_t = forward_kernel(alpha_s), forward_kernel(alpha_t / alpha_s)
    process = Absorbing(V, schedule)
    pairs = 0
    for x, z in product(range(V), range(V)):
        joint = to_s[x] * s_to_t[:, z]
        if float(joint.sum()) == 0.0:
            continue  # this z_t cannot come from this x
        answer = process.posterior(torch.tensor([[x]]), torch.tensor([[z]]), double(s), double(t))
        # fp64, two divisions of numbers near 1; the narrow step loses four digits
        torch.testing.assert_close(answer[0, 0], joint / joint.sum(), atol=1e-10, rtol=0)
        pairs += 1
    assert pairs == 5


@every_schedule
def test_posterior_is_linear_in_a_soft_x0_and_sums_to_one(schedule: Schedule) -> None:
    process = Absorbing(V, schedule)
    z = torch.tensor([[MASK, 0, MASK, 1]])
    s, t = double(0.3), double(0.8)
    soft = torch.rand(1, 4, V, dtype=torch.float64)
    soft = soft / soft.sum(-1, keepdim=True)
    mixture = sum(
        soft[..., x, None] * process.posterior(torch.full((1, 4), x), z, s, t) for x in range(V)
    )
    answer = process.posterior(soft, z, s, t)
    torch.testing.assert_close(answer, mixture, atol=1e-12, rtol=0)  # fp64, sums of three
    torch.testing.assert_close(answer.sum(-1), torch.ones_like(answer[..., 0]), atol=1e-12, rtol=0)


def test_posterior_keeps_visible_tokens_whatever_x0_says() -> None:
    z = torch.tensor([[0, 1]])
    answer = Absorbing(V).posterior(torch.tensor([[1, 0]]), z, double(0.1), double(0.9))
    assert torch.equal(answer, torch.eye(V, dtype=torch.float64)[z])


@every_schedule
def test_posterior_averaged_over_z_t_is_the_marginal_at_s(schedule: Schedule) -> None:
    process = Absorbing(V, schedule)
    s, t = double(0.4), double(0.9)
    for x in range(MASK):
        at_t = forward_kernel(float(schedule.alpha(t)))[x]
        every_z = torch.arange(V)[None]
        table = process.posterior(torch.full((1, V), x), every_z, s, t)[0]
        marginal = forward_kernel(float(schedule.alpha(s)))[x]
        torch.testing.assert_close(at_t @ table, marginal, atol=1e-12, rtol=0)  # fp64


def test_times_of_shape_b_and_b_1_mean_the_same() -> None:
    process = Absorbing(V)
    z = torch.tensor([[MASK, 0], [MASK, MASK]])  # B = L: a transposed broadcast would pass unseen
    x = torch.tensor([[1, 0], [0, 1]])
    s, t = double(0.1, 0.5), double(0.3, 0.9)
    log_p = process.log_probs(torch.randn(2, 2, V, dtype=torch.float64), z)
    for column in (False, True):
        shape = (2, 1) if column else (2,)
        shown = process.posterior(x, z, s.reshape(shape), t.reshape(shape))
        # by hand: the share of masked time that lies above s is 1 - s/t for the log-linear schedule
        torch.testing.assert_close(
            1 - shown[:, :, MASK], torch.tensor([[2 / 3, 1.0], [4 / 9, 4 / 9]], dtype=torch.float64)
        )
        nll = process.nll_per_token(log_p, x, z, t.reshape(shape))
        expected = -log_p.gather(-1, x[..., None])[..., 0] / t[:, None] * (z == MASK)
        torch.testing.assert_close(nll, expected)
        noise = torch.tensor([[0.2, 0.4], [0.2, 0.95]], dtype=torch.float64)
        masked = process.corrupt(x, t.reshape(shape), noise) == MASK
        assert masked.tolist() == [[True, False], [True, False]]


@every_schedule
def test_corruption_masks_with_the_schedules_frequency(schedule: Schedule) -> None:
    process = Absorbing(6, schedule)
    n = 20_000
    t = torch.tensor([0.05, 0.5, 0.9, 1.0])
    x0 = torch.randint(0, 5, (4, n))
    z = process.corrupt(x0, t, torch.rand(4, n, dtype=torch.float64))
    masked = z == process.mask_id
    chance = 1.0 - schedule.alpha(t.double())
    bound = 4 * torch.sqrt(chance * (1 - chance) / n)  # four standard deviations
    assert bool(((masked.double().mean(1) - chance).abs() < bound).all())
    assert torch.equal(z[~masked], x0[~masked])


def test_corruption_at_time_zero_changes_nothing_and_the_prior_is_all_mask() -> None:
    process = Absorbing(6)
    x0 = torch.randint(0, 5, (2, 50))
    assert torch.equal(process.corrupt(x0, torch.zeros(2), torch.zeros(2, 50)), x0)
    prior = process.prior((2, 3), like=x0)
    assert prior.dtype == torch.int64
    assert prior.tolist() == [[5] * 3] * 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_subs_is_a_distribution_without_mask_at_masked_positions(dtype: torch.dtype) -> None:
    process = Absorbing(7)
    logits = 5 * torch.randn(2, 4, 7, dtype=dtype)
    logits[..., process.mask_id] = 30.0  # however much the network likes the mask
    z = torch.full((2, 4), process.mask_id)
    p = process.log_probs(logits, z).exp()
    assert p.dtype == dtype
    # the sum of seven rounded exponentials of rounded logarithms
    torch.testing.assert_close(p.sum(-1), torch.ones(2, 4, dtype=dtype), atol=2e-6, rtol=0)
    assert torch.equal(p[..., process.mask_id], torch.zeros(2, 4, dtype=dtype))
    expected = torch.softmax(logits[..., :-1].double(), -1)
    torch.testing.assert_close(p[..., :-1].double(), expected, atol=2e-6, rtol=0)


def test_subs_carries_visible_tokens_over_with_finite_logarithms() -> None:
    process = Absorbing(4)
    z = torch.tensor([[0, 3, 2]])
    log_p = process.log_probs(torch.randn(1, 3, 4), z)
    for position in (0, 2):
        row = log_p[0, position]
        assert float(row[z[0, position]]) == 0.0
        others = torch.arange(4) != z[0, position]
        assert torch.equal(row[others], torch.full((3,), LOG_ZERO))
    assert LOG_ZERO == -1e6  # the published constant


def test_subs_passes_no_gradient_at_visible_positions() -> None:
    process = Absorbing(4)
    logits = torch.randn(2, 3, 4, requires_grad=True)
    z = torch.tensor([[0, 3, 2], [3, 1, 3]])
    (process.log_probs(logits, z) * torch.randn(2, 3, 4)).sum().backward()
    assert logits.grad is not None
    used = logits.grad.abs().amax(-1) > 0
    assert torch.equal(used, z == process.mask_id)


def test_subs_changes_nothing_in_place() -> None:
    process = Absorbing(4)
    logits, z = torch.randn(2, 3, 4), torch.tensor([[0, 3, 2], [3, 1, 3]])
    before, state = logits.clone(), z.clone()
    process.log_probs(logits, z)
    process.clean_log_probs(logits)
    assert torch.equal(logits, before)
    assert torch.equal(z, state)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_subs_of_half_precision_logits_is_computed_in_fp32(dtype: torch.dtype) -> None:
    process = Absorbing(500)
    logits = (3 * torch.randn(1, 2, 500)).to(dtype)
    z = torch.full((1, 2), process.mask_id)
    log_p = process.log_probs(logits, z)
    assert log_p.dtype == torch.float32
    exact = torch.log_softmax(logits.double()[..., :-1], -1)
    # fp32; a logarithm formed in bf16 near 10 would be off by 0.03
    torch.testing.assert_close(log_p[..., :-1].double(), exact, atol=1e-5, rtol=0)


def test_rows_of_clean_log_probs_are_the_masked_rows_of_subs() -> None:
    process = Absorbing(5)
    logits = torch.randn(2, 6, 5)
    z = torch.randint(0, 5, (2, 6))
    masked = z == process.mask_id
    assert torch.equal(
        process.clean_log_probs(logits[masked]), process.log_probs(logits, z)[masked]
    )


def test_nll_of_hard_and_one_hot_targets_agree_and_vanish_where_visible() -> None:
    process = Absorbing(5)
    z = torch.tensor([[4, 0, 4, 2]])
    x0 = torch.tensor([[1, 0, 3, 2]])
    log_p = process.log_probs(torch.randn(1, 4, 5, dtype=torch.float64), z)
    hard = process.nll_per_token(log_p, x0, z, double(0.25))
    one_hot = torch.nn.functional.one_hot(x0, 5).double()
    # fp64; the mask's -1e6 meets an exact zero
    torch.testing.assert_close(
        process.nll_per_token(log_p, one_hot, z, double(0.25)), hard, atol=1e-12, rtol=0
    )
    by_hand = -4.0 * torch.stack([log_p[0, 0, 1], log_p[0, 2, 3]])
    torch.testing.assert_close(hard[0, [0, 2]], by_hand, atol=1e-12, rtol=0)
    assert hard[0, [1, 3]].tolist() == [0.0, 0.0]


def test_a_soft_target_at_a_visible_position_scores_zero_not_a_million() -> None:
    process = Absorbing(3)
    z = torch.tensor([[0]])
    log_p = process.log_probs(torch.randn(1, 1, 3), z)
    soft = torch.tensor([[[0.5, 0.5, 0.0]]])
    assert float(process.nll_per_token(log_p, soft, z, torch.tensor([0.5]))) == 0.0


@every_schedule
def test_nelbo_of_a_uniform_denoiser_is_the_log_of_the_vocabulary(schedule: Schedule) -> None:
    process = Absorbing(7, schedule)
    n = 20_000
    t = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    z = torch.full((n, 1), process.mask_id)
    log_p = process.log_probs(torch.zeros(n, 1, 7, dtype=torch.float64), z)
    nll = process.nll_per_token(log_p, torch.zeros(n, 1, dtype=torch.int64), z, t)[:, 0]
    nelbo = ((1.0 - schedule.alpha(t)) * nll).mean()  # visible positions contribute zero
    # midpoint rule on a smooth integrand: error of order 1/n^2
    assert float(nelbo) == pytest.approx((1 - 1e-3) * math.log(6), abs=1e-8)


@every_schedule
def test_nelbo_integrand_is_the_limit_of_the_discrete_time_divergences(schedule: Schedule) -> None:
    """sum over steps of KL(q(z_s | z_t, x0) || p(z_s | z_t)), for a denoiser that moves with t."""
    process = Absorbing(V, schedule)
    steps = 20_000
    grid = torch.linspace(0.0, 1.0, steps + 1, dtype=torch.float64)
    s, t = grid[:-1], grid[1:]
    z = torch.full((steps, 1), MASK)
    x0 = torch.zeros(steps, 1, dtype=torch.int64)
    logits = torch.stack([3 * t, 1 - t, torch.zeros_like(t)], -1)[:, None]
    log_p = process.log_probs(logits, z)
    true, model = process.posterior(x0, z, s, t), process.posterior(log_p.exp(), z, s, t)
    divergence = torch.where(true > 0, true * (true / model).log(), 0.0).sum((1, 2))
    masked = 1.0 - schedule.alpha(t)  # a visible position is certain in both: no divergence
    discrete = float((masked * divergence).sum())
    middle = (s + t) / 2
    logits = torch.stack([3 * middle, 1 - middle, torch.zeros_like(t)], -1)[:, None]
    nll = process.nll_per_token(process.log_probs(logits, z), x0, z, middle)[:, 0]
    continuous = float(((1.0 - schedule.alpha(middle)) * nll).mean())
    # the sum is a right-end rule: off by at most (largest slope, about 3) / (2 steps)
    assert discrete == pytest.approx(continuous, abs=1e-4)
    assert continuous > 0.1


def test_unknown_processes_and_empty_vocabularies_are_refused() -> None:
    with pytest.raises(UserError, match=r"process is 'masked'; choose one of .*absorbing"):
        make_process("masked", 5)
    with pytest.raises(UserError, match="vocab_size is 1; a process needs at least two states"):
        Absorbing(1)


def test_the_mask_is_the_last_state() -> None:
    process = make_process("absorbing", 50258, schedule="cosine", eps=0.01)
    assert isinstance(process, Absorbing)
    assert process.mask_id == 50257
    assert isinstance(process.schedule, Cosine)
    assert process.schedule.eps == 0.01
