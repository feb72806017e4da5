"""Instant moment matching against exact moments, enumerated in float64."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from idlm.errors import UserError
from idlm.models import DiffusionConfig, DiffusionLM, Latent
from idlm.objectives.alternating_masked import Simulation
from idlm.objectives.alternating_uniform import UniformSimulation
from idlm.objectives.base import Draw, Networks
from idlm.objectives.instant import InstantMomentMatching
from idlm.objectives.instant_half import GaussianHalf, MaskedHalf, UniformHalf
from idlm.objectives.instant_teacher import SecondMoment, WeightSpace
from idlm.objectives.moment_matching import Matching
from idlm.processes import Absorbing, Uniform
from idlm.processes.gaussian import Gaussian
from idlm.random import Stream

S, T, W = 0.3, 0.7, 1.7  # the times of every enumerated row, and w(s)
KINDS = ("absorbing", "uniform")
every_process = pytest.mark.parametrize("kind", KINDS)


class Table(nn.Module):
    """A table of logits for each state of a short sequence, and a bias in the head."""

    def __init__(self, logits: Tensor, process: Any) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits.double().clone())
        self.bias = nn.Parameter(torch.zeros(logits.shape[-1], dtype=torch.float64))
        self.process = process

    def rows(self, z: Tensor) -> Tensor:
        vocab, length = self.logits.shape[-1], z.shape[1]
        return (z * vocab ** torch.arange(length)).sum(-1)

    def sample_latent(self, *args: Any, **keys: Any) -> Any:
        return None

    def features(self, z: Tensor, sigma: Any = None, latent: Any = None) -> Tensor:
        return self.logits[self.rows(z)]

    def head(self, hidden: Tensor) -> Tensor:
        return hidden + self.bias


def process_of(kind: str) -> Any:
    return Absorbing(3) if kind == "absorbing" else Uniform(3)


def table(kind: str, length: int, seed: int) -> Table:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(3**length, length, 3, generator=generator, dtype=torch.float64)
    return Table(logits, process_of(kind))


def draw_of(n: int, *, seed: int = 0, step: int = 0, **more: Any) -> Draw:
    return Draw(torch.arange(n), n, seed, step, **more)


def kernel(process: Any, s: float, t: float) -> Tensor:
    """q(z_s | x, z_t) from two steps of the forward chain: Bayes on its joint, [x, z_t, z_s]."""
    k = process.vocab_size

    def step(alpha: float) -> Tensor:
        noise = torch.full((k, k), 1 / k) if process.name == "uniform" else torch.zeros(k, k)
        if process.name == "absorbing":
            noise[:, -1] = 1.0
        return alpha * torch.eye(k).double() + (1 - alpha) * noise.double()

    alpha_s, alpha_t = 1 - 0.999 * s, 1 - 0.999 * t
    joint = step(alpha_s)[:, None, :] * step(alpha_t / alpha_s).T[None]  # x, z_t, z_s
    return joint / joint.sum(-1, keepdim=True).clamp(min=1e-300)


def likelihood(process: Any, t: float) -> Tensor:
    """q(z_t | x), [x, z_t]."""
    alpha, k = 1 - 0.999 * t, process.vocab_size
    to = torch.full((k,), 1 / k).double()
    if process.name == "absorbing":
        to = torch.nn.functional.one_hot(torch.tensor(k - 1), k).double()
    return alpha * torch.eye(k).double() + (1 - alpha) * to


def predicted(model: Any, z: Tensor, t: float) -> Tensor:
    """The network's E[x | z] for states [N, L], [N, L, V], by Bayes and by nothing of ours."""
    logits = model.head(model.features(z))
    if model.process.name == "absorbing":
        clean = torch.cat([logits[..., :-1].softmax(-1), torch.zeros_like(logits[..., :1])], -1)
        seen = torch.nn.functional.one_hot(z, logits.shape[-1]).double()
        return torch.where((z == model.process.mask_id)[..., None], clean, seen)
    joint = logits.softmax(-1) * likelihood(model.process, t).T[z]
    return joint / joint.sum(-1, keepdim=True)


def outcomes(process: Any, length: int) -> tuple[Tensor, Tensor, Tensor]:
    """All (z_t, x, z_s), each [N, L]."""
    every = torch.tensor(list(product(range(3), repeat=length)))
    index = torch.cartesian_prod(*(torch.arange(len(every)) for _ in range(3)))
    return every[index[:, 0]], every[index[:, 1]], every[index[:, 2]]


def chances(process: Any, g: Tensor, z_t: Tensor, x: Tensor, z_s: Tensor) -> Tensor:
    """G(x_l | z_t) q(z_s,l | x_l, z_t,l) of each position, [N, L]."""
    return g.gather(-1, x[..., None])[..., 0] * kernel(process, S, T)[x, z_t, z_s]


def prior_of(process: Any, z_t: Tensor) -> Tensor:
    """Some law of z_t, the same in all tests, [N]."""
    states = torch.arange(1, 4).double()
    return (states / states.sum())[z_t].prod(-1)


