"""DMD2 on Gaussian data: its formulas by hand and by autograd, and a case with a known answer."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from idlm.errors import UserError
from idlm.models.continuous import ContinuousDenoiser
from idlm.objectives.base import DistillationObjective, Draw, Networks
from idlm.objectives.dmd2 import DMD2, Critic
from idlm.objectives.moment_matching import MomentMatching
from idlm.processes.gaussian import Gaussian, LinearLogSNR, ddpm_sample, ddpm_states
from idlm.random import Stream
from idlm.training import DistillationModule
from tests.training.helpers import QUIET, copy_of, differs, trainer

pytestmark = QUIET
MEAN, STD = 0.7, 1.6


def draw_of(n: int, *, step: int = 0) -> Draw:
    return Draw(torch.arange(n), n, 0, step)


def curved(seed: int) -> ContinuousDenoiser:
    """A network that is far from linear, float64."""
    torch.manual_seed(seed)
    model = ContinuousDenoiser(2, hidden=8, blocks=1).double()
    nn.init.normal_(model.answer.weight)
    return model


def trio_of(*, gan: bool) -> Any:
    teacher, student, fake = (curved(seed) for seed in (1, 2, 3))
    return Networks(teacher, student, Critic(fake) if gan else fake)  # type: ignore[arg-type]


def plain(n: int = 12) -> tuple[Tensor, Draw]:
    return torch.randn(n, 2, dtype=torch.float64), draw_of(n)


def noised(process: Gaussian, x: Tensor, t: Tensor, draw: Draw) -> Tensor:
    return process.corrupt(x, t, draw.normal(2, stream=Stream.NOISE, dtype=x.dtype))


@pytest.mark.parametrize("steps", [1, 3])
def test_the_gradient_is_the_published_one_normalised_for_each_sample(steps: int) -> None:
    trio, (data, draw) = trio_of(gan=False), plain()
    objective = DMD2(target_steps=steps)
    loss = objective.student_loss(trio, data, draw)
    loss.total.backward()
    got = [p.grad.clone() for p in trio.student.parameters()]

    x = objective.generate(trio.student, data, draw)
    t = 0.02 + 0.96 * draw.times(Stream.TIME)
    with torch.no_grad():
        x_t = noised(trio.student.process, x, t, draw)
        p_real, p_fake = x - trio.teacher(x_t, t), x - trio.fake(x_t, t)
        sizes = p_real.abs().mean(1, keepdim=True)
        gradient = (p_real - p_fake) / sizes
    assert float(sizes.max() / sizes.min()) > 5  # one size for the whole batch would not do
    expected = torch.autograd.grad(x, list(trio.student.parameters()), grad_outputs=gradient)
    for mine, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-10, rtol=1e-9)  # fp64
    assert any(bool(g.any()) for g in got)
    assert loss.total.item() == pytest.approx(0.5 * gradient.square().sum().item(), rel=1e-10)
    assert loss.tokens == data.numel()


def test_a_sample_that_the_teacher_knows_exactly_gives_no_infinite_gradient() -> None:
    class Constant(nn.Module):
        def __init__(self, value: float) -> None:
            super().__init__()
            self.value = nn.Parameter(torch.tensor(value, dtype=torch.float64))
            self.process = Gaussian()

        def forward(self, z: Tensor, t: Tensor) -> Tensor:
            return self.value.expand_as(z)

    student = Constant(1.0)
    trio: Any = Networks(Constant(1.0), student, Constant(1.0 + 1e-7))  # type: ignore[arg-type]
    DMD2().student_loss(trio, *plain()).total.backward()
    # 24 coordinates, each fake minus teacher over the floor
    assert student.value.grad is not None
    assert student.value.grad.item() == pytest.approx(24 * 1e-7 / 1e-5, rel=1e-6)


def test_a_teacher_equal_to_the_auxiliary_gives_no_loss_and_no_gradient() -> None:
    trio = trio_of(gan=False)
    trio = trio._replace(auxiliary=copy.deepcopy(trio.teacher))
    loss = DMD2().student_loss(trio, *plain())
    loss.total.backward()
    assert loss.total.item() == 0.0
    assert all(not bool(p.grad.any()) for p in trio.student.parameters())


@pytest.mark.parametrize("gan", [False, True])
def test_gradients_reach_the_network_in_training_and_no_other(gan: bool) -> None:
    objective = DMD2(gan=gan)
    for name, loss in (
        ("student", objective.student_loss),
        ("auxiliary", objective.auxiliary_loss),
    ):
        trio = trio_of(gan=gan)
        loss(trio, *plain()).total.backward()
        for other in ("teacher", "student", "auxiliary"):
            parameters = list(getattr(trio, other).parameters())
            reached = any(p.grad is not None for p in parameters)
            assert reached == (other == name), (name, other)
            assert all(p.requires_grad for p in parameters)  # nothing stays frozen


def test_the_auxiliary_loss_is_score_matching_on_samples_at_all_times() -> None:
    """Weight sigma_edm^-2 + 1 at z / alpha, with sigma_edm = sigma / alpha, is 1 / sigma^2."""
    trio, (data, draw) = trio_of(gan=False), plain(200)
    objective = DMD2()
    loss = objective.auxiliary_loss(trio, data, draw)
    x = objective.generate(trio.student, data, draw)
    t = draw.times(Stream.TIME)
    assert float(t.min()) < 0.01
    assert float(t.max()) > 0.99
    schedule = trio.student.process.schedule
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    error = ((x - trio.fake(noised(trio.student.process, x, t, draw), t)) ** 2).sum(1)
    expected = (((alpha / sigma) ** 2 + 1) * error).sum()
    torch.testing.assert_close(loss.total, expected, rtol=1e-10, atol=0)  # fp64
    assert loss.tokens == 400


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_inputs_are_the_states_of_the_students_own_sampler(steps: int) -> None:
    n = 400
    student, (data, draw) = curved(2), plain(400)
    seen: list[tuple[Tensor, Tensor]] = []
    hook = student.register_forward_pre_hook(lambda _, args: seen.append(args))
    x = DMD2(target_steps=steps).generate(student, data, draw)
    hook.remove()
    z, t = seen[-1]
    noise = draw.normal(steps, 2, stream=Stream.POSTERIOR, dtype=torch.float64).transpose(0, 1)
    visited = list(ddpm_states(student.process, student, noise))
    assert len(seen) == steps  # the sampler's calls but its last, and the one with gradient
    counts = []
    for states, times in visited:
        here = t == times[0]
        counts.append(int(here.sum()))
        torch.testing.assert_close(z[here], states[here], atol=1e-12, rtol=0)
    assert sum(counts) == n
    # each step is as likely: four standard deviations
    assert all(abs(c - n / steps) <= 4 * (n / steps) ** 0.5 for c in counts)
    assert not z.requires_grad
    assert x.requires_grad
    # at the last step of a row the answer is its sample
    last = t == visited[-1][1][0]
    sample = ddpm_sample(student.process, student, noise)
    torch.testing.assert_close(x[last], sample[last], atol=1e-12, rtol=0)


def test_no_cast_of_the_pass_without_gradient_is_used_again_under_autocast() -> None:
    trio, (data, draw) = trio_of(gan=False), plain()
    cached: list[tuple[bool, bool]] = []

    def look(*_: Any) -> None:
        cached.append((torch.is_grad_enabled(), torch.is_autocast_cache_enabled()))

    trio.student.register_forward_pre_hook(look)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        DMD2(target_steps=2).generate(trio.student.float(), data.float(), draw)
    assert cached == [(False, False), (True, True)]


def test_data_count_only_in_the_discriminators_loss() -> None:
    other = torch.randn(12, 2, dtype=torch.float64)
    for gan in (False, True):
        trio, (data, draw) = trio_of(gan=gan), plain()
        objective = DMD2(gan=gan)
        for name in ("student_loss", "auxiliary_loss"):
            one = getattr(objective, name)(trio, data, draw).total
            two = getattr(objective, name)(trio, other, draw).total
            assert torch.equal(one, two) == (not gan or name == "student_loss")


def test_the_gan_terms_are_the_published_ones_in_the_published_ratio() -> None:
    trio, (data, draw) = trio_of(gan=True), plain()
    bare = trio._replace(auxiliary=trio.fake.denoiser)
    objective = DMD2(gan=True, gan_weight=0.2, critic_weight=0.7)
    process, critic = trio.student.process, trio.auxiliary
    x = objective.generate(trio.student, data, draw).detach()

    t = 0.02 + 0.96 * draw.times(Stream.TIME)
    answer = critic.realness(noised(process, x, t, draw), t)
    gain = objective.student_loss(trio, data, draw)
    without = DMD2().student_loss(bare, data, draw)
    expected = without.mean + 0.2 * torch.log1p(torch.exp(-answer)).mean()
    torch.testing.assert_close(gain.mean, expected, rtol=1e-10, atol=0)  # fp64
    assert gain.logs["gan_loss"].item() == pytest.approx(
        torch.log1p(torch.exp(-answer)).mean().item(), rel=1e-10
    )

    one, two = draw.branch(1), draw.branch(2)
    t_fake, t_real = one.times(Stream.TIME), two.times(Stream.TIME)
    on_fake = critic.realness(noised(process, x, t_fake, one), t_fake)
    on_real = critic.realness(noised(process, data, t_real, two), t_real)
    cost = torch.log1p(torch.exp(on_fake)).mean() + torch.log1p(torch.exp(-on_real)).mean()
    trained = objective.auxiliary_loss(trio, data, draw)
    expected = DMD2().auxiliary_loss(bare, data, draw).mean + 0.7 * cost
    torch.testing.assert_close(trained.mean, expected, rtol=1e-10, atol=0)
    assert trained.logs["critic_loss"].item() == pytest.approx(cost.item(), rel=1e-10)


def test_the_discriminator_learns_to_tell_data_and_the_student_to_fool_it() -> None:
    """Both signs, by what a small step against the gradient does; denoisers are kept out of it."""
    trio, (data, draw) = trio_of(gan=True), plain(64)
    trio = trio._replace(teacher=trio.fake.denoiser)  # no gradient from the scores
    objective = DMD2(target_steps=1, gan=True)
    process, critic = trio.student.process, trio.auxiliary

    def scores() -> tuple[float, float]:
        one, two = draw.branch(1), draw.branch(2)
        t_fake, t_real = one.times(Stream.TIME), two.times(Stream.TIME)
        with torch.no_grad():
            x = objective.generate(trio.student, data, draw)
            on_fake = critic.realness(noised(process, x, t_fake, one), t_fake)
            on_real = critic.realness(noised(process, data, t_real, two), t_real)
        return on_fake.mean().item(), on_real.mean().item()

    def step(network: nn.Module, loss: Any, size: float) -> None:
        network.zero_grad()
        loss(trio, data, draw).total.backward()
        with torch.no_grad():
            for parameter in network.parameters():
                if parameter.grad is not None:
                    parameter -= size * parameter.grad

    fake, real = scores()
    for _ in range(20):
        step(critic.head, objective.auxiliary_loss, 0.2)
    less, more = scores()
    assert more - less > real - fake + 0.02
    before = objective.student_loss(trio, data, draw).logs["gan_loss"].item()
    for _ in range(20):
        step(trio.student, objective.student_loss, 0.2)
    after = objective.student_loss(trio, data, draw).logs["gan_loss"].item()
    assert after < before - 1e-3
    assert scores()[0] > less


class Line(nn.Module):
    """The one-step student x = gain z + offset."""

    def __init__(self, gain: float, offset: float) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(gain, dtype=torch.float64))
        self.offset = nn.Parameter(torch.tensor(offset, dtype=torch.float64))
        self.process = Gaussian()

    def forward(self, z: Tensor, t: Tensor) -> Tensor:
        return self.gain * z + self.offset


class Denoiser(nn.Module):
    """E[x | z] for x ~ N(mean, std^2)."""

    def __init__(self, mean: float, std: float) -> None:
        super().__init__()
        self.mean, self.std, self.process = mean, std, Gaussian()

    def forward(self, z: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = (
            f(t)[:, None] for f in (self.process.schedule.alpha, self.process.schedule.sigma)
        )
        gain = alpha * self.std**2 / (alpha**2 * self.std**2 + sigma**2)
        return self.mean + gain * (z - alpha * self.mean)


@pytest.mark.parametrize(("gain", "offset"), [(0.3, -1.0), (3.0, 0.7), (-1.0, 2.0)])
def test_with_an_exact_auxiliary_descent_ends_at_the_data_distribution(
    gain: float, offset: float
) -> None:
    """The student e -> gain e + offset must become N(0.7, 1.6^2), gain of either sign."""
    student, objective = Line(gain, offset), DMD2(target_steps=1)
    descent = torch.optim.SGD(student.parameters(), lr=0.1)
    data = torch.zeros(256, 1, dtype=torch.float64)
    for step in range(150):
        fake = Denoiser(student.offset.item(), abs(student.gain.item()))
        trio: Any = Networks(Denoiser(MEAN, STD), student, fake)  # type: ignore[arg-type]
        descent.zero_grad()
        objective.student_loss(trio, data, draw_of(256, step=step)).mean.backward()
        descent.step()
    # the gradient vanishes there row by row, so that no noise is left
    assert student.offset.item() == pytest.approx(MEAN, abs=1e-3)
    assert student.gain.item() == pytest.approx(STD if gain > 0 else -STD, abs=1e-3)


def test_the_auxiliary_network_is_a_copy_of_the_teacher_with_a_new_head_for_a_gan() -> None:
    teacher = curved(1)
    z, t = torch.randn(5, 2).double(), torch.rand(5).double()
    for gan in (False, True):
        fake: Any = DMD2(gan=gan).make_auxiliary(teacher, curved(2))
        assert torch.equal(fake(z, t), teacher(z, t))
        assert not {id(p) for p in fake.parameters()} & {id(p) for p in teacher.parameters()}
        assert isinstance(fake, Critic) == gan
        if gan:
            assert fake.realness(z, t).shape == (5,)
            assert fake.process is fake.denoiser.process


def test_a_micro_batch_of_one_row_is_enough() -> None:
    trio, (data, draw) = trio_of(gan=True), plain(5)
    objective = DMD2(gan=True)
    for loss in (objective.student_loss, objective.auxiliary_loss):
        whole = loss(trio, data, draw)
        parts = [
            loss(trio, data[a:b], replace(draw, sample=draw.sample[a:b])).total
            for a, b in ((0, 1), (1, 5))
        ]
        torch.testing.assert_close(sum(parts), whole.total, rtol=1e-10, atol=0)  # fp64


class Points(Dataset[dict[str, Tensor]]):
    """Ten points of a plane."""

    def __len__(self) -> int:
        return 10

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        return {"data": torch.full((2,), number / 5 - 1), "index": torch.tensor(number)}


@pytest.mark.filterwarnings("ignore:.*does not have many workers.*")
@pytest.mark.parametrize(
    "objective", [DMD2(gan=True), DMD2(), MomentMatching()], ids=["gan", "no gan", "moments"]
)
def test_the_distillation_module_runs_methods_for_continuous_data(
    tmp_path: Path, objective: DistillationObjective
) -> None:
    """Two time-scales, micro batches of three rows and one, validation on a last batch of two."""
    teacher = ContinuousDenoiser(2, hidden=8, blocks=1)
    before = copy_of(teacher)
    settings = {"max_student_updates": 2, "fake_per_student": 3, "lr": 1e-2, "warmup": 1}
    module = DistillationModule.from_networks(teacher, objective, micro_batch_size=3, **settings)
    rows = DataLoader(Points(), batch_size=4)
    runner = trainer(tmp_path)
    runner.fit(module, rows, rows)
    assert (module.student_updates, module.fake_updates) == (2, 6)
    assert isinstance(module.auxiliary, Critic) == getattr(objective, "gan", False)
    runner.validate(module, rows, verbose=False)
    assert bool(torch.isfinite(runner.callback_metrics["val/student_loss"]))
    fake = getattr(module.auxiliary, "denoiser", module.auxiliary)
    for network in (module.student, module.ema.module, fake):
        assert "answer.weight" in differs(copy_of(network), before)
    assert differs(copy_of(teacher), before) == []


@pytest.mark.filterwarnings("ignore:.*does not have many workers.*")
@pytest.mark.filterwarnings("ignore:.*have no `val_dataloader`.*")
@pytest.mark.parametrize(
    ("objective", "given", "expected"),
    [(DMD2(), None, 5), (DMD2(), 2, 2), (MomentMatching(), None, 1)],
    ids=["its own", "given", "others"],
)
def test_the_auxiliary_network_makes_five_updates_for_each_of_the_students(
    tmp_path: Path, objective: DistillationObjective, given: int | None, expected: int
) -> None:
    """The published ratio of ImageNet and SDXL, unless another is asked for (methods H.6)."""
    teacher = ContinuousDenoiser(2, hidden=8, blocks=1)
    module = DistillationModule.from_networks(
        teacher, objective, max_student_updates=2, fake_per_student=given, warmup=1
    )
    trainer(tmp_path).fit(module, DataLoader(Points(), batch_size=4))
    assert (module.student_updates, module.fake_updates) == (2, 2 * expected)


def test_what_cannot_be_is_refused_with_a_sentence() -> None:
    for settings, message in (
        ({"target_steps": 0}, "target_steps is 0; it must be at least 1"),
        ({"gan_weight": 1e-3}, "gan_weight is 0.001 but gan is off; set gan, or leave gan_weight"),
        ({"critic_weight": 1e-3}, "critic_weight is 0.001 but gan is off"),
        ({"gan": True, "critic_weight": 0.0}, "critic_weight is 0.0; it must be above 0"),
        ({"gan": True, "gan_weight": float("nan")}, "gan_weight is nan; it must be above 0"),
    ):
        with pytest.raises(UserError, match=message):
            DMD2(**settings)  # type: ignore[arg-type]
    line, other = Line(1.0, 0.0), Line(1.0, 0.0)
    other.process = Gaussian(LinearLogSNR())
    with pytest.raises(UserError, match="student's schedule is LinearLogSNR"):
        DMD2().check(line, other)
    DMD2().check(line, copy.deepcopy(line))
    with pytest.raises(UserError, match="gan is on, but the teacher is a Line"):
        DMD2(gan=True).check(line, line)
    DMD2(gan=True).check(curved(1), curved(2))
