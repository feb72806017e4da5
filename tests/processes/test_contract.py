"""What every process promises, against enumeration in float64 on a few states."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor

from idlm.errors import UserError
from idlm.processes import Absorbing, Process, Uniform, make_process
from idlm.schedules import Cosine, LogLinear

V = 4
NAMES = ("absorbing", "uniform")
SCHEDULES = ("log-linear", "cosine")


@pytest.fixture(params=list(product(NAMES, SCHEDULES)), ids="-".join)
def process(request: pytest.FixtureRequest) -> Process:
    name, schedule = request.param
    return make_process(name, V, schedule=schedule)


def double(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def clean_states(process: Process) -> range:
    return range(V - 1) if isinstance(process, Absorbing) else range(V)


def prior_of(process: Process) -> Tensor:
    if isinstance(process, Absorbing):
        return torch.eye(V, dtype=torch.float64)[V - 1]
    return torch.full((V,), 1.0 / V, dtype=torch.float64)


def kernel(process: Process, keep: Tensor) -> Tensor:
    """q(later | earlier), rows by the earlier state, where a token survives with ``keep``."""
    return keep * torch.eye(V, dtype=torch.float64) + (1.0 - keep) * prior_of(process)


def soft_targets(process: Process, count: int) -> Tensor:
    """Random distributions over the clean states, ``[count, V]``."""
    states = len(clean_states(process))
    soft = torch.softmax(2 * torch.randn(count, states, dtype=torch.float64), -1)
    return torch.nn.functional.pad(soft, (0, V - states))


def targets(process: Process) -> list[Tensor]:
    """Each clean token and some soft ones, as rows ``[V]``."""
    hard = torch.eye(V, dtype=torch.float64)
    return [*(hard[x] for x in clean_states(process)), *soft_targets(process, 3)]


@pytest.mark.parametrize(("s", "t"), [(0.2, 0.7), (1e-9, 0.999), (0.9, 0.95)])
def test_the_posterior_is_bayes_rule_on_the_full_joint(
    process: Process, s: float, t: float
) -> None:
    alpha_s, alpha_t = process.schedule.alpha(double(s, t))
    to_s, s_to_t = kernel(process, alpha_s), kernel(process, alpha_t / alpha_s)
    checked = 0
    for x, z in product(targets(process), range(V)):
        joint = (x @ to_s) * s_to_t[:, z]
        if float(joint.sum()) == 0.0:
            continue  # this state cannot come from this token
        state = torch.tensor([[z]])
        answer = process.posterior(x[None, None], state, double(s), double(t))[0, 0]
        # fp64; the narrow step loses four digits
        torch.testing.assert_close(answer, joint / joint.sum(), atol=1e-10, rtol=0)
        if float(x.max()) == 1.0:
            hard = process.posterior(x.argmax()[None, None], state, double(s), double(t))[0, 0]
            torch.testing.assert_close(hard, answer, atol=1e-14, rtol=0)
        checked += 1
    assert checked >= 15


def test_a_posterior_without_a_step_is_the_state_and_to_time_zero_the_token(
    process: Process,
) -> None:
    z = torch.arange(V)[None]
    for x in clean_states(process):
        x0 = torch.full((1, V), x)
        t = double(0.4)
        possible = process.posterior(x0, z, double(0.2), t).isfinite().all(-1)
        stay = process.posterior(x0, z, t, t)
        eye = torch.eye(V, dtype=torch.float64)
        torch.testing.assert_close(stay[possible], eye[z][possible], atol=1e-12, rtol=0)
        came = process.posterior(x0, z, double(0.0), t)
        reached = z == x if isinstance(process, Absorbing) else torch.ones_like(z, dtype=torch.bool)
        reached |= z == getattr(process, "mask_id", -1)
        torch.testing.assert_close(came[reached], eye[x0][reached], atol=1e-12, rtol=0)


def test_corruption_draws_from_the_marginal(process: Process) -> None:
    n = 40_000
    t = double(0.1, 0.6, 0.99)
    for x in clean_states(process):
        noise = torch.rand(3, n, dtype=torch.float64)
        z = process.corrupt(torch.full((3, n), x), t, noise)
        assert torch.equal(z, process.corrupt(torch.full((3, n), x), t[:, None], noise))
        seen = torch.nn.functional.one_hot(z, V).double().mean(1)
        alpha = process.schedule.alpha(t)[:, None]
        marginal = alpha * torch.eye(V, dtype=torch.float64)[x] + (1 - alpha) * prior_of(process)
        bound = 5 * torch.sqrt(marginal * (1 - marginal) / n) + 1e-12  # five standard deviations
        assert bool(((seen - marginal).abs() <= bound).all())


def test_the_prior_is_the_marginal_of_pure_noise(process: Process) -> None:
    n = 20_000
    noise = torch.rand(2, n, dtype=torch.float64)
    tokens = process.prior((2, n), like=noise, noise=noise)
    assert tokens.shape == (2, n)
    assert tokens.dtype == torch.int64
    assert torch.equal(tokens, process.prior((2, n), like=noise, noise=noise))
    for drawn in (tokens, process.prior((2, n), like=noise)):
        seen = torch.nn.functional.one_hot(drawn, V).double().mean((0, 1))
        expected = prior_of(process)
        bound = 5 * torch.sqrt(expected * (1 - expected) / (2 * n))
        assert bool(((seen - expected).abs() <= bound).all())


def test_log_probs_are_normalised_and_change_nothing_in_place(process: Process) -> None:
    logits = 3 * torch.randn(2, V, V, dtype=torch.float64)
    before = logits.clone()
    log_p = process.log_probs(logits, torch.arange(V).expand(2, V))
    torch.testing.assert_close(
        log_p.exp().sum(-1), torch.ones(2, V, dtype=torch.float64), atol=1e-12, rtol=0
    )
    assert torch.equal(logits, before)


def moving_log_probs(process: Process, z: Tensor, t: Tensor) -> Tensor:
    """Some denoiser whose answer depends on the state and on time, for states ``[N, V]``."""
    table = torch.linspace(-1.0, 1.5, V * V, dtype=torch.float64).reshape(V, V).sin() * 3
    return process.log_probs(table[z] * (1.0 + t[:, None, None]), z)


def test_the_nelbo_is_the_limit_of_the_discrete_time_divergences(process: Process) -> None:
    """Sum over steps of E_z KL(q(z_s | z, x0) || p(z_s | z)) against the integral of the NLL."""
    steps = 4_000
    grid = torch.linspace(0.0, 1.0, steps + 1, dtype=torch.float64)
    s, t, middle = grid[:-1], grid[1:], (grid[:-1] + grid[1:]) / 2
    z = torch.arange(V).expand(steps, V)
    for x in targets(process):
        x0 = x.expand(steps, V, V)

        def weight(time: Tensor, x: Tensor = x) -> Tensor:
            alpha = process.schedule.alpha(time)[:, None]
            return alpha * x + (1.0 - alpha) * prior_of(process)

        possible = weight(t) > 0
        true = process.posterior(x0, z, s, t)
        model = process.posterior(moving_log_probs(process, z, t).exp(), z, s, t)
        terms = torch.where(true > 0, true * (true / model).log(), 0.0).sum(-1)
        discrete = torch.where(possible, weight(t) * terms, 0.0).sum()
        nll = process.nll_per_token(moving_log_probs(process, z, middle), x0, z, middle)
        target = torch.where(x0 > 0, x0 * x0.log(), 0.0).sum(-1)
        if isinstance(process, Absorbing):
            # its soft loss is a cross-entropy, which exceeds the divergence by the target's entropy
            masked = z == process.mask_id
            nll = nll + torch.where(masked, process.schedule.weight(middle)[:, None] * target, 0.0)
        continuous = (weight(middle) * nll).sum(-1).mean()
        # a right-end rule of 4,000 steps against a midpoint rule
        assert float(discrete) == pytest.approx(float(continuous), rel=4e-3)
        assert float(continuous) > 0.1


def test_hard_targets_are_one_hot_soft_ones_and_times_have_either_shape(process: Process) -> None:
    z = torch.randint(0, V, (3, 6))
    x0 = torch.randint(0, V - 1, (3, 6))
    t = double(0.1, 0.5, 0.9)
    log_p = process.log_probs(torch.randn(3, 6, V, dtype=torch.float64), z)
    hard = process.nll_per_token(log_p, x0, z, t)
    one_hot = torch.nn.functional.one_hot(x0, V).double()
    column = t[:, None]
    for target, time in ((one_hot, t), (x0, column), (one_hot, column)):
        other = process.nll_per_token(log_p, target, z, time)
        torch.testing.assert_close(other, hard, atol=1e-9, rtol=1e-12)  # fp64
    assert torch.equal(
        process.posterior(x0, z, t / 2, t), process.posterior(x0, z, column / 2, column)
    )


def test_a_process_is_made_by_its_name() -> None:
    assert isinstance(make_process("absorbing", 5).schedule, LogLinear)
    uniform = make_process("uniform", 5, schedule="cosine", eps=0.01)
    assert isinstance(uniform, Uniform)
    assert isinstance(uniform.schedule, Cosine)
    assert not hasattr(uniform, "mask_id")
    with pytest.raises(UserError, match="process is 'masked'; choose one of absorbing, uniform"):
        make_process("masked", 5)
