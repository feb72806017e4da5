"""Fake models that are told of the student's input, and inputs that are pure noise more often."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from idlm.errors import UserError
from idlm.models import DiffusionConfig, DiffusionLM, Latent
from idlm.objectives import DMMD, IDLM, AlternatingDistillation, Draw, Networks
from idlm.objectives.alternating_masked import simulate
from idlm.random import Stream
from tests.objectives.conftest import Table

MakeTable = Callable[..., Any]
TIMES = (0.5, 1.0)
N = 20_000
P_STAR = (0.6, 0.4)


class Timed(Table):
    """A row of logits for each of ``TIMES``, at every state of one token; V = 3 with the mask.

    A student reads the time of its own state, a fake model (``told``) the first of the cosines
    that it is told.
    """

    def __init__(self, probs: Tensor, *, told: bool) -> None:
        mask = torch.full((len(TIMES), 1), 2.0, dtype=torch.float64)
        super().__init__(torch.cat([probs.log(), mask], 1).unsqueeze(1))
        self.has_latent = self.told = told

    def features(
        self, states: Tensor, timesteps: Tensor | None = None, latent: Latent | None = None
    ) -> Tensor:
        if self.told:
            assert latent is not None
            assert latent.vector is not None
            time = torch.acos(latent.vector[:, 0]) / torch.pi
        else:
            assert timesteps is not None
            time = (1 - torch.exp(-timesteps)) / 0.999
        row = (time.unsqueeze(-1) - torch.tensor(TIMES)).abs().argmin(-1, keepdim=True)
        return torch.stack([row, torch.zeros_like(row)], -1)


class Batch(NamedTuple):
    """Rows of one token at the two input times in turn, and how they weigh in the losses.

    Attributes:
        soft: for each time, the weight of the states whose token the student wrote, ``[2]``.
        hard: that of the states whose token is the data's, ``[2, 2]``.
    """

    objective: AlternatingDistillation
    tokens: Tensor
    draw: Draw
    soft: Tensor
    hard: Tensor

    def laws(self, g: Tensor) -> Tensor:
        """Law of the tokens that are noised again, ``[2, 2]``, for a student of rows ``g``."""
        return (self.soft.unsqueeze(-1) * g + self.hard) / self.totals.unsqueeze(-1)

    @property
    def totals(self) -> Tensor:
        return self.soft + self.hard.sum(1)


def at_two_times(monkeypatch: pytest.MonkeyPatch, fake_sees: Any) -> Batch:
    objective = IDLM(fake_sees=fake_sees)
    draw = Draw(torch.arange(N), N, 3, 4)
    t_in = torch.tensor(TIMES).repeat(N // 2)
    t_out = draw.times(Stream.TIME_2, permuted=True)
    monkeypatch.setattr(objective, "times", lambda _: (t_in, t_out))
    tokens = (torch.rand(N, 1, generator=torch.Generator().manual_seed(5)) < 0.3).long()
    # what is masked, and when, does not depend on what the student says
    state = simulate(objective, Timed(torch.full((2, 2), 0.5), told=False), tokens, draw)  # type: ignore[arg-type]
    weight = ((1.0 / t_out) * state.scored[:, 0]).double()
    asked = state.asked[:, 0]

    def total(rows: Tensor) -> Tensor:
        return torch.stack([weight[rows & (t_in == t)].sum() for t in TIMES])

    hard = torch.stack([total(~asked & (tokens[:, 0] == v)) for v in (0, 1)], 1)
    return Batch(objective, tokens, draw, total(asked), hard)


def kl(p: Tensor, q: Tensor) -> Tensor:
    return (p * (p / q).log()).sum(-1)


def test_a_fake_model_that_is_told_learns_the_students_law_at_each_input_time(
    table: MakeTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The student's loss is then the mixture of the divergences at the two times."""
    batch = at_two_times(monkeypatch, "input_time")
    g, p_star = torch.tensor([[0.1, 0.9], [0.8, 0.2]]).double(), torch.tensor(P_STAR).double()
    laws, totals = batch.laws(g), batch.totals
    teacher, fake = table(probs=P_STAR), Timed(laws, told=True)
    teacher.has_latent = False
    trio = Networks(teacher, Timed(g, told=False), fake)  # type: ignore[arg-type]

    auxiliary = batch.objective.auxiliary_loss(trio, batch.tokens, batch.draw).total
    auxiliary.backward()
    # the closed form is the optimum: sums of fp32 weights cancel to seven digits
    assert float(fake.logits.grad.abs().max()) < 1e-5 * float(totals.sum())  # type: ignore[union-attr]
    entropy = -(laws * laws.log()).sum(-1)
    assert float(auxiliary.detach()) == pytest.approx(float((totals * entropy).sum()), rel=1e-5)
    loss = batch.objective.student_loss(trio, batch.tokens, batch.draw).total
    expected = float((totals * kl(laws, p_star)).sum())
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-5)
    pooled = (totals.unsqueeze(-1) * laws).sum(0) / totals.sum()
    assert expected > 2 * float(totals.sum() * kl(pooled, p_star))  # convexity, and not by a hair


