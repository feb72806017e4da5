"""Alternating moment matching against closed forms.

With linear networks on Gaussian data every loss is a second moment, and eight rows of +-1 for data,
noise and fresh noise have exactly the second moments of standard normals: the expectations below
are exact, not sampled.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from idlm.errors import UserError
from idlm.models.continuous import ContinuousDenoiser
from idlm.objectives.base import Draw, Networks
from idlm.objectives.moment_matching import MomentMatching, simulate
from idlm.processes.gaussian import Gaussian, LinearLogSNR, ddpm_sample
from idlm.random import Stream

MEAN, STD = 0.7, 1.6
SIGNS = torch.tensor(list(product((-1.0, 1.0), repeat=3)), dtype=torch.float64)
DATA = MEAN + STD * SIGNS[:, :1]


@dataclass(frozen=True)
class Factorial(Draw):
    """Every combination of signs in place of normals, and one pair of times for all rows.

    Attributes:
        s: the earlier time.
        gap: share of the longest step that t is later.
    """

    s: float = 0.3
    gap: float = 1.0

    def normal(self, *shape: int, stream: Stream, dtype: Any = None) -> Tensor:
        return SIGNS[:, {Stream.NOISE: 1, Stream.POSTERIOR: 2}[stream]].reshape(8, *shape)

    def uniform(self, *shape: int, stream: Stream) -> Tensor:
        assert stream is Stream.TIME_2
        return torch.full((8, *shape), self.gap, dtype=torch.float64)

    def times(self, stream: Stream, *, permuted: bool = False) -> Tensor:
        return torch.full((8,), self.s, dtype=torch.float64)


def factorial(s: float = 0.3, gap: float = 1.0) -> Factorial:
    return Factorial(torch.arange(8), 8, 0, 0, s=s, gap=gap)


def draw_of(n: int, *, step: int = 0) -> Draw:
    return Draw(torch.arange(n), n, 0, step)


class Line(nn.Module):
    """x = gain z + offset at every time, gain and offset in float64."""

    def __init__(self, gain: float, offset: float, process: Gaussian | None = None) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(gain, dtype=torch.float64))
        self.offset = nn.Parameter(torch.tensor(offset, dtype=torch.float64))
        self.process = process or Gaussian()
        self.times: list[Tensor] = []

    def forward(self, z: Tensor, t: Tensor) -> Tensor:
        self.times.append(t)
        return self.gain * z + self.offset


def scales(time: float) -> tuple[float, float]:
    t = torch.tensor(time, dtype=torch.float64)
    return float(Gaussian().schedule.alpha(t)), float(Gaussian().schedule.sigma(t))


def teacher_at(s: float) -> Line:
    """E[x | z_s] of the data."""
    alpha, sigma = scales(s)
    gain = alpha * STD**2 / (alpha**2 * STD**2 + sigma**2)
    return Line(gain, MEAN * (1 - gain * alpha))


def student_moment(student: Line, s: float, t: float) -> tuple[float, float]:
    """Gain and offset of E[x~ | z_s], by Gaussian conditioning; the step is written out again."""
    (alpha_s, sigma_s), (alpha_t, sigma_t) = scales(s), scales(t)
    a, b = student.gain.item(), student.offset.item()
    g = sigma_s / sigma_t * (1 - alpha_t**2 / alpha_s**2) ** 0.5
    kept = (sigma_s**2 - g**2) ** 0.5
    var_t = alpha_t**2 * STD**2 + sigma_t**2
    # z_s = alpha_s x~ + kept (z_t - alpha_t x~) / sigma_t + g n, with x~ = a z_t + b
    slope = (alpha_s - kept * alpha_t / sigma_t) * a + kept / sigma_t
    shift = (alpha_s - kept * alpha_t / sigma_t) * b
    gain = a * slope * var_t / (slope**2 * var_t + g**2)
    mean_t = alpha_t * MEAN
    return gain, a * mean_t + b - gain * (slope * mean_t + shift)


def gradients(loss: Any, network: nn.Module) -> list[float]:
    network.zero_grad()
    loss.total.backward()
    return [float(p.grad) for p in network.parameters() if p.grad is not None]


@pytest.mark.parametrize("anchor", [0.0, 0.5, 1.0, 3.0])
@pytest.mark.parametrize(("s", "steps"), [(0.3, 4), (0.6, 8), (0.02, 2)])
def test_the_auxiliary_networks_optimum_is_the_average_of_both_regressions(
    anchor: float, s: float, steps: int
) -> None:
    """(E[x~ | z_s] + anchor * teacher) / (1 + anchor)."""
    objective = MomentMatching(target_steps=steps, anchor=anchor)
    teacher, student = teacher_at(s), Line(0.4, 0.3)
    of_student = student_moment(student, s, s + 1 / steps)
    of_teacher = (teacher.gain.item(), teacher.offset.item())
    best = [(u + anchor * v) / (1 + anchor) for u, v in zip(of_student, of_teacher, strict=True)]
    fake = Line(*best)
    trio: Any = Networks(teacher, student, fake)  # type: ignore[arg-type]
    loss = objective.auxiliary_loss(trio, DATA, factorial(s))
    # fp64; the weight is at most 100
    assert gradients(loss, fake) == pytest.approx([0.0, 0.0], abs=1e-10)
    for change in ((0.01, 0.0), (0.0, 0.01)):
        other = Line(best[0] + change[0], best[1] + change[1])
        worse = objective.auxiliary_loss(trio._replace(auxiliary=other), DATA, factorial(s))
        assert worse.total.item() > loss.total.item() + 1e-4


@pytest.mark.parametrize("anchor", [0.0, 1.0, 3.0])
def test_with_an_optimal_auxiliary_the_loss_is_the_distance_of_the_moments(anchor: float) -> None:
    """w ||E[x~ | z_s] - teacher||^2 / (1 + anchor): only the scale depends on the anchor (D.3)."""
    s, objective = 0.3, MomentMatching(target_steps=4, anchor=anchor)
    teacher, student = teacher_at(s), Line(0.4, 0.3)
    moment = Line(*student_moment(student, s, 0.55))
    pairs = zip(moment.parameters(), teacher.parameters(), strict=True)
    fake = Line(*((u + anchor * v).item() / (1 + anchor) for u, v in pairs))
    loss = objective.student_loss(
        Networks(teacher, student, fake),  # type: ignore[arg-type]
        DATA,
        factorial(s),
    )
    state = objective.simulate(student, DATA, factorial(s))
    weight = 1 / scales(s)[1] ** 2
    distance = ((moment(state.z, state.time) - teacher(state.z, state.time)) ** 2).sum()
    expected = weight * distance.item() / (1 + anchor)
    assert expected > 0.1
    assert loss.total.item() == pytest.approx(expected, rel=1e-10)  # fp64
    assert loss.tokens == 8


def halfway(student: Line, teacher: Line, s: float) -> Line:
    """The auxiliary network's optimum for a student at t = 1."""
    moment = student_moment(student, s, 1.0)
    return Line(*((u + v.item()) / 2 for u, v in zip(moment, teacher.parameters(), strict=True)))