def moment(teacher: Table, student: Table, length: int) -> list[Tensor]:
    """grad_theta E w CE(drawn x | p_theta(z_s)), a mean over tokens, differentiable in the student.

    At each position the student's own factor of the chances is live, those of others are held.
    """
    process = teacher.process
    z_t, x, z_s = outcomes(process, length)
    own = chances(process, predicted(student, z_t, T), z_t, x, z_s)
    total: Any = 0.0
    log_p = predicted(teacher, z_s, S).clamp(min=1e-300).log().gather(-1, x[..., None])[..., 0]
    for position in range(length):
        live = own[:, position]
        others = [own[:, i].detach() for i in range(length) if i != position]
        chance = prior_of(process, z_t) * live * math.prod(others)
        scored = z_s[:, position] == 2 if process.name == "absorbing" else chance == chance
        total = total - W * (chance * log_p[:, position])[scored & (live > 0)].sum() / length
    return list(torch.autograd.grad(total, list(teacher.parameters()), create_graph=True))


def enumerated(teacher: Table, student: Table, length: int) -> MaskedHalf | UniformHalf:
    """The objective's half with one row per outcome, its chance in the weight."""
    process = teacher.process
    z_t, x, z_s = outcomes(process, length)
    with torch.no_grad():
        chance = chances(process, predicted(student, z_t, T), z_t, x, z_s).prod(-1)
        chance = chance * prior_of(process, z_t)
    keep = chance > 0
    z_t, x, z_s, weight = z_t[keep], x[keep], z_s[keep], W * chance[keep]
    time, t_in = (torch.full((len(x),), value, dtype=torch.float64) for value in (S, T))
    if process.name == "uniform":
        hidden = student.features(z_t)
        return UniformHalf(student, UniformSimulation(hidden, z_t, x, z_s, t_in, time), weight)
    asked = z_t == 2
    nothing = torch.zeros((), dtype=torch.float64)
    state = Simulation(student.features(z_t), asked, t_in, z_s, time, z_s == 2, nothing)
    return MaskedHalf(student, state, weight)


def scale_of(teacher: nn.Module) -> list[Tensor]:
    """Some diagonal Lambda."""
    generator = torch.Generator().manual_seed(9)
    sizes = [p.shape for p in teacher.parameters()]
    return [torch.rand(size, generator=generator, dtype=torch.float64) + 0.5 for size in sizes]


def matched(half: Any, teacher: nn.Module, scale: list[Tensor], rows: int) -> Tensor:
    """B's loss per token with this half as A and B: each is the whole law, so nothing is random."""
    space = WeightSpace(teacher)
    g = space.gradient(lambda weights: half.teacher_loss(space, weights))
    nu = {name: -rows * s * v for (name, v), s in zip(g.items(), scale, strict=True)}
    return half.student_loss(space, nu).total


@every_process
@pytest.mark.parametrize("length", [1, 2])
def test_value_and_gradient_are_those_of_the_norm_of_the_moment(kind: str, length: int) -> None:
    """m^T Lambda m and grad 1/2 m^T Lambda m; for one position that is all of the gradient."""
    teacher, student = table(kind, length, 1), table(kind, length, 2)
    scale = scale_of(teacher)
    m = moment(teacher, student, length)
    norm = sum((s * v * v).sum() for s, v in zip(scale, m, strict=True))
    expected = torch.autograd.grad(0.5 * norm, [student.logits, student.bias])

    half = enumerated(teacher, student, length)
    rows = half.state.z.shape[0]  # the loss is a mean over rows of what the test needs summed
    value = matched(half, teacher, scale, rows) / length
    assert float(norm.detach()) > 1e-3
    torch.testing.assert_close(value.detach(), norm.detach())  # fp64
    found = torch.autograd.grad(value, [student.logits, student.bias])
    assert float(expected[0].abs().max()) > 1e-3
    for mine, plain in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, plain)


def test_on_the_uniform_process_the_students_probabilities_are_no_target() -> None:
    """With G in the place of E[x | z_s, z_t] the gradient is another one, and grows with w."""
    teacher, student = table("uniform", 1, 1), table("uniform", 1, 2)
    half = enumerated(teacher, student, 1)
    space = WeightSpace(teacher)
    g = space.gradient(lambda weights: half.teacher_loss(space, weights))
    nu = {name: -value for name, value in g.items()}

    def gradient(soft: bool, s: float) -> Tensor:
        state = half.state._replace(time=torch.full_like(half.state.time, s))
        if not soft:
            total = UniformHalf(student, state, half.weight).student_loss(space, nu).total
        else:
            log_p = lambda w: predicted_log(space, w, state.z, s)  # noqa: E731
            _, change = space.derivative(log_p, nu)
            g_soft = predicted(student, state.z_in, T)
            total = (half.weight * (g_soft * change).sum(-1)[:, 0]).sum()
        return torch.autograd.grad(total, student.logits, retain_graph=True)[0]

    def predicted_log(space: WeightSpace, weights: Any, z: Tensor, s: float) -> Tensor:
        logits = space.call("head", weights, space.call("features", weights, z))
        return (logits.log_softmax(-1) + likelihood(teacher.process, s).T[z].log()).log_softmax(-1)

    there = gradient(False, S).abs().max()
    assert float((gradient(True, S) - gradient(False, S)).abs().max() / there) > 0.1
    # the same rows as if z_s had almost no noise: then it tells x, and nothing is left to match
    early = [float(gradient(soft, 1e-5).abs().max() / there) for soft in (True, False)]
    assert early[0] > 0.1
    assert early[1] < 1e-3