def test_errors_that_cancel_cost_nothing_unless_the_fake_model_is_told(
    table: MakeTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A student wrong at both input times whose tokens, pooled, have the teacher's law."""
    p_star = torch.tensor(P_STAR).double()
    batch = at_two_times(monkeypatch, "state")
    late = torch.tensor([0.75, 0.25]).double()
    rest = batch.totals.sum() * p_star - batch.hard.sum(0) - batch.soft[1] * late
    g = torch.stack([rest / batch.soft[0], late])
    assert float(g.min()) > 0.1
    teacher, student = table(probs=P_STAR), Timed(g, told=False)
    teacher.has_latent = False

    pooled = table(probs=P_STAR)
    trio = Networks(teacher, student, pooled)  # type: ignore[arg-type]
    batch.objective.auxiliary_loss(trio, batch.tokens, batch.draw).total.backward()
    # the teacher is this student's optimal fake model, to what fp32 weights leave
    assert float(pooled.logits.grad.abs().max()) < 1e-5 * float(batch.totals.sum())
    loss = batch.objective.student_loss(trio, batch.tokens, batch.draw).total
    loss.backward()
    assert float(loss.detach()) == 0.0
    assert student.logits.grad is not None
    assert not bool(student.logits.grad.any())

    batch = at_two_times(monkeypatch, "input_time")
    laws = batch.laws(g)
    trio = Networks(teacher, student, Timed(laws, told=True))  # type: ignore[arg-type]
    loss = batch.objective.student_loss(trio, batch.tokens, batch.draw).total
    loss.backward()
    expected = float((batch.totals * kl(laws, p_star)).sum())
    assert expected > 0.02 * float(batch.totals.sum())
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-5)
    early, late_ = student.logits.grad[:, 0, 0] / batch.totals  # of the first token's logit
    assert float(early) < -0.01  # too rare, so it is to grow
    assert float(late_) > 0.01


def real(process: str) -> DiffusionLM:
    """A small DiT of random weights that is not told the time of its state."""
    torch.manual_seed(0)
    model = DiffusionLM(
        DiffusionConfig(
            vocab_size=5,
            model_length=4,
            hidden_dim=8,
            cond_dim=4,
            n_blocks=2,
            n_heads=2,
            dropout=0.0,
            time_conditioning=False,
            process=process,
        )
    )
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.5)
    return model