@pytest.mark.parametrize("s", [0.1, 0.4, 0.8])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_data_distribution_is_the_fixed_point_and_every_other_student_is_led_to_it(
    s: float, sign: float
) -> None:
    """At t = 1 the student a e + b, e ~ N(0, 1), is N(0.7, 1.6^2) for a = +-1.6, b = 0.7."""
    objective, teacher = MomentMatching(target_steps=1), teacher_at(s)

    def pushed(gain: float, offset: float) -> tuple[float, list[float]]:
        student = Line(gain, offset)
        trio: Any = Networks(teacher, student, halfway(student, teacher, s))  # type: ignore[arg-type]
        loss = objective.student_loss(trio, DATA, factorial(s))
        return loss.mean.item(), gradients(loss, student)

    value, gradient = pushed(sign * STD, MEAN)
    assert [value, *gradient] == pytest.approx([0.0, 0.0, 0.0], abs=1e-10)  # fp64
    for size in (0.05, 1.0, 1.5, 1.7, 4.0):
        value, (slope, of_offset) = pushed(sign * size, MEAN)
        assert value > 1e-7
        assert slope * sign * (size - STD) > 0
        assert of_offset == pytest.approx(0.0, abs=1e-10)
    for offset in (-3.0, 0.6, 0.8, 2.0):
        assert pushed(sign * STD, offset)[1][1] * (offset - MEAN) > 0