class Linear(nn.Module):
    """x = z W^T."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.weight = nn.Parameter(torch.randn(2, 2, generator=generator, dtype=torch.float64))
        self.process = Gaussian()

    def forward(self, z: Tensor, t: Tensor) -> Tensor:
        return z @ self.weight.T


def test_on_gaussian_data_the_loss_is_that_of_the_paper_for_a_linear_teacher() -> None:
    """Half the norm of the moment and half of its gradient, and algorithm 3 written out."""
    teacher, student = Linear(1), Linear(2)
    generator = torch.Generator().manual_seed(3)
    z_t, z, w = (torch.randn(50, 2, generator=generator).double() for _ in range(3))
    weight = w[:, 0] ** 2
    x = student(z_t, weight)
    half = GaussianHalf(Matching(x, z, torch.full((50,), S)), weight)
    [scale] = scale_of(teacher)
    value = matched(half, teacher, [scale], 1) / x.numel()

    loss = (weight[:, None] * (teacher(z, weight) - x) ** 2).sum() / x.numel()
    [m] = torch.autograd.grad(loss, teacher.weight, create_graph=True)
    norm = (scale * m * m).sum()
    torch.testing.assert_close(value.detach(), 0.5 * norm.detach())  # fp64
    [found] = torch.autograd.grad(value, student.weight, retain_graph=True)
    [expected] = torch.autograd.grad(0.5 * norm, student.weight, retain_graph=True)
    torch.testing.assert_close(found, 0.5 * expected)

    g = 2 * (weight[:, None] * (z @ teacher.weight.T - x)).T @ z / x.numel()
    nu = -(scale * g).detach()
    paper = (weight * (x * (z @ nu.T)).sum(-1)).sum() / x.numel()
    torch.testing.assert_close(torch.autograd.grad(paper, student.weight)[0], found)


class Mixture(Table):
    """Data of two parts, each a product of its positions, and the student that is perfect on it.

    Its latent is uniform on [0, 1); it chooses the part by P(part | z_t), then says the part's
    probabilities, which are not one-hot. ``offset`` is a parameter to have a gradient.
    """

    parts = torch.tensor([[0.8, 0.1, 0.1], [0.1, 0.3, 0.6]]).double()

    def __init__(self, kind: str, t: float) -> None:
        process = process_of(kind)
        if kind == "absorbing":  # two tokens
            self.tokens = torch.tensor([[0.9, 0.1], [0.2, 0.8]]).double()
        else:
            self.tokens = self.parts
        vocab = self.tokens.shape[1]
        super().__init__(torch.zeros(2, 2, 3), process)
        logits = torch.full((2, 2, 3), -30.0).double()
        logits[:, :, :vocab] = self.tokens.log()[:, None]
        self.logits.data.copy_(logits)
        # P(z_t | part) of one position
        self.seen = self.tokens @ likelihood(process, t)[:vocab]

    def sample_latent(self, sample: Tensor, length: int, *, seed: int, step: int) -> Latent:
        draw = Draw(sample, 1, seed, step)
        return Latent(draw.uniform(1, stream=Stream.LATENT_GLOBAL), None)

    def part(self, z: Tensor) -> Tensor:
        """P(part | z), [N, 2]."""
        joint = self.seen[:, z].prod(-1).T
        return joint / joint.sum(-1, keepdim=True)

    def features(self, z: Tensor, sigma: Any = None, latent: Any = None) -> Tensor:
        first = (latent.vector[:, 0] < self.part(z)[:, 0]).long()
        return self.logits[1 - first]

    def data(self, n: int) -> Tensor:
        """n rows, half from each part, in a random order."""
        part = torch.arange(n) % 2
        return torch.multinomial(self.tokens[part].repeat_interleave(2, 0), 1).reshape(n, 2)

    def exact_teacher(self, s: float) -> Table:
        """P(x_l | z at the other position) for each state at time s."""
        seen = self.tokens @ likelihood(self.process, s)[: self.tokens.shape[1]]
        logits = torch.full((9, 2, 3), -30.0).double()
        for z in product(range(3), repeat=2):
            for position in (0, 1):
                part = seen[:, z[1 - position]]
                law = (part / part.sum()) @ self.tokens
                row = z[0] + 3 * z[1]
                logits[row, position, : len(law)] = law.log()
        return Table(logits, self.process)


@every_process
def test_a_perfect_student_has_loss_0_which_needs_independent_batches(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the mean over draws; with the same rows as A and B it would be charged for the noise."""
    torch.manual_seed(0)
    student = Mixture(kind, T)
    teacher = student.exact_teacher(S)
    objective = InstantMomentMatching(preconditioner="identity", weighting="flat")

    def times(draw: Draw) -> tuple[Tensor, Tensor]:
        rows = draw.sample.shape[0]
        return tuple(torch.full((rows,), time, dtype=torch.float64) for time in (T, S))  # type: ignore[return-value]

    monkeypatch.setattr(objective._tuples, "times", times)
    rows, values, biased, gradients = 100, [], [], []
    for step in range(50):
        draw, tokens = draw_of(rows, step=step), student.data(rows)
        loss = objective.student_loss(Networks(teacher, student), tokens, draw)
        values.append(float(loss.total.detach()) / loss.tokens)
        gradients.append(torch.autograd.grad(loss.total, student.logits)[0].flatten() / rows)
        half = objective._half(student, tokens, draw)
        biased.append(float(matched(half, teacher, [torch.ones(())] * 2, 1).detach()) / rows / 2)

    def standard(x: Any) -> Tensor:
        """Mean in standard errors."""
        x = (
            torch.as_tensor(x)
            if isinstance(x, list) and isinstance(x[0], float)
            else torch.stack(x)
        )
        return x.mean(0) / (x.std(0) / math.sqrt(len(x))).clamp(min=1e-12)

    assert abs(float(standard(values))) < 4
    assert float(standard(gradients).abs().max()) < 4.5  # twelve of them
    assert float(torch.stack(gradients).std(0).max()) > 1e-4
    assert float(standard(biased)) > 6
    # a student without latent is charged: its tokens are independent given z_t
    student.__class__ = type("Factorised", (Mixture,), {"features": mixed})
    worse = []
    for step in range(50):
        trio = Networks(teacher, student)
        with torch.no_grad():
            loss = objective.student_loss(trio, student.data(rows), draw_of(rows, step=step))
        worse.append(float(loss.mean))
    assert float(standard(worse)) > 6