@pytest.mark.parametrize("loss", ["auxiliary_loss", "student_loss"])
@pytest.mark.parametrize("process", ["absorbing", "uniform"])
def test_the_fake_model_alone_is_told_the_time_of_the_input(
    process: str, loss: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    objective = AlternatingDistillation(renoise="fresh", fake_sees="input_time", pure_noise=0.5)
    teacher = real(process)
    fake: Any = objective.make_auxiliary(teacher, teacher)
    heard: dict[str, Latent | None] = {}

    def spied(model: Any, name: str) -> Any:
        features = model.features

        def record(states: Tensor, sigma: Tensor, latent: Latent | None = None) -> Tensor:
            heard[name] = latent
            return features(states, sigma, latent)

        monkeypatch.setattr(model, "features", record)
        return model

    trio = Networks(spied(teacher, "teacher"), real(process), spied(fake, "fake"))
    draw = Draw(torch.arange(16), 16, 0, 0)
    getattr(objective, loss)(trio, torch.randint(0, 4, (16, 4)), draw)
    told = objective.told(fake, objective.times(draw)[0])
    assert heard["teacher"] is None
    assert heard["fake"] is not None
    assert told is not None
    assert torch.equal(heard["fake"].vector, told.vector)


@pytest.mark.parametrize("process", ["absorbing", "uniform"])
def test_the_fake_model_starts_as_the_teacher_and_learns_to_hear_the_time(process: str) -> None:
    objective = AlternatingDistillation(renoise="fresh", anchor=0.0, fake_sees="input_time")
    teacher = real(process)
    student = teacher.with_latent(latent_global=3, latent_position=0, latent_init=1.0)
    fake: Any = objective.make_auxiliary(teacher, student)
    trio = Networks(teacher, student, fake)
    tokens, draw = torch.randint(0, 4, (32, 4)), Draw(torch.arange(32), 32, 0, 0)

    def answers(t_in: float) -> Tensor:
        told = objective.told(fake, torch.full((32,), t_in))
        assert told is not None
        return fake.features(tokens, torch.zeros(32), told)

    plain = teacher.features(tokens, torch.zeros(32))
    assert objective.told(teacher, torch.ones(32)) is None
    for t_in in (0.1, 0.7, 1.0):
        assert torch.equal(answers(t_in), plain)
    assert objective.student_loss(trio, tokens, draw).total.item() == 0.0

    objective.auxiliary_loss(trio, tokens, draw).total.backward()
    latent = fake.backbone.latent
    for layer in (*latent.blocks, latent.output):
        assert float(layer.weight.grad.abs().max()) > 0
        with torch.no_grad():
            layer.weight -= 0.1 * layer.weight.grad / layer.weight.grad.norm()
    assert float((answers(0.1) - answers(1.0)).detach().abs().max()) > 1e-3
    assert objective.student_loss(trio, tokens, draw).total.item() != 0.0


def test_a_fake_model_that_sees_the_state_alone_is_told_nothing() -> None:
    objective, teacher = IDLM(), real("absorbing")
    fake: Any = objective.make_auxiliary(teacher, teacher)
    assert not fake.has_latent
    assert objective.told(fake, torch.ones(2)) is None


def test_what_a_fake_model_is_told_differs_between_any_two_times() -> None:
    objective, teacher = IDLM(fake_sees="input_time"), real("absorbing")
    fake: Any = objective.make_auxiliary(teacher, teacher)
    told = objective.told(fake, torch.linspace(0, 1, 101))
    assert told is not None
    assert told.vector is not None
    assert told.position is None
    assert float(torch.pdist(told.vector).min()) > 0.02
    assert float(told.vector.abs().max()) <= 1.0


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 0.9])
def test_a_share_of_the_inputs_is_pure_noise_and_the_others_are_uniform(share: float) -> None:
    n = 1000
    draw = Draw(torch.arange(n), n, 1, 2)
    t_in, t_out = IDLM(pure_noise=share).times(draw)
    pure = t_in == 1.0
    assert abs(int(pure.sum()) - share * n) <= 1  # times start at 0.001
    others = t_in[~pure].double().sort().values
    steps = (torch.arange(len(others)) + 0.5) / len(others)
    assert float((others - steps).abs().max()) < 2 / len(others) + 1e-3 / (1 - share)
    assert torch.equal(t_out, IDLM().times(draw)[1])
    correlation = float(torch.corrcoef(torch.stack([t_in, t_out]))[0, 1])
    assert abs(correlation) < 4 / n**0.5  # four standard deviations


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (
            {"fake_sees": "time"},
            "fake_sees is 'time'; choose one of state, input_time, input_masks",
        ),
        ({"pure_noise": 1.0}, r"pure_noise is 1.0; it is a share of the inputs, in \[0, 1\)"),
        ({"pure_noise": -0.1}, r"pure_noise is -0.1; it is a share of the inputs, in \[0, 1\)"),
        ({"pure_noise": float("nan")}, "pure_noise is nan; it is a share"),
        (
            {"pure_noise": 0.5, "time_draws": "tied"},
            "time_draws is 'tied', but pure_noise is 0.5, which stretches .* leave pure_noise at 0",
        ),
    ],
)
def test_settings_outside_the_method_are_refused(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        IDLM(**settings)


def test_the_posterior_takes_no_share_of_pure_noise() -> None:
    sentence = "pure_noise is 0.5, but renoise is 'posterior', half of whose inputs are pure noise"
    with pytest.raises(UserError, match=sentence):
        AlternatingDistillation(renoise="posterior", pure_noise=0.5)


# Two tokens of two values that like to be equal, and what is written about one given the other.
TOGETHER = torch.tensor([[0.3, 0.2], [0.2, 0.3]]).double()
MARGINAL, CONDITIONAL = TOGETHER.sum(0), TOGETHER / TOGETHER.sum(1, keepdim=True)
MASK = 2


def of_two(alone: Tensor, given: Tensor) -> Tensor:
    """Logits ``[9, 2, 3]``: ``alone`` at two masks, ``given`` one visible token.

    ``given``, ``[2, 2, 2]``: by masked position (first or second), visible token, written token.
    """
    law = torch.full((3, 3, 2, 3), 1.0 / 3.0, dtype=torch.float64)  # second state, first, position
    law[MASK, MASK, :, :2] = alone
    for seen in (0, 1):
        law[seen, MASK, 0, :2] = given[0, seen]
        law[MASK, seen, 1, :2] = given[1, seen]
    return law.log().flatten(0, 1)


class Hearing(Table):
    """A fake model with a table for inputs of one mask, and another for inputs of two."""

    has_latent = True

    def __init__(self, one: Tensor, two: Tensor) -> None:
        super().__init__(torch.cat([one, two]))

    def features(
        self, states: Tensor, timesteps: Tensor | None = None, latent: Latent | None = None
    ) -> Tensor:
        assert latent is not None
        assert latent.vector is not None
        share = torch.acos(latent.vector[:, 0].clamp(-1, 1)) / torch.pi
        row = (states * 3 ** torch.arange(2)).sum(-1) + 9 * (share > 0.75)
        position = torch.arange(2).expand(states.shape)
        return torch.stack([row.unsqueeze(-1).expand(states.shape), position], -1)


def test_in_one_step_a_pooled_fake_model_lets_answers_make_up_for_each_other() -> None:
    """Why few-step D-MMD drifts, and that a fake model that is told of the masks ends it.

    A student without a latent writes marginals in one step, so a token it shows says too little
    about the other. If it says too much where one token is given, the fake model's mean of both
    is the teacher, and nothing calls either of them wrong.
    """
    tokens = torch.multinomial(
        TOGETHER.flatten(), N, replacement=True, generator=torch.Generator().manual_seed(0)
    )
    tokens = torch.stack([tokens // 2, tokens % 2], 1)
    draw = Draw(torch.arange(N), N, 3, 4)
    settings: dict[str, Any] = {"anchor": 0.0, "target_steps": 1, "weighting": "flat"}
    pooling = AlternatingDistillation(**settings)
    right = CONDITIONAL.expand(2, 2, 2)
    teacher = Table(of_two(MARGINAL, right))
    teacher.has_latent = False  # type: ignore[assignment]

    # how often a position is scored beside each visible token, from inputs of one mask and of two
    state = simulate(pooling, teacher, tokens, draw)  # type: ignore[arg-type]
    both = state.asked.all(1)
    counts = torch.zeros(2, 2, 2).double()
    for kind, rows in enumerate((~both, both)):
        for masked in (0, 1):
            chosen = rows & state.scored[:, masked] & ~state.scored[:, 1 - masked]
            counts[kind, masked] = torch.bincount(state.z[chosen, 1 - masked], minlength=2)
    one, two = counts.unsqueeze(-1)
    too_much = ((one + two) * right - two * MARGINAL) / one
    assert float(too_much.min()) > 0.05
    assert float((too_much - right).abs().min()) > 0.05
    student = Table(of_two(MARGINAL, too_much))

    pooled = Table(of_two(MARGINAL, right))
    pooled.has_latent = False  # type: ignore[assignment]
    trio = Networks(teacher, student, pooled)  # type: ignore[arg-type]
    pooling.auxiliary_loss(trio, tokens, draw).total.backward()
    assert float(pooled.logits.grad.abs().max()) < 1e-9 * N  # type: ignore[union-attr]
    loss = pooling.student_loss(trio, tokens, draw).total
    loss.backward()
    assert float(loss.detach()) == 0.0
    assert not bool(student.logits.grad.any())  # type: ignore[union-attr]

    telling = AlternatingDistillation(**settings, fake_sees="input_masks")
    told = Hearing(of_two(MARGINAL, too_much), of_two(MARGINAL, MARGINAL.expand(2, 2, 2)))
    trio = Networks(teacher, student, told)  # type: ignore[arg-type]
    telling.auxiliary_loss(trio, tokens, draw).total.backward()
    assert float(told.logits.grad.abs().max()) < 1e-9 * N  # type: ignore[union-attr]
    loss = telling.student_loss(trio, tokens, draw).total
    loss.backward()
    far = one[..., 0] * kl(too_much, right) + two[..., 0] * kl(MARGINAL.expand(2, 2, 2), right)
    assert float(loss.detach()) == pytest.approx(float(far.sum()), rel=1e-6)
    assert float(loss.detach()) > 0.005 * N
    given = student.logits.grad[[MASK * 3, 1 + MASK * 3], 1]  # type: ignore[index]
    assert float(given[0, 0]) > 0  # the equal token is too likely there, so its logit is to fall
    assert float(given[1, 1]) > 0


@pytest.mark.parametrize("renoise", ["fresh", "posterior"])
def test_a_fake_model_is_told_the_share_of_masks_in_the_students_input(
    renoise: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    objective = AlternatingDistillation(renoise=renoise, fake_sees="input_masks")
    teacher, student = real("absorbing"), real("absorbing")
    fake: Any = objective.make_auxiliary(teacher, teacher)
    heard: list[Latent | None] = []
    inputs: list[Tensor] = []
    student_features, fake_features = student.features, fake.features

    def seen(states: Tensor, *rest: Any) -> Tensor:
        inputs.append(states)
        return student_features(states, *rest)

    def told(states: Tensor, sigma: Tensor, latent: Latent | None = None) -> Tensor:
        heard.append(latent)
        return fake_features(states, sigma, latent)

    monkeypatch.setattr(student, "features", seen)
    monkeypatch.setattr(fake, "features", told)
    draw = Draw(torch.arange(16), 16, 0, 0)
    tokens = torch.randint(0, 4, (16, 4))
    for loss in (objective.auxiliary_loss, objective.student_loss):
        loss(Networks(teacher, student, fake), tokens, draw)
        share = (inputs[-1] == 4).float().mean(1)
        assert len(set(share.tolist())) > 2
        latent = heard[-1]
        assert latent is not None
        assert latent.vector is not None
        torch.testing.assert_close(latent.vector[:, 0], torch.cos(torch.pi * share))


def test_a_process_without_masks_has_no_share_of_them() -> None:
    objective = DMMD(fake_sees="input_masks")
    teacher = real("uniform")
    fake: Any = objective.make_auxiliary(teacher, teacher)
    trio = Networks(teacher, real("uniform"), fake)
    with pytest.raises(UserError, match="fake_sees is 'input_masks', but the uniform process has"):
        objective.student_loss(trio, torch.zeros(2, 4).long(), Draw(torch.arange(2), 2, 0, 0))