def test_descent_ends_at_the_data_and_one_sampling_step_draws_from_it() -> None:
    """From near the teacher's own answer at t = 1; a small gain breaks the tie of signs."""
    s, objective = 0.5, MomentMatching(target_steps=1)
    teacher, student = teacher_at(s), Line(0.05, MEAN - 1.0)
    descent = torch.optim.SGD(student.parameters(), lr=0.5)
    for _ in range(150):
        trio: Any = Networks(teacher, student, halfway(student, teacher, s))  # type: ignore[arg-type]
        descent.zero_grad()
        objective.student_loss(trio, DATA, factorial(s)).mean.backward()
        descent.step()
    with torch.no_grad():
        x = ddpm_sample(student.process, student, SIGNS[None, :, 1:2])
    assert float(x.mean()) == pytest.approx(MEAN, abs=1e-4)
    assert float(x.std(correction=0)) == pytest.approx(STD, abs=1e-4)


def curved(seed: int) -> ContinuousDenoiser:
    """A network that is far from linear, float64."""
    torch.manual_seed(seed)
    model = ContinuousDenoiser(2, hidden=8, blocks=1).double()
    nn.init.normal_(model.answer.weight)
    return model


def trio_of(make: Any = curved) -> Any:
    return Networks(*(make(seed) for seed in (1, 2, 3)))


def test_the_gradient_is_that_of_the_paper_with_the_state_held_fixed() -> None:
    """d/d eta of w(s) x~^T sg[auxiliary - teacher], and nothing through z_s (D.3, D.6)."""
    trio, draw, data = trio_of(), draw_of(20), torch.randn(20, 2, dtype=torch.float64)
    objective = MomentMatching(target_steps=2)
    objective.student_loss(trio, data, draw).total.backward()
    got = [p.grad.clone() for p in trio.student.parameters()]

    t, s = objective.times(draw)
    process = trio.student.process
    noise = draw.normal(2, stream=Stream.NOISE, dtype=torch.float64)
    fresh = draw.normal(2, stream=Stream.POSTERIOR, dtype=torch.float64)
    z_t = process.corrupt(data, t, noise)
    x = trio.student(z_t, t)
    mean, std = process.posterior(x, z_t, s, t)
    weight = process.weight(s, "snr+1").clamp(max=100.0)[:, None]

    def paper(z_s: Tensor) -> list[Tensor]:
        gap = trio.fake(z_s, s) - trio.teacher(z_s, s)
        return list(
            torch.autograd.grad(
                (weight * x * gap).sum(), list(trio.student.parameters()), retain_graph=True
            )
        )

    def paper_detached() -> list[Tensor]:
        z_s = (mean + std * fresh).detach()
        gap = (trio.fake(z_s, s) - trio.teacher(z_s, s)).detach()
        return list(
            torch.autograd.grad(
                x, list(trio.student.parameters()), grad_outputs=weight * gap, retain_graph=True
            )
        )

    for mine, theirs in zip(got, paper_detached(), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-10, rtol=1e-9)  # fp64
    # a gradient through z_s, as a well-known re-implementation has it, is another one
    through = paper(mean + std * fresh)
    differ = [float((m - o).norm() / m.norm()) for m, o in zip(got, through, strict=True)]
    assert max(differ) > 0.1


def test_a_teacher_equal_to_the_auxiliary_gives_no_loss_and_no_gradient() -> None:
    trio = trio_of()
    trio = trio._replace(auxiliary=copy.deepcopy(trio.teacher))
    loss = MomentMatching().student_loss(trio, torch.randn(9, 2).double(), draw_of(9))
    loss.total.backward()
    assert loss.total.item() == 0.0
    assert loss.logs["moment_gap"].item() == 0.0
    assert all(not bool(p.grad.any()) for p in trio.student.parameters())


