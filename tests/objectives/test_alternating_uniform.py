"""The alternating objective on the uniform process against enumerations on tiny tables."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from idlm.objectives import DMMD, AlternatingDistillation, Draw, Networks
from idlm.objectives.alternating_uniform import draw_posterior, given_state, simulate
from idlm.processes import Absorbing, Uniform
from idlm.schedules import LogLinear

MakeTable = Callable[..., Any]
RENOISE = ("fresh", "posterior")
every_renoise = pytest.mark.parametrize("renoise", RENOISE)
K = 3


def draw_of(n: int, *, seed: int = 0, step: int = 0) -> Draw:
    return Draw(torch.arange(n), n, seed, step)


def networks(table: MakeTable, vocab: int = K, length: int = 2) -> Networks:
    return Networks(*(table(vocab, length, seed=seed) for seed in (1, 2, 3)))


def fixed_times(objective: Any, s: float, t: float) -> Any:
    """Every sequence at the same two times, so that a table without time can be optimal."""
    objective.times = lambda draw: tuple(
        torch.full((draw.sample.shape[0],), time) for time in (t, s)
    )
    return objective


@every_renoise
@pytest.mark.parametrize("weighting", ["nelbo", "flat"])
def test_teacher_equal_to_fake_gives_no_loss_and_no_gradient(
    uniform_table: MakeTable, renoise: Any, weighting: Any
) -> None:
    teacher, student, _ = networks(uniform_table)
    objective = AlternatingDistillation(renoise=renoise, weighting=weighting)
    tokens = torch.randint(0, K, (50, 2))
    loss = objective.student_loss(Networks(teacher, student, teacher), tokens, draw_of(50))
    loss.total.backward()
    assert loss.total.item() == 0.0
    assert float(student.logits.grad.abs().max()) == 0.0


@every_renoise
def test_both_losses_are_the_plain_ones_on_full_tables_in_value_and_gradient(
    uniform_table: MakeTable, renoise: Any
) -> None:
    trio, other = networks(uniform_table), networks(uniform_table)
    tokens, draw = torch.randint(0, K, (40, 2)), draw_of(40)
    objective = AlternatingDistillation(renoise=renoise, anchor=0.7)
    for name in ("student_loss", "auxiliary_loss"):
        getattr(objective, name)(trio, tokens, draw).total.backward()
    state = simulate(objective, other.student, tokens, draw)

    def bayes(logits: Tensor, z: Tensor, t: Tensor) -> Tensor:
        alpha = (1 - 0.999 * t.double())[:, None, None]
        seen = alpha * torch.nn.functional.one_hot(z, K) + (1 - alpha) / K
        joint = logits.softmax(-1) * seen
        return joint / joint.sum(-1, keepdim=True)

    log_t, log_f = (bayes(other[i].table(state.z), state.z, state.time).log() for i in (0, 2))
    t_in, _ = objective.times(draw)
    g = bayes(other.student.table(state.z_in), state.z_in, t_in)
    weight = (1 / state.time.double())[:, None]
    student = -(weight * (g * (log_t - log_f).detach()).sum(-1)).sum()
    hard = -log_f.gather(-1, state.x[..., None])[..., 0]
    fake = (weight * (hard - 0.7 * (log_t.exp().detach() * log_f).sum(-1))).sum()
    assert abs(student.item()) > 1
    (student + fake).backward()
    for mine, plain, trained in zip(trio, other, (False, True, True), strict=True):
        assert (mine.logits.grad is not None) == trained
        if trained:
            # the weights 1/t are fp32
            torch.testing.assert_close(mine.logits.grad, plain.logits.grad, rtol=1e-5, atol=1e-6)
    for name, value in (("student_loss", student), ("auxiliary_loss", fake)):
        total = getattr(objective, name)(trio, tokens, draw).total
        torch.testing.assert_close(total, value.detach(), rtol=1e-6, atol=0)


@pytest.mark.parametrize(("s", "t"), [(0.2, 0.6), (0.5, 0.9), (0.9, 1.0), (0.3, 0.3), (0.0, 0.5)])
def test_posterior_draws_have_the_law_of_the_posterior(s: float, t: float) -> None:
    """All numbers of a fine grid, for each of the nine pairs of x and z_t."""
    process, n = Uniform(K), 100_000
    grid = ((torch.arange(n).double() + 0.5) / n).expand(K * K, n)
    x, z = (
        i.reshape(-1, 1) for i in torch.cartesian_prod(torch.arange(K), torch.arange(K)).unbind(1)
    )
    times = [torch.full((K * K,), time, dtype=torch.float64) for time in (s, t)]
    drawn = draw_posterior(process, x.expand_as(grid), z.expand_as(grid), *times, grid)
    share = torch.nn.functional.one_hot(drawn, K).double().mean(1)
    exact = process.posterior(x, z, *times)[:, 0]
    # each of at most five intervals of the grid is cut to within one of its n points
    assert float((share - exact).abs().max()) < 6 / n


def test_a_draw_of_x_and_the_posterior_have_the_law_of_the_plug_in_sampler() -> None:
    """sum_x P(x | z_t) q(z_s | x, z_t) = q(z_s | z_t, prediction), enumerated at finite steps."""
    process, p = Uniform(K), torch.tensor([0.5, 0.4, 0.1]).double()
    z = torch.arange(K)[:, None]
    s, t = (torch.full((K,), time, dtype=torch.float64) for time in (0.2, 0.9))
    plug_in = p.expand(K, 1, K)
    clean = given_state(process, plug_in.log(), z, t).exp()
    assert float((clean - plug_in).abs().max()) > 0.05
    mixture = sum(
        clean[..., x, None] * process.posterior(torch.full_like(z, x), z, s, t) for x in range(K)
    )
    torch.testing.assert_close(mixture, process.posterior(plug_in, z, s, t))  # fp64


def test_a_student_that_is_the_exact_teacher_is_consistent() -> None:
    """One token with the law p: the NELBO's optimum predicts p at every state and time.

    Its draws and their posterior states then have E[x | z_s] of the data, enumerated.
    """
    process, p = Uniform(K), torch.tensor([0.5, 0.4, 0.1]).double()
    z = torch.arange(K)[:, None]
    s, t = (torch.full((K,), time, dtype=torch.float64) for time in (0.2, 0.9))
    clean = given_state(process, p.log().expand(K, 1, K), z, t).exp()[:, 0]
    joint = torch.zeros(K, K, dtype=torch.float64)  # x, z_s
    for x in range(K):
        law = process.posterior(torch.full_like(z, x), z, s, t)[:, 0]
        joint[x] = ((likelihood(0.9) @ p) * clean[:, x]) @ law
    wanted = given_state(process, p.log().expand(K, 1, K), z, s).exp()[:, 0]
    torch.testing.assert_close((joint / joint.sum(0)).T, wanted)  # fp64


def test_the_clean_limit_shows_every_token_and_equal_times_change_nothing() -> None:
    process = Uniform(K, LogLinear(0.0))
    x, z, noise = torch.randint(0, K, (9, 50)), torch.randint(0, K, (9, 50)), torch.rand(9, 50)
    end, middle = (torch.full((9,), time, dtype=torch.float64) for time in (0.0, 0.5))
    noise = noise.double()
    assert torch.equal(draw_posterior(process, x, z, end, middle, noise), x)
    assert torch.equal(draw_posterior(process, x, z, middle, middle, noise), z)


def test_tokens_are_drawn_from_the_student_at_every_position(uniform_table: MakeTable) -> None:
    n, probs = 20_000, torch.tensor([0.6, 0.3, 0.1]).double()
    objective = fixed_times(DMMD(), 0.4, 0.8)
    student = uniform_table(probs=predicting(probs.expand(K, K), 0.8))
    state = simulate(objective, student, torch.zeros(n, 1).long(), draw_of(n))
    expected = n * probs
    counts = torch.bincount(state.x[:, 0], minlength=K).double()
    assert float(((counts - expected) ** 2 / expected).sum()) < 13.8  # 2 degrees, level 1e-3
    # nothing of it is the data, which is what was noised
    assert int((state.z_in == 0).sum()) > 0.4 * n


@every_renoise
def test_networks_are_told_the_time_of_the_state_they_see(
    uniform_table: MakeTable, renoise: Any
) -> None:
    trio, draw = networks(uniform_table), draw_of(20)
    objective = AlternatingDistillation(renoise=renoise)
    t_in, t_out = objective.times(draw)
    assert float((t_in - t_out).abs().max()) > 0.01
    objective.student_loss(trio, torch.randint(0, K, (20, 2)), draw)
    for model, t in ((trio.student, t_in), (trio.teacher, t_out), (trio.fake, t_out)):
        (sigma,) = model.times
        torch.testing.assert_close(sigma, -torch.log(1 - 0.999 * t), rtol=1e-4, atol=1e-6)
    made, used = trio.student.latents
    assert used is made


def likelihood(t: float) -> Tensor:
    """q(z | x) of one position, ``[z, x]``."""
    alpha = 1 - 0.999 * t
    return alpha * torch.eye(K).double() + (1 - alpha) / K


def predicting(probs: Tensor, t: float) -> Tensor:
    """The prediction, ``[z, x]``, whose E[x | z] at time t is ``probs``."""
    rest = probs / likelihood(t)
    return rest / rest.sum(-1, keepdim=True)


def conditional(state: Any) -> tuple[Tensor, Tensor]:
    """Law of z in this very batch, and of x given z, ``[K]`` and ``[K, K]``."""
    pairs = torch.zeros(K, K, dtype=torch.float64)
    pairs.index_put_((state.z[:, 0], state.x[:, 0]), torch.tensor(1.0).double(), accumulate=True)
    return pairs.sum(1) / pairs.sum(), pairs / pairs.sum(1, keepdim=True)


@pytest.mark.parametrize("anchor", [0.0, 1.0])
def test_with_an_optimal_fake_the_loss_is_the_divergence_from_the_teacher(
    uniform_table: MakeTable, anchor: float
) -> None:
    """sum_z P(z) sum_v p log((1 + anchor) p / (p + anchor q)) ... at anchor 1: p log((p+q)/2q).

    For a student that is sure of each token, as the generator of correlated tokens has to be; the
    fake model fitted to this very batch makes the identity exact.
    """
    n, s, t = 5000, 0.4, 0.8
    objective = fixed_times(DMMD(anchor=anchor), s, t)
    # the student turns each token into the next one, for certain to within e^-40
    student = uniform_table(K, 1)
    student.logits.data = 40.0 * torch.eye(K).double().roll(1, -1)[:, None]
    teacher = uniform_table(K, 1, seed=5)
    tokens = torch.randint(0, 2, (n, 1))
    state = simulate(objective, student, tokens, draw_of(n))
    law, p = conditional(state)
    q = teacher.logits.detach()[:, 0].softmax(-1) * likelihood(s)
    q = q / q.sum(-1, keepdim=True)
    fake = uniform_table(probs=predicting((p + anchor * q) / (1 + anchor), s))
    trio = Networks(teacher, student, fake)
    loss = objective.student_loss(trio, tokens, draw_of(n))
    ratio = (p + anchor * q) / ((1 + anchor) * q)
    expected = float((law[:, None] * torch.xlogy(p, ratio)).sum()) / s
    assert expected > 0.1
    assert loss.mean.item() == pytest.approx(expected, rel=1e-6)  # the weight 1/s is fp32
    auxiliary = objective.auxiliary_loss(trio, tokens, draw_of(n))
    auxiliary.total.backward()
    assert float(fake.logits.grad.abs().max()) < 1e-6 * auxiliary.total.item()


def test_the_divergence_vanishes_only_where_the_student_is_consistent(
    uniform_table: MakeTable,
) -> None:
    n = 5000
    objective = fixed_times(DMMD(), 0.4, 0.8)
    student = uniform_table(K, 1)
    student.logits.data = 40.0 * torch.eye(K).double().roll(1, -1)[:, None]
    tokens = torch.randint(0, 2, (n, 1))
    _, p = conditional(simulate(objective, student, tokens, draw_of(n)))
    teacher = uniform_table(probs=predicting(p, 0.4))
    # the fake model at its optimum is half p, half teacher: the teacher
    auxiliary = objective.auxiliary_loss(Networks(teacher, student, teacher), tokens, draw_of(n))
    auxiliary.mean.backward()
    assert float(teacher.logits.grad.abs().max()) < 1e-6  # fp32 weights
    loss = objective.student_loss(Networks(teacher, student, teacher), tokens, draw_of(n))
    loss.total.backward()
    assert loss.total.item() == 0.0
    assert not bool(student.logits.grad.any())


def test_the_fakes_target_must_be_the_drawn_token_and_not_its_probabilities(
    uniform_table: MakeTable,
) -> None:
    """E[x | z] against E[G | z], enumerated; masked states that are scored do not tell them apart.

    z depends on the token that was drawn: under the uniform process it is evidence about it.
    """
    s, t = (torch.tensor([time], dtype=torch.float64) for time in (0.4, 0.8))
    g = torch.tensor([[0.6, 0.3, 0.1], [0.2, 0.2, 0.6], [0.1, 0.8, 0.1]]).double()
    process = Uniform(K)
    prior = torch.tensor([0.5, 0.3, 0.2]).double()  # of z_in
    joint = torch.zeros(K, K, K, dtype=torch.float64)  # z_in, x, z
    for z_in in range(K):
        for x in range(K):
            law = process.posterior(torch.tensor([[x]]), torch.tensor([[z_in]]), s, t)[0, 0]
            joint[z_in, x] = prior[z_in] * g[z_in, x] * law
    hard = (joint.sum(0) / joint.sum((0, 1))).T
    soft = torch.einsum("iv,iu->vu", joint.sum(1), g)
    soft = soft / joint.sum((0, 1))[:, None]
    assert float((hard - soft).abs().max()) > 0.2

    # of the two the loss is stationary at the first: its own targets are the drawn tokens
    n = 40_000
    objective = fixed_times(DMMD(anchor=0.0, weighting="flat"), 0.4, 0.8)
    student = uniform_table(probs=predicting(g, 0.8))
    tokens = torch.randint(0, K, (n, 1))
    state = simulate(objective, student, tokens, draw_of(n))
    _, p = conditional(state)
    mean_g = torch.stack([g[state.z_in[state.z == z]].mean(0) for z in range(K)])
    sizes = []
    for target in (p, mean_g):
        fake = uniform_table(probs=predicting(target, 0.4))
        trio = Networks(student, student, fake)
        objective.auxiliary_loss(trio, tokens, draw_of(n)).mean.backward()
        sizes.append(float(fake.logits.grad.abs().max()))
    assert sizes[0] < 1e-7  # the times are fp32
    assert sizes[1] > 0.02

    masked = Absorbing(K)
    mask = torch.tensor([[K - 1]])
    stays = [masked.posterior(torch.tensor([[x]]), mask, s, t)[0, 0, -1] for x in range(K - 1)]
    assert float(stays[0]) == float(stays[1])  # the same for every x


@every_renoise
@pytest.mark.parametrize("name", ["student_loss", "auxiliary_loss"])
def test_micro_batches_add_up_to_the_whole_batch(
    uniform_table: MakeTable, renoise: Any, name: str
) -> None:
    objective = AlternatingDistillation(renoise=renoise)
    trained = "student" if name == "student_loss" else "fake"
    tokens = torch.randint(0, K, (16, 2))

    def run(*cuts: int) -> tuple[Tensor, Tensor]:
        trio = networks(uniform_table)
        total = torch.zeros((), dtype=torch.float64)
        for a, b in pairwise(cuts):
            loss = getattr(objective, name)(trio, tokens[a:b], Draw(torch.arange(a, b), 16, 3, 4))
            loss.total.backward()
            total = total + loss.total.detach()
        return total, getattr(trio, trained).logits.grad

    whole = run(0, 16)
    for other in (run(0, 8, 16), run(0, 1, 5, 16)):
        torch.testing.assert_close(other[0], whole[0])  # fp64
        torch.testing.assert_close(other[1], whole[1])


def test_the_logged_entropy_is_the_students_over_all_positions(uniform_table: MakeTable) -> None:
    g = torch.tensor([[0.2, 0.8, 1e-9], [0.5, 0.25, 0.25], [0.1, 0.1, 0.8]]).double()
    g = g / g.sum(-1, keepdim=True)
    student, objective = uniform_table(probs=predicting(g, 0.8)), fixed_times(DMMD(), 0.4, 0.8)
    trio = Networks(uniform_table(), student, uniform_table(seed=4))
    tokens, draw = torch.randint(0, K, (100, 1)), draw_of(100)
    loss = objective.student_loss(trio, tokens, draw)
    rows = simulate(objective, student, tokens, draw).z_in[:, 0]
    expected = torch.distributions.Categorical(g[rows]).entropy().mean()
    assert float(loss.logs["student_entropy"]) == pytest.approx(float(expected), rel=1e-6)
