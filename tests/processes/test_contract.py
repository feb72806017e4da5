"""What every process promises, against enumeration in float64 on a few states.

The three processes are put in one form, :class:`Chain`: a finite set of states in order, laws over
them as rows of probabilities, and times. For the Gaussian process the states are the cells of a
fine grid on the line, and a sum over them is a quadrature.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from idlm.errors import UserError
from idlm.processes import Absorbing, Process, Uniform, make_process
from idlm.processes.gaussian import CosineVP, Gaussian, LinearLogSNR
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


class Chain(ABC):
    """A process as its transition tables; those of the first kind are written down here again.

    Attributes:
        process: the one under test.
        clean: clean targets, of which only this class knows the form.
        hard: those that are one clean state and no mixture.
        pairs: steps (s, t) that the states resolve.
        near: distance, in probability, of the noisiest law from the prior.
        start: where the NELBO's integral starts, 0 if it is finite there.
    """

    process: Any
    clean: list[Tensor]
    hard: list[Tensor]
    pairs: tuple[tuple[float, float], ...]
    near: float
    start = 0.0

    @abstractmethod
    def marginal(self, x: Tensor, t: float) -> Tensor:
        """q(z_t | x), ``[N]``."""

    @abstractmethod
    def kernel(self, s: float, t: float) -> Tensor:
        """q(z_t | z_s), rows by z_s, ``[N, N]``."""

    @abstractmethod
    def prior(self) -> Tensor:
        """The law of pure noise, ``[N]``."""

    @abstractmethod
    def posterior(self, x: Tensor, s: float, t: float) -> Tensor:
        """The process's own q(z_s | x, z_t), rows by z_t, ``[N, N]``."""

    @abstractmethod
    def where(self, x: Tensor) -> Tensor:
        """The law of a clean target itself, ``[N]``."""

    @abstractmethod
    def corrupted(self, x: Tensor, t: float, n: int) -> Tensor:
        """Numbers of the states of n draws of z_t, ``[n]``."""

    @abstractmethod
    def pure_noise(self, n: int) -> Tensor:
        """Numbers of the states of n draws of the prior, ``[n]``."""

    @abstractmethod
    def divergences(self, x: Tensor, s: Tensor, t: Tensor, middle: Tensor) -> Tensor:
        """E_z KL(q(z_s | z, x) || q(z_s | z, guess)) in nats for steps ``[S]``, ``[S]``.

        The guess is some denoiser's, which moves with the state and with time, here ``middle``.
        """

    @abstractmethod
    def integrands(self, x: Tensor, t: Tensor) -> Tensor:
        """E_z of the loss that has the NELBO's weight, less what the target alone adds, ``[S]``."""

    @abstractmethod
    def answers(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What is linear in x where a soft target may stand for hard ones.

        The posterior's mean (of a token: its probabilities), and how much one guess's loss exceeds
        another's.
        """


class TokenChain(Chain):
    """A process over V tokens; a clean target is a law over them, ``[V]``."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self.clean = targets(process)
        self.hard = self.clean[: len(clean_states(process))]
        self.pairs = ((0.2, 0.7), (1e-9, 0.999), (0.9, 0.95))
        self.near = 1.1e-3  # alpha_1 is 1e-3
        self.z = torch.arange(V)

    def marginal(self, x: Tensor, t: float) -> Tensor:
        alpha = self.process.schedule.alpha(double(t))
        return alpha * x + (1.0 - alpha) * prior_of(self.process)

    def kernel(self, s: float, t: float) -> Tensor:
        alpha_s, alpha_t = self.process.schedule.alpha(double(s, t))
        keep = alpha_t / alpha_s
        return keep * torch.eye(V, dtype=torch.float64) + (1.0 - keep) * prior_of(self.process)

    def prior(self) -> Tensor:
        return prior_of(self.process)

    def posterior(self, x: Tensor, s: float, t: float) -> Tensor:
        return self.process.posterior(x.expand(1, V, V), self.z[None], double(s), double(t))[0]

    def where(self, x: Tensor) -> Tensor:
        return x

    def corrupted(self, x: Tensor, t: float, n: int) -> Tensor:
        x0 = torch.multinomial(x, n, replacement=True)[None]
        return self.process.corrupt(x0, double(t), torch.rand(1, n, dtype=torch.float64))[0]

    def pure_noise(self, n: int) -> Tensor:
        like = torch.rand(1, n, dtype=torch.float64)
        return self.process.prior((1, n), like=like, noise=like)[0]

    def _guess(self, t: Tensor) -> Tensor:
        """log p of the denoiser, ``[S, V, V]``."""
        table = torch.linspace(-1.0, 1.5, V * V, dtype=torch.float64).reshape(V, V).sin() * 3
        z = self.z.expand(len(t), V)
        return self.process.log_probs(table[z] * (1.0 + t[:, None, None]), z)

    def _weight(self, x: Tensor, t: Tensor) -> Tensor:
        alpha = self.process.schedule.alpha(t)[:, None]
        return alpha * x + (1.0 - alpha) * prior_of(self.process)

    def divergences(self, x: Tensor, s: Tensor, t: Tensor, middle: Tensor) -> Tensor:
        z, x0 = self.z.expand(len(t), V), x.expand(len(t), V, V)
        weight = self._weight(x, t)
        true = self.process.posterior(x0, z, s, t)
        model = self.process.posterior(self._guess(middle).exp(), z, s, t)
        terms = torch.where(true > 0, true * (true / model).log(), 0.0).sum(-1)
        return torch.where(weight > 0, weight * terms, 0.0).sum(-1)

    def integrands(self, x: Tensor, t: Tensor) -> Tensor:
        z, x0 = self.z.expand(len(t), V), x.expand(len(t), V, V)
        nll = self.process.nll_per_token(self._guess(t), x0, z, t)
        if isinstance(self.process, Absorbing):
            # its soft loss is a cross-entropy, which exceeds the divergence by the target's entropy
            minus_entropy = torch.where(x0 > 0, x0 * x0.log(), 0.0).sum(-1)
            masked = z == self.process.mask_id
            weight = self.process.schedule.weight(t)[:, None]
            nll = nll + torch.where(masked, weight * minus_entropy, 0.0)
        return (self._weight(x, t) * nll).sum(-1)

    def answers(self, x: Tensor) -> tuple[Tensor, Tensor]:
        one, other = self._guess(double(0.1, 0.9)).unsqueeze(1)
        z, x0, t = self.z[None], x.expand(1, V, V), double(0.7)
        if isinstance(self.process, Absorbing):
            z = torch.full_like(z, self.process.mask_id)  # another state fixes x
            one, other = (guess[:, -1:].expand(1, V, V) for guess in (one, other))
        excess = self.process.nll_per_token(one, x0, z, t)
        excess = excess - self.process.nll_per_token(other, x0, z, t)
        return self.process.posterior(x0, z, double(0.2), t)[0], excess[0]


class LineChain(Chain):
    """The Gaussian process on the line, in cells; a clean target is a number ``[1]``."""

    def __init__(self, process: Gaussian) -> None:
        self.process = process
        self.pairs = ((0.2, 0.7), (0.05, 0.999), (0.9, 0.95))
        self.near = 1e-2  # alpha_1 |x| / sqrt(2 pi) is at most 0.009 for the linear log-SNR
        self.width = 0.025
        self.z = torch.arange(-360, 361, dtype=torch.float64) * self.width
        self.clean = self.hard = [self.z[[i]] for i in (310, 364, 405)]
        if isinstance(process.schedule, CosineVP):
            self.start = 0.05  # x is infinitely well known at 0, and so is the guess's error

    def _scales(self, t: float) -> tuple[float, float]:
        schedule = self.process.schedule
        return float(schedule.alpha(double(t))), float(schedule.sigma(double(t)))

    def _normal(self, mean: Tensor, std: Tensor | float) -> Tensor:
        """Probabilities of cells under normals of mean ``[..., 1]``; of one cell for no width."""
        std = torch.as_tensor(std, dtype=torch.float64)
        if bool((std < 1e-9).all()):
            cell = ((mean - self.z[0]) / self.width).round().long().squeeze(-1)
            return torch.nn.functional.one_hot(cell, len(self.z)).double()
        scaled = (self.z - mean) / std
        return self.width / (std * math.sqrt(2 * math.pi)) * torch.exp(-0.5 * scaled**2)

    def marginal(self, x: Tensor, t: float) -> Tensor:
        alpha, sigma = self._scales(t)
        return self._normal(alpha * x, sigma)

    def kernel(self, s: float, t: float) -> Tensor:
        (alpha_s, sigma_s), (alpha_t, sigma_t) = self._scales(s), self._scales(t)
        step = alpha_t / alpha_s
        return self._normal(step * self.z[:, None], math.sqrt(sigma_t**2 - (step * sigma_s) ** 2))

    def prior(self) -> Tensor:
        return self._normal(double(0.0), 1.0)

    def posterior(self, x: Tensor, s: float, t: float) -> Tensor:
        n = len(self.z)
        answer = self.process.posterior(
            x.expand(n, 1), self.z[:, None], double(s).expand(n), double(t).expand(n)
        )
        return self._normal(answer.mean, answer.std)

    def where(self, x: Tensor) -> Tensor:
        return self._normal(x, 0.0)

    def _cells(self, z: Tensor) -> Tensor:
        return ((z - self.z[0]) / self.width).round().long().clamp(0, len(self.z) - 1)

    def corrupted(self, x: Tensor, t: float, n: int) -> Tensor:
        noise = torch.randn(n, 1, dtype=torch.float64)
        z = self.process.corrupt(x.expand(n, 1), double(t).expand(n), noise)
        return self._cells(z[:, 0])

    def pure_noise(self, n: int) -> Tensor:
        return self._cells(self.process.prior((n, 1), like=self.z)[:, 0])

    @staticmethod
    def _guess(z: Tensor, t: Tensor) -> Tensor:
        """Some denoiser, for states ``[S, N]``."""
        return 0.4 * torch.sin(z) + (0.3 + t[:, None]) * torch.cos(0.5 * z)

    def _average(self, x: Tensor, t: Tensor, values: Tensor) -> Tensor:
        schedule = self.process.schedule
        law = self._normal(
            (schedule.alpha(t) * x)[:, None, None], schedule.sigma(t)[:, None, None]
        )[:, 0]
        return (law * values).sum(-1)

    def divergences(self, x: Tensor, s: Tensor, t: Tensor, middle: Tensor) -> Tensor:
        z = self.z.expand(len(t), -1)
        true = self.process.posterior(x.expand_as(z), z, s, t)
        model = self.process.posterior(self._guess(z, middle), z, s, t)
        # of two normals of one width
        return self._average(x, t, (true.mean - model.mean) ** 2 / (2 * true.std**2))

    def integrands(self, x: Tensor, t: Tensor) -> Tensor:
        z = self.z.expand(len(t), -1)
        loss = self.process.loss(
            self._guess(z, t).reshape(-1, 1),
            x.expand(z.numel(), 1),
            t[:, None].expand(z.shape).reshape(-1),
            "nelbo",
        )
        return self._average(x, t, loss.reshape(z.shape))

    def answers(self, x: Tensor) -> tuple[Tensor, Tensor]:
        z, t = self.z[None], double(0.7)
        one, other = (self._guess(z, double(time)) for time in (0.1, 0.9))
        x0 = x.expand_as(z)
        excess = self.process.loss(one, x0, t, "nelbo") - self.process.loss(other, x0, t, "nelbo")
        return self.process.posterior(x0, z, double(0.2), t).mean, excess


LINES = {"cosine": CosineVP(), "linear-log-snr": LinearLogSNR(4.0, -8.0)}
CHAINS = [*product(NAMES, SCHEDULES), *product(["gaussian"], LINES)]


@pytest.fixture(params=CHAINS, ids="-".join)
def chain(request: pytest.FixtureRequest) -> Chain:
    name, schedule = request.param
    if name == "gaussian":
        return LineChain(Gaussian(LINES[schedule]))
    return TokenChain(make_process(name, V, schedule=schedule))


def soft_targets(process: Process, count: int) -> Tensor:
    """Random distributions over the clean states, ``[count, V]``."""
    states = len(clean_states(process))
    soft = torch.softmax(2 * torch.randn(count, states, dtype=torch.float64), -1)
    return torch.nn.functional.pad(soft, (0, V - states))


def targets(process: Process) -> list[Tensor]:
    """Each clean token and some soft ones, as rows ``[V]``."""
    hard = torch.eye(V, dtype=torch.float64)
    return [*(hard[x] for x in clean_states(process)), *soft_targets(process, 3)]


@pytest.mark.parametrize("pair", range(3), ids=["wide", "to almost clean", "narrow"])
def test_the_posterior_is_bayes_rule_on_the_full_joint(chain: Chain, pair: int) -> None:
    s, t = chain.pairs[pair]
    for x in chain.clean:
        joint = (chain.marginal(x, s)[:, None] * chain.kernel(s, t)).T
        evidence = joint.sum(-1, keepdim=True)
        # a state that cannot come from this target has no posterior, and for one that hardly can
        # the joint has too few digits
        possible = evidence[:, 0] > 1e-12
        answer = chain.posterior(x, s, t)[possible]
        # fp64; the narrow step loses four digits
        torch.testing.assert_close(answer, (joint / evidence)[possible], atol=1e-10, rtol=0)
        assert int(possible.sum()) >= 2


def test_a_step_of_the_posterior_leads_from_marginal_to_marginal(chain: Chain) -> None:
    s, t = chain.pairs[0]
    for x in chain.clean:
        at_t = chain.marginal(x, t)
        possible = at_t > 0
        led = at_t[possible] @ chain.posterior(x, s, t)[possible]
        torch.testing.assert_close(led, chain.marginal(x, s), atol=1e-12, rtol=0)  # fp64


def test_a_posterior_without_a_step_is_the_state_and_to_time_zero_the_target(chain: Chain) -> None:
    for x in chain.hard:
        possible = chain.marginal(x, 0.4) > 0
        stay = chain.posterior(x, 0.4, 0.4)[possible]
        eye = torch.eye(len(possible), dtype=torch.float64)
        torch.testing.assert_close(stay, eye[possible], atol=1e-12, rtol=0)
        if chain.process.schedule is LINES["linear-log-snr"]:
            continue  # it has noise left at time zero
        came = chain.posterior(x, 0.0, 0.4)[possible]
        torch.testing.assert_close(came, chain.where(x).expand_as(came), atol=1e-12, rtol=0)


def furthest(states: Tensor, law: Tensor) -> float:
    """Largest difference of the two distribution functions, times the root of the sample's size."""
    seen = torch.bincount(states, minlength=len(law)).double().cumsum(0) / len(states)
    return float((seen - law.cumsum(0)).abs().max()) * math.sqrt(len(states))


def test_corruption_draws_from_the_marginal(chain: Chain) -> None:
    for x, t in product(chain.clean, (0.1, 0.6, 0.99)):
        # Kolmogorov: beyond 2.5 with chance 1e-5
        assert furthest(chain.corrupted(x, t, 20_000), chain.marginal(x, t)) < 2.5
    # and no other law passes
    other = chain.marginal(chain.hard[-1], 0.1)
    assert furthest(chain.corrupted(chain.hard[0], 0.1, 20_000), other) > 10


def test_the_prior_is_the_marginal_of_pure_noise(chain: Chain) -> None:
    assert furthest(chain.pure_noise(20_000), chain.prior()) < 2.5
    for x in chain.clean:
        distance = 0.5 * (chain.marginal(x, 1.0) - chain.prior()).abs().sum()
        assert float(distance) <= chain.near


def test_the_nelbo_is_the_limit_of_the_discrete_time_divergences(chain: Chain) -> None:
    """Sum over steps of E_z KL(q(z_s | z, x) || q(z_s | z, guess)) against the loss's integral."""
    steps = 4_000
    grid = torch.linspace(chain.start, 1.0, steps + 1, dtype=torch.float64)
    s, t, middle = grid[:-1], grid[1:], (grid[:-1] + grid[1:]) / 2
    for x in chain.clean:
        discrete = chain.divergences(x, s, t, middle).sum()
        continuous = chain.integrands(x, middle).mean() * (1.0 - chain.start)
        # a right-end rule of 4,000 steps against a midpoint rule
        assert float(discrete) == pytest.approx(float(continuous), rel=4e-3)
        assert float(continuous) > 0.1


def test_soft_targets_are_linear_for_absorbing_and_gaussian_and_plugged_in_for_uniform(
    chain: Chain,
) -> None:
    """The answer for 0.3 x + 0.7 y against the mixture of the answers for x and for y."""
    x, y = chain.hard[0], chain.hard[-1]
    mixed = chain.answers(0.3 * x + 0.7 * y)
    for plugged, of_x, of_y in zip(mixed, chain.answers(x), chain.answers(y), strict=True):
        mixture = 0.3 * of_x + 0.7 * of_y
        assert float((of_x - of_y).abs().max()) > 0.01  # the target matters
        gap = float((plugged - mixture).abs().max())
        if chain.process.name == "uniform":
            assert gap > 0.01
        else:
            assert gap < 1e-10  # fp64


def test_noise_decides_the_prior_and_times_of_either_shape_the_corruption(
    process: Process,
) -> None:
    noise = torch.rand(2, 50, dtype=torch.float64)
    tokens = process.prior((2, 50), like=noise, noise=noise)
    assert tokens.shape == (2, 50)
    assert tokens.dtype == torch.int64
    assert torch.equal(tokens, process.prior((2, 50), like=noise, noise=noise))
    assert torch.equal(tokens[:, 7:9], process.prior((2, 2), like=noise, noise=noise[:, 7:9]))
    drawn = process.prior((2, 20_000), like=noise)
    assert furthest(drawn.flatten(), prior_of(process)) < 2.5
    x0, t = torch.randint(0, V - 1, (2, 50)), double(0.3, 0.9)
    assert torch.equal(process.corrupt(x0, t, noise), process.corrupt(x0, t[:, None], noise))


def test_log_probs_are_normalised_and_change_nothing_in_place(process: Process) -> None:
    logits = 3 * torch.randn(2, V, V, dtype=torch.float64)
    before = logits.clone()
    log_p = process.log_probs(logits, torch.arange(V).expand(2, V))
    torch.testing.assert_close(
        log_p.exp().sum(-1), torch.ones(2, V, dtype=torch.float64), atol=1e-12, rtol=0
    )
    assert torch.equal(logits, before)


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
    assert uniform.mask_id is None
    with pytest.raises(UserError, match="process is 'masked'; choose one of absorbing, uniform"):
        make_process("masked", 5)