def test_gradients_reach_the_network_in_training_and_no_other() -> None:
    objective = MomentMatching()
    data, draw = torch.randn(9, 2).double(), draw_of(9)
    for name, loss in (("student", objective.student_loss), ("fake", objective.auxiliary_loss)):
        trio = trio_of()
        loss(trio, data, draw).total.backward()
        for other in ("teacher", "student", "fake"):
            reached = any(p.grad is not None for p in getattr(trio, other).parameters())
            assert reached == (other == name), (name, other)


def test_the_state_is_drawn_given_the_students_input_too() -> None:
    """q(z_s | x~, z_t), not q(z_s | x~): a step of no length stays where it was."""
    student = Line(-3.0, 5.0)
    state = simulate(student, DATA, factorial(0.3, gap=0.0), target_steps=4)
    alpha, sigma = scales(0.3)
    torch.testing.assert_close(state.z, alpha * DATA + sigma * SIGNS[:, 1:2], atol=1e-12, rtol=0)
    assert not state.z.requires_grad
    assert state.x.requires_grad
    # one of full length, to t = 1, forgets it but for x~ = 5 - 3 e
    state = simulate(student, DATA, factorial(0.3), target_steps=1)
    expected = alpha * (5 - 3 * SIGNS[:, 1:2]) + sigma * SIGNS[:, 2:]
    torch.testing.assert_close(state.z, expected, atol=1e-12, rtol=0)


def test_eta_sets_the_share_of_fresh_noise() -> None:
    draw, student = factorial(0.3), Line(0.4, 0.3)
    (alpha_s, sigma_s), (alpha_t, sigma_t) = scales(0.3), scales(0.55)
    for eta in (0.25, 1.0):
        z = MomentMatching(target_steps=4, eta=eta).simulate(student, DATA, draw).z
        # rows differ in the sign of the fresh noise alone, first down, then up
        fresh = (z[1::2] - z[::2]) / 2
        g = eta * sigma_s / sigma_t * (1 - alpha_t**2 / alpha_s**2) ** 0.5
        torch.testing.assert_close(fresh, torch.full_like(fresh, g), atol=1e-12, rtol=0)


@pytest.mark.parametrize("steps", [1, 4, 16])
def test_times_lie_within_one_sampling_step_and_s_has_one_in_every_stratum(steps: int) -> None:
    n = 4000
    t, s = MomentMatching(target_steps=steps).times(draw_of(n))
    stratum = ((s.double() - 1e-3) / (1 - 1e-3) * n).floor().long()
    assert torch.equal(stratum.sort().values, torch.arange(n))
    gap = t.double() - s.double()
    assert float(gap.min()) >= 0
    assert float(gap.max()) <= 1 / steps + 1e-6
    assert float(t.max()) == 1.0
    # s + U(0, 1/k) is beyond 1 with chance 1 / (2k): four standard deviations
    share = float((t == 1).double().mean())
    assert share == pytest.approx(1 / (2 * steps), abs=4 / n**0.5)
    inside = gap[t < 1 - 1 / steps]
    if steps > 1:
        assert float(inside.mean()) == pytest.approx(
            0.5 / steps, abs=2 / steps / len(inside) ** 0.5
        )


def test_networks_are_told_the_time_of_the_state_they_see() -> None:
    objective, draw = MomentMatching(target_steps=4), draw_of(20)
    t, s = objective.times(draw)
    for loss in (objective.student_loss, objective.auxiliary_loss):
        trio: Any = Networks(Line(1, 0), Line(0.5, 0), Line(1, 1))  # type: ignore[arg-type]
        loss(trio, torch.randn(20, 1).double(), draw)
        for network, time in ((trio.teacher, s), (trio.student, t), (trio.fake, s)):
            assert [torch.equal(seen, time) for seen in network.times] == [True]