def mixed(self: Mixture, z: Tensor, sigma: Any = None, latent: Any = None) -> Tensor:
    """The mean over parts given z: all of it behind a mask, at the other position if uniform."""
    if self.process.name == "absorbing":
        return (self.part(z) @ self.logits[:, 0].exp()).log()[:, None].expand(-1, 2, -1)
    other = self.seen[:, z.flip(-1)].permute(1, 2, 0)
    other = other / other.sum(-1, keepdim=True)
    return (other @ self.logits[:, 0].exp()).log()


def real_teacher(kind: str, dtype: torch.dtype = torch.float64) -> DiffusionLM:
    config = DiffusionConfig(
        vocab_size=7,
        model_length=8,
        hidden_dim=8,
        cond_dim=4,
        n_blocks=2,
        n_heads=2,
        dropout=0.1,
        process=kind,
        time_conditioning=True,
    )
    torch.manual_seed(1)
    teacher = DiffusionLM(config).eval().requires_grad_(False)
    for weight in teacher.parameters():
        nn.init.normal_(weight, std=0.4)
    return teacher.to(dtype)


def real_networks(kind: str, dtype: torch.dtype = torch.float64) -> Networks:
    teacher = real_teacher(kind, dtype)
    student = teacher.with_latent(latent_global=3, latent_position=3).requires_grad_(True)
    return Networks(teacher, student)


def tokens_of(n: int) -> Tensor:
    return torch.randint(0, 6, (n, 8), generator=torch.Generator().manual_seed(n))


@every_process
def test_the_derivative_of_a_real_network_is_its_finite_difference(kind: str) -> None:
    trio, tokens = real_networks(kind), tokens_of(6)
    space = WeightSpace(trio.teacher)
    generator = torch.Generator().manual_seed(5)
    nu = {
        name: torch.randn(w.shape, generator=generator, dtype=torch.float64)
        for name, w in space.weights.items()
    }
    z, sigma = tokens, torch.rand(6, dtype=torch.float64)

    def log_probs(weights: Any) -> Tensor:
        logits = space.call("head", weights, space.call("features", weights, z, sigma))
        return trio.teacher.process.log_probs(logits, torch.full_like(z, 6))[..., :6]

    value, change = space.derivative(log_probs, nu)
    step = 1e-6
    ends = [log_probs({n: w + e * nu[n] for n, w in space.weights.items()}) for e in (step, -step)]
    torch.testing.assert_close(value, log_probs(space.weights))
    assert float(change.abs().max()) > 1
    # fp64: step**2 of curvature, and 1e-16 / step of rounding
    torch.testing.assert_close(change, (ends[0] - ends[1]) / (2 * step), rtol=1e-5, atol=1e-6)


@every_process
def test_the_students_loss_is_the_limit_of_one_auxiliary_step_from_the_teacher(kind: str) -> None:
    """-w <r, log p_theta - log p_phi> / step with phi = theta - step g: the chunked code, too."""
    trio, tokens = real_networks(kind), tokens_of(6)
    objective = InstantMomentMatching(preconditioner="identity")
    half, other = (objective._half(trio.student, tokens, draw_of(6, step=step)) for step in (1, 2))
    space = WeightSpace(trio.teacher)
    g = space.gradient(lambda weights: other.teacher_loss(space, weights))
    found = half.student_loss(space, {name: -v for name, v in g.items()}).total
    step = 1e-5 / max(float(v.abs().max()) for v in g.values())
    with torch.no_grad():
        cross = [
            half.teacher_loss(space, {n: w - e * g[n] for n, w in space.weights.items()})
            for e in (step, -step)
        ]
    limit = (cross[1] - cross[0]) / (2 * step) * tokens.numel()
    assert abs(float(limit)) > 1e-3
    # fp64, with fp32 weights 1/s
    torch.testing.assert_close(found.detach(), limit, rtol=1e-4, atol=1e-9)


@every_process
def test_gradient_reaches_the_student_alone_and_the_same_draw_gives_the_same_loss(
    kind: str,
) -> None:
    trio, tokens = real_networks(kind, torch.float32), tokens_of(7)
    objective = InstantMomentMatching(preconditioner="identity")
    first, second = (objective.student_loss(trio, tokens, draw_of(7)) for _ in range(2))
    assert torch.equal(first.total, second.total)
    assert first.tokens == 56
    assert not torch.equal(
        first.total, objective.student_loss(trio, tokens, draw_of(7, step=1)).total
    )
    first.total.backward()
    assert all(p.grad is None and not p.requires_grad for p in trio.teacher.parameters())
    grads = [p.grad for p in trio.student.parameters() if p.grad is not None]
    assert max(float(g.abs().max()) for g in grads) > 0
    assert float(trio.student.backbone.latent.position.weight.grad.abs().max()) > 0
    assert 0 < float(first.logs["student_entropy"]) < math.log(7)
    assert first.asked is not None