def test_the_weight_is_that_of_s_and_bounded_where_there_is_hardly_any_noise() -> None:
    """1 / sigma_s^2 is 400,000 at s = 0.001: one row in a thousand would be all of the loss."""
    teacher, student, fake = Line(1.0, 0.0), Line(0.5, 0.0), Line(0.9, 0.1)
    trio: Any = Networks(teacher, student, fake)  # type: ignore[arg-type]
    for loss in ("student_loss", "auxiliary_loss"):

        def total(s: float, loss: str = loss, **settings: Any) -> float:
            objective = MomentMatching(target_steps=4, **settings)
            return getattr(objective, loss)(trio, DATA, factorial(s)).total.item()

        for s in (0.001, 0.3):
            flat, weight = total(s, weighting="constant"), 1 / scales(s)[1] ** 2
            assert total(s) == pytest.approx(min(weight, 100.0) * flat, rel=1e-9)
            assert total(s, max_weight=7.0) == pytest.approx(min(weight, 7.0) * flat, rel=1e-9)
            unbounded = total(s, max_weight=float("inf"))
            assert unbounded == pytest.approx(weight * flat, rel=1e-9)
            snr = total(s, weighting="snr", max_weight=float("inf"))
            assert snr == pytest.approx((weight - 1) * flat, rel=1e-9)


def test_micro_batches_add_up_to_the_batch_down_to_one_row() -> None:
    trio, data = trio_of(), torch.randn(7, 2).double()
    objective, draw = MomentMatching(), draw_of(7)
    for loss in (objective.student_loss, objective.auxiliary_loss):
        whole = loss(trio, data, draw)
        parts = [
            loss(trio, data[a:b], replace(draw, sample=draw.sample[a:b]))
            for a, b in ((0, 1), (1, 6), (6, 7))
        ]
        total = sum(part.total for part in parts)
        torch.testing.assert_close(total, whole.total, rtol=1e-10, atol=1e-10)
        assert sum(part.tokens for part in parts) == whole.tokens == 14


def test_a_run_makes_a_one_step_generator_of_two_points() -> None:
    """Data +-1; the teacher is exact, and its own single step gives 0 for every noise."""

    class Points(nn.Module):
        process = Gaussian()

        def forward(self, z: Tensor, t: Tensor) -> Tensor:
            schedule = self.process.schedule
            ratio = schedule.alpha(t) / schedule.sigma(t) ** 2
            return torch.tanh(ratio[:, None].to(z.dtype) * z)

    torch.manual_seed(0)
    start = ContinuousDenoiser(1, hidden=32, blocks=1)
    trio: Any = Networks(Points(), start, copy.deepcopy(start))  # type: ignore[arg-type]
    objective = MomentMatching(target_steps=1)
    kinds = ((trio.fake, objective.auxiliary_loss), (trio.student, objective.student_loss))
    adams = [torch.optim.Adam(network.parameters(), lr=3e-3) for network, _ in kinds]
    for step in range(200):
        for (_, loss), adam in zip(kinds, adams, strict=True):
            adam.param_groups[0]["lr"] = 3e-3 * (1 - step / 200)
            draw = Draw(torch.arange(128) + 128 * step, 128, 0, step)
            data = draw.uniform(1, stream=Stream.CHOICE).lt(0.5).float() * 2 - 1
            adam.zero_grad()
            loss(trio, data, draw).mean.backward()
            adam.step()
    with torch.no_grad():
        x = ddpm_sample(start.process, start, torch.randn(1, 4000, 1))[:, 0]
    close = (x.abs() - 1).abs() < 0.25
    assert float(close.float().mean()) > 0.8
    assert float((x > 0).float().mean()) == pytest.approx(0.5, abs=0.1)


def test_what_cannot_be_is_refused_with_a_sentence() -> None:
    for settings, message in (
        ({"target_steps": 0}, "target_steps is 0; it must be at least 1"),
        ({"anchor": -1.0}, "anchor is -1.0; it is a weight, 0 or more"),
        ({"eta": 0.0}, "eta is 0.0; moment matching needs a random z_s"),
        ({"eta": 1.5}, "above 0 and at most 1"),
        ({"weighting": "edm"}, "weighting is 'edm'; choose one of constant, snr, "),
        ({"max_weight": 0.0}, "max_weight is 0.0; it must be above 0, inf for no bound"),
        ({"max_weight": float("nan")}, "max_weight is nan"),
    ):
        with pytest.raises(UserError, match=message):
            MomentMatching(**settings)  # type: ignore[arg-type]
    other = Line(1, 0, Gaussian(LinearLogSNR()))
    with pytest.raises(UserError, match="student's schedule is LinearLogSNR"):
        MomentMatching().check(Line(1, 0), other)
    MomentMatching().check(other, copy.deepcopy(other))