@every_process
def test_one_half_is_detached_where_the_other_is_scored(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss is the sum of two parts, each with the direction of the other half held fixed."""
    trio, tokens = real_networks(kind), tokens_of(6)
    objective = InstantMomentMatching(preconditioner="identity")
    whole = objective.student_loss(trio, tokens, draw_of(6))
    space, seen = WeightSpace(trio.teacher), []

    def record(half: Any, *rest: Any) -> Any:
        seen.append(half)
        return InstantMomentMatching._direction(objective, half, *rest)

    monkeypatch.setattr(objective, "_direction", record)
    objective.student_loss(trio, tokens, draw_of(6))
    assert [half.state.z.shape[0] for half in seen] == [3, 3]
    directions = [InstantMomentMatching._direction(objective, half, space, True) for half in seen]
    assert not any(v.requires_grad for nu in directions for v in nu.values())
    parts = [seen[0].student_loss(space, directions[1]), seen[1].student_loss(space, directions[0])]
    torch.testing.assert_close(whole.total, parts[0].total + parts[1].total)
    for a, b in zip(
        *(
            torch.autograd.grad(t, list(trio.student.parameters()), allow_unused=True)
            for t in (whole.total, parts[0].total + parts[1].total)
        ),
        strict=True,
    ):
        assert (a is None) == (b is None)
        if a is not None and b is not None:
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("kind", [*KINDS, "gaussian"])
def test_each_half_of_a_micro_batch_covers_all_times_evenly(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where its rows are neighbours in a large batch, and the number of rows is odd."""
    if kind == "gaussian":
        trio, tokens = Networks(Linear(1), Linear(2)), torch.ones(7, 2).double()  # type: ignore[arg-type]
    else:
        trio, tokens = real_networks(kind), tokens_of(7)
    objective, times = InstantMomentMatching(preconditioner="identity"), []

    def record(half: Any, *rest: Any) -> Any:
        times.append(half.state.time)
        return InstantMomentMatching._direction(objective, half, *rest)

    monkeypatch.setattr(objective, "_direction", record)
    objective.student_loss(trio, tokens, Draw(torch.arange(40, 47), 512, 0, 0))
    for s in times:
        n = len(s)
        assert torch.equal(((s - 1e-3) / 0.999 * n).floor(), torch.arange(n).to(s.dtype))
    assert [len(s) for s in times] == [4, 3]
    assert len({float(s[0]) for s in times}) == 2


class Doubled(Draw):
    """A draw of another kind, such as an experiment puts in the place of the usual one."""

    def uniform(self, *shape: int, stream: Stream) -> Tensor:
        return 0.5 * super().uniform(*shape, stream=stream)


def test_halves_keep_the_kind_of_their_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    trio, seen = real_networks("absorbing"), []
    objective = InstantMomentMatching(preconditioner="identity")
    half = objective._half

    def record(student: Any, tokens: Tensor, draw: Draw) -> Any:
        seen.append(draw)
        return half(student, tokens, draw)

    monkeypatch.setattr(objective, "_half", record)
    objective.student_loss(trio, tokens_of(4), Doubled(torch.arange(4), 4, 3, 5, False))
    assert [draw.sample.tolist() for draw in seen] == [[0, 2], [1, 3]]
    for draw in seen:
        assert isinstance(draw, Doubled)
        assert (draw.batch_size, draw.seed, draw.step, draw.training) == (4, 3, 5, False)
        assert float(draw.uniform(1000, stream=Stream.TOKEN).max()) < 0.5


@pytest.mark.parametrize("kind", [*KINDS, "gaussian"])
def test_a_single_row_is_refused_in_training_and_scores_nothing_in_validation(kind: str) -> None:
    if kind == "gaussian":
        trio, row = Networks(Linear(1), Linear(2)), torch.ones(1, 2).double()  # type: ignore[arg-type]
    else:
        trio, row = real_networks(kind), tokens_of(1)
    objective = InstantMomentMatching()
    with pytest.raises(UserError, match=r"a micro batch has 1 row, .* choose micro_batch_size"):
        objective.student_loss(trio, row, draw_of(1))
    loss = objective.student_loss(trio, row, draw_of(1, training=False))
    assert (loss.total.item(), loss.tokens, loss.asked) == (0.0, 0, 0)
    assert ("student_entropy" in loss.logs) == (kind != "gaussian")
    assert all(bool(torch.isnan(value)) for value in loss.logs.values())
    loss.total.backward()


@pytest.mark.parametrize("kind", [*KINDS, "gaussian"])
def test_validation_in_inference_mode_measures_the_same_and_changes_nothing(kind: str) -> None:
    if kind == "gaussian":
        trio, tokens = Networks(Linear(1), Linear(2)), torch.rand(6, 2).double()  # type: ignore[arg-type]
    else:
        trio, tokens = real_networks(kind), tokens_of(6)
    objective = InstantMomentMatching()
    objective.student_loss(trio, tokens, draw_of(6))
    objective.after_student_update(trio, None, 1)
    before = {name: v.clone() for name, v in objective.state_dict()["second_moment"].items()}
    plain = objective.student_loss(trio, tokens, draw_of(6, training=False))
    with torch.inference_mode():
        made_here = Draw(torch.arange(6), 6, 0, 0, training=False)
        measured = objective.student_loss(trio, tokens.clone(), made_here)
        assert torch.is_inference_mode_enabled()
    assert not measured.total.requires_grad
    torch.testing.assert_close(measured.total, plain.total.detach(), rtol=0, atol=0)
    assert abs(float(measured.total)) > 0
    objective.after_student_update(trio, None, 2)
    after = objective.state_dict()
    assert after["updates"] == 1
    assert all(torch.equal(after["second_moment"][name], v) for name, v in before.items())


def test_nothing_masked_is_a_loss_of_zero_with_a_graph() -> None:
    trio = real_networks("absorbing")
    objective = InstantMomentMatching(preconditioner="identity", target_steps=10**6)
    empty = 0
    for step in range(12):
        loss = objective.student_loss(trio, tokens_of(2)[:, :1], draw_of(2, step=step))
        loss.total.backward()
        assert math.isfinite(loss.total.item())
        empty += loss.asked == 0
        assert bool(torch.isnan(loss.logs["student_entropy"])) == (loss.asked == 0)
    assert empty > 0


def test_lambda_g_is_the_step_of_adam_in_torch() -> None:
    """beta1 = 0 and one gradient per update: our v is then Adam's, and so is the direction."""
    weight = nn.Parameter(torch.zeros(3, dtype=torch.float64))
    adam, second = torch.optim.Adam([weight], lr=1.0, betas=(0.0, 0.9)), SecondMoment(0.9)
    for g in ([1.0, -2.0, 0.0], [0.1, 3.0, 0.0], [5.0, 0.0, 1e-3]):
        before, weight.grad = weight.detach().clone(), torch.tensor(g, dtype=torch.float64)
        adam.step()
        second.observe({"a": weight.grad})
        found = second.precondition({"a": weight.grad})["a"]
        torch.testing.assert_close(before - found, weight.detach())  # fp64
        second.end_update()


def test_v_is_the_mean_over_the_gradients_of_an_update_and_changes_at_its_end() -> None:
    second, g = SecondMoment(0.75), {"a": torch.tensor([1.0, 1.0])}
    before = second.precondition(g)["a"]
    second.observe({"a": torch.tensor([1.0, 2.0])})
    second.observe({"a": torch.tensor([3.0, 0.0])})
    assert torch.equal(second.precondition(g)["a"], before)
    second.end_update()
    v = 0.25 * torch.tensor([5.0, 2.0])
    expected = 1 / ((0.75 * v + 0.25) / (1 - 0.75**2)).sqrt()
    torch.testing.assert_close(second.precondition(g)["a"], expected)
    second.end_update()  # nothing was observed
    assert second.updates == 1


def test_with_adam_the_loss_does_not_know_the_scale_of_the_teachers_loss() -> None:
    trio, tokens, totals = real_networks("absorbing"), tokens_of(6), []
    for factor in (1.0, 100.0):
        objective = Scaled(factor)
        for step in range(3):
            total = objective.student_loss(trio, tokens, draw_of(6, step=step)).total / factor
            objective.after_student_update(trio, None, step + 1)
        totals.append(total.item())
    assert abs(totals[0]) > 1e-3
    assert totals[1] == pytest.approx(totals[0], rel=1e-3)  # eps of 1e-8 beside gradients


class Scaled(InstantMomentMatching):
    """All weights w(s) times a factor."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def _weights(self, process: Any, time: Tensor) -> Tensor:
        return self.factor * super()._weights(process, time)


def test_beta2_decides_what_v_remembers() -> None:
    trio, tokens, found = real_networks("absorbing"), tokens_of(6), []
    for beta2 in (0.1, 0.9):
        objective = InstantMomentMatching(beta2=beta2)
        for step in range(3):
            total = objective.student_loss(trio, tokens, draw_of(6, step=step)).total.item()
            objective.after_student_update(trio, None, step + 1)
        found.append(total)
    assert found[0] != found[1]
    assert InstantMomentMatching().beta2 == 0.999


def test_a_resumed_run_goes_on_with_the_same_losses(tmp_path: Path) -> None:
    trio, tokens = real_networks("absorbing"), tokens_of(6)

    def losses(objective: InstantMomentMatching, steps: range) -> list[float]:
        out = []
        for step in steps:
            out.append(objective.student_loss(trio, tokens, draw_of(6, step=step)).total.item())
            objective.after_student_update(trio, None, step + 1)
        return out

    straight = losses(InstantMomentMatching(), range(4))
    first = InstantMomentMatching()
    losses(first, range(2))
    torch.save(first.state_dict(), tmp_path / "state.pt")
    resumed = InstantMomentMatching()
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert losses(resumed, range(2, 4)) == straight[2:]
    assert losses(InstantMomentMatching(), range(2, 4)) != straight[2:]


def test_a_checkpoint_of_another_preconditioner_is_refused() -> None:
    adam, identity = InstantMomentMatching(), InstantMomentMatching(preconditioner="identity")
    assert identity.state_dict() == {}
    with pytest.raises(UserError, match="'adam' but the checkpoint is of a run with 'identity'"):
        adam.load_state_dict(identity.state_dict())
    with pytest.raises(UserError, match="'identity' but the checkpoint is of a run with 'adam'"):
        identity.load_state_dict(adam.state_dict())


class Processes:
    """``all_reduce`` between threads that stand for the processes of a run."""

    def __init__(self, count: int) -> None:
        self.rank = threading.local()
        self.given: list[Any] = [None] * count
        self.barrier = threading.Barrier(count, timeout=30)

    def all_reduce(self, tensor: Tensor) -> None:
        self.given[self.rank.number] = tensor.clone()
        self.barrier.wait()
        total = sum(self.given)
        self.barrier.wait()
        tensor.copy_(total)


def test_v_is_the_same_on_every_process_and_that_of_one_process_with_all_rows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def observe(second: SecondMoment, rank: int, update: int) -> None:
        second.observe({"a": torch.tensor([1.0 + rank, 2.0 + update])})
        second.observe({"a": torch.tensor([3.0, float(rank)])})

    def run(rank: int) -> dict[str, Any]:
        processes.rank.number, second = rank, SecondMoment(0.5)
        for update in range(2):
            observe(second, rank, update)
            second.end_update()
        return second.state_dict()

    alone = SecondMoment(0.5)
    for update in range(2):
        for rank in (0, 1):
            observe(alone, rank, update)
        alone.end_update()
    processes = Processes(2)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "all_reduce", processes.all_reduce)
    with ThreadPoolExecutor(2) as pool:
        for state in pool.map(run, range(2)):
            assert state["updates"] == 2
            assert torch.equal(state["second_moment"]["a"], alone.mean["a"])


@pytest.mark.parametrize("attention", ["auto", "sdpa", "flash"])
def test_the_derivative_takes_plain_attention_and_gives_the_choice_back(
    attention: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """flash-attn and the fused kernels of PyTorch have no forward-mode derivative."""
    trio = real_networks("absorbing", torch.float32)
    space, tokens = WeightSpace(trio.teacher), tokens_of(2)
    run: Callable[[Any], Tensor] = lambda w: space.call("features", w, tokens, torch.ones(2))  # noqa: E731
    _, plain = space.derivative(run, space.weights)
    blocks = list(trio.teacher.backbone.blocks)
    for block in blocks:
        block.attention = attention  # type: ignore[assignment]
    _, change = space.derivative(run, space.weights)
    assert torch.equal(plain, change)
    assert [block.attention for block in blocks] == [attention] * 2


def test_under_autocast_derivatives_are_bf16s_and_no_cast_of_the_weights_is_kept() -> None:
    trio = real_networks("absorbing", torch.float32)
    space, tokens, cached = WeightSpace(trio.teacher), tokens_of(4), []

    def run(weights: Any) -> Tensor:
        cached.append(torch.is_autocast_cache_enabled() and torch.is_autocast_enabled("cpu"))
        hidden = space.call("features", weights, tokens, torch.ones(4))
        return space.call("head", weights, hidden)

    def results() -> list[Tensor]:
        _, change = space.derivative(run, space.weights)
        g = space.gradient(lambda weights: run(weights).sin().sum())
        return [change, *g.values()]

    exact = results()
    with torch.autocast("cpu", torch.bfloat16):
        rough = results()
        assert torch.is_autocast_cache_enabled()
    assert cached == [False] * 4
    assert not torch.equal(exact[0], rough[0])
    for a, b in zip(exact, rough, strict=True):
        # bf16 has 8 bits; two blocks and a head lose a few of them
        assert float((a - b).norm()) < 0.1 * float(a.norm()) + 1e-6


def test_a_compiled_teacher_gives_the_same_gradient_and_derivative() -> None:
    trio = real_networks("absorbing", torch.float32)
    space, tokens = WeightSpace(trio.teacher), tokens_of(2)
    run = lambda w: space.call("features", w, tokens, torch.ones(2))  # noqa: E731
    plain = space.derivative(run, space.weights)[1], space.gradient(lambda w: run(w).sin().sum())
    trio.teacher.compile_backbone(backend="eager")
    again = space.derivative(run, space.weights)[1], space.gradient(lambda w: run(w).sin().sum())
    torch.testing.assert_close(again[0], plain[0])
    for name, g in plain[1].items():
        torch.testing.assert_close(again[1][name], g)


def test_a_teacher_that_cannot_be_differentiated_is_refused_with_a_sentence() -> None:
    student, objective = real_networks("absorbing").student, InstantMomentMatching()
    half = real_teacher("absorbing", torch.bfloat16)
    with pytest.raises(UserError, match=r"is torch.bfloat16, .* load the teacher in float32"):
        objective.check(half, student)
    noisy = real_teacher("absorbing").train()
    with pytest.raises(UserError, match=r"training mode with dropout 0.1, .* call teacher.eval"):
        objective.check(noisy, student)
    sharded = real_teacher("absorbing")
    sharded.backbone.vocab_embed.embedding = nn.Parameter(torch.zeros(0, dtype=torch.float64))
    with pytest.raises(UserError, match=r"is sharded over processes, .* --trainer.strategy ddp"):
        objective.check(sharded, student)
    objective.check(real_teacher("absorbing"), student)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"target_steps": 0}, "target_steps is 0; it must be at least 1"),
        (
            {"preconditioner": "shampoo"},
            "preconditioner is 'shampoo'; choose one of adam, identity",
        ),
        ({"beta2": 1.0}, r"beta2 is 1.0; it must be in \[0, 1\)"),
        ({"preconditioner": "identity", "beta2": 0.9}, "beta2 is 0.9 but preconditioner is 'ident"),
        ({"weighting": "cubic"}, "weighting is 'cubic'; choose one of nelbo, flat, constant, snr"),
    ],
)
def test_settings_outside_the_method_are_refused(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        InstantMomentMatching(**settings)


def test_a_weighting_of_another_process_is_refused() -> None:
    trio = real_networks("absorbing")
    with pytest.raises(UserError, match=r"'snr', but the model's process is 'absorbing'; choose"):
        InstantMomentMatching(weighting="snr").check(trio.teacher, trio.student)
    lines = Networks(Linear(1), Linear(2))  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"'flat', but the model's process is 'gaussian'; choose"):
        InstantMomentMatching(weighting="flat").check(lines.teacher, lines.student)


@every_process
def test_flat_and_nelbo_weigh_by_one_and_by_the_schedule(kind: str) -> None:
    time, process = torch.tensor([0.2, 0.5]), process_of(kind)
    weigh = lambda name: InstantMomentMatching(weighting=name)._weights(process, time)  # noqa: E731
    assert torch.equal(weigh("flat"), torch.ones(2))
    for name in ("nelbo", None):
        torch.testing.assert_close(weigh(name), 1 / time)
    gaussian = InstantMomentMatching()._weights(Gaussian(), torch.tensor([0.5, 1e-3]))
    torch.testing.assert_close(gaussian, torch.tensor([2.0, 100.0]).double())


def test_target_steps_bounds_the_step_of_the_training_tuple(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trio, tokens = real_networks("uniform"), tokens_of(40)
    for steps in (1, 8):
        objective, gaps = InstantMomentMatching(target_steps=steps), []

        def record(half: Any, *rest: Any, o: Any = objective, gaps: Any = gaps) -> Any:
            gaps.append(half.state.t_in - half.state.time)
            return InstantMomentMatching._direction(o, half, *rest)

        monkeypatch.setattr(objective, "_direction", record)
        objective.student_loss(trio, tokens, draw_of(40))
        gap = torch.cat(gaps)
        assert 0.5 / steps < float(gap.max()) <= 1 / steps
        assert float(gap.min()) >= 0
