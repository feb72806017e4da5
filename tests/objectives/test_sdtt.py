"""Self-distillation through time on tables: times, targets by enumeration, losses, rounds."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from idlm.errors import UserError
from idlm.models import DiffusionConfig, DiffusionLM
from idlm.objectives.base import Draw, Networks
from idlm.objectives.divergences import divergence
from idlm.objectives.duo_dcd import DuoDCD
from idlm.objectives.rounds import SelfDistillation
from idlm.objectives.sdtt import SDTT
from idlm.processes import Uniform
from idlm.training import DistillationModule
from idlm.training.loop import average_weights
from tests.training.helpers import QUIET, copy_of, differs, trainer

pytestmark = [
    *QUIET,
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*have no `val_dataloader`.*"),
]

MakeTable = Callable[..., Any]
LOSSES = ("kl-bwd", "kl-fwd", "mse", "tvd")


def draw_of(n: int, *, seed: int = 0, step: int = 0) -> Draw:
    return Draw(torch.arange(n), n, seed, step)


def spied(model: Any) -> list[Tensor]:
    """The states that the model sees from now on."""
    seen: list[Tensor] = []
    features = model.features

    def spy(states: Tensor, *args: Any) -> Tensor:
        seen.append(states)
        return features(states, *args)

    model.features = spy
    return seen


def all_masked(n: int, length: int, vocab: int) -> Tensor:
    return torch.full((n, length), vocab - 1)


def at(value: float, n: int) -> Tensor:
    return torch.full((n,), value, dtype=torch.float64)


def clean(model: Any, states: Tensor) -> Tensor:
    """The table's clean-token probabilities at every position, ``[B, L, V - 1]``."""
    return torch.softmax(model.table(states)[..., :-1], -1)


@pytest.mark.parametrize(("number", "dt"), [(0, 0.0625), (1, 0.125), (2, 0.25), (3, 0.5)])
def test_the_teachers_two_steps_start_at_t_and_t_minus_dt(
    table: MakeTable, number: int, dt: float
) -> None:
    objective, teacher = SDTT(num_steps=16, min_steps=1), table(3, 2)
    objective.round = number
    dt *= 1 - 1e-5
    expected = [0.6, 0.6 - dt]
    times = torch.stack(objective.times(at(0.6, 4)))
    torch.testing.assert_close(times, torch.tensor(expected).double().unsqueeze(-1).expand(2, 4))
    objective.targets(teacher, all_masked(4, 2, 3), at(0.6, 4), draw_of(4))
    for sigma, time in zip(teacher.times, expected, strict=True):
        torch.testing.assert_close(sigma, -torch.log(1 - 0.999 * at(time, 4)))
    # the published weights of t and t - 2 dt are (1, 1 - t) and (0, 1 - t) (methods H.1)
    published = [0.6 + 0.4 * (0.6 - 2 * dt), 0.4 * (0.6 - 2 * dt)]
    assert max(abs(a - b) for a, b in zip(expected, published, strict=True)) > 0.1


def test_the_first_step_unmasks_with_the_posteriors_probability(table: MakeTable) -> None:
    """(alpha_s - alpha_t) / (1 - alpha_t) = dt / t; on the published grid it would be dt / 0.75."""
    n, length = 4000, 8
    objective, teacher = SDTT(num_steps=8, min_steps=1), table(3, length, context=False)
    seen = spied(teacher)
    objective.targets(teacher, all_masked(n, length, 3), at(0.5, n), draw_of(n))
    first, second = seen
    assert bool((first == 2).all())
    share = float((second != 2).double().mean())
    dt = 0.125 * (1 - 1e-5)
    chance = ((1 - 0.999 * (0.5 - dt)) - (1 - 0.999 * 0.5)) / (0.999 * 0.5)
    bound = 4 * math.sqrt(chance * (1 - chance) / (n * length))  # four standard deviations
    assert abs(share - chance) < bound
    assert abs(share - dt / 0.75) > 5 * bound


def test_a_step_that_reaches_the_end_of_time_unmasks_what_is_left(table: MakeTable) -> None:
    objective, teacher = SDTT(num_steps=2, min_steps=1), table(3, 4)
    seen = spied(teacher)
    target = objective.targets(teacher, all_masked(500, 4, 3), at(0.25, 500), draw_of(500))
    # 1e-5 / 0.25 of the positions may stay masked
    assert int((seen[1] == 2).sum()) <= 2
    assert bool(target.isfinite().all())
    assert bool(torch.isfinite(teacher.times[1]).all())


def test_visible_tokens_stay_and_shown_ones_are_draws_from_the_teacher(table: MakeTable) -> None:
    n, probs = 6000, (0.5, 0.3, 0.15, 0.05)
    objective, teacher = SDTT(num_steps=2, min_steps=1), table(probs=probs, length=4)
    seen = spied(teacher)
    z = all_masked(n, 4, 5)
    z[:, 1] = torch.arange(n) % 4
    objective.targets(teacher, z, at(0.5, n), draw_of(n))
    assert torch.equal(seen[1][:, 1], z[:, 1])
    shown = seen[1][z == 4]
    shown = shown[shown != 4]
    expected = torch.tensor(probs, dtype=torch.float64) * shown.numel()
    counts = torch.bincount(shown, minlength=4).double()
    assert float(((counts - expected) ** 2 / expected).sum()) < 16.3  # 3 degrees, level 1e-3
    assert torch.equal(z, torch.where(z == 4, 4, z))  # the caller's tensor is not written to


def test_the_targets_are_those_of_the_enumeration(table: MakeTable) -> None:
    """V = 3, L = 2, both masked: all patterns of the first step and all tokens it may show."""
    n, t = 40_000, 0.6
    objective, teacher = SDTT(num_steps=4, min_steps=1), table(3, 2, seed=5)
    z = all_masked(n, 2, 3)
    dt = 0.25 * (1 - 1e-5)
    show = dt / t
    start = clean(teacher, z[:1]).detach()[0]
    expected = torch.zeros(2, 2, dtype=torch.float64)  # of log-probabilities: what KL averages
    square = torch.zeros_like(expected)
    for shown in product((False, True), repeat=2):
        for tokens in product(range(2), repeat=2):
            chance = 1.0
            state = z[:1].clone()
            for position in range(2):
                chance *= show if shown[position] else 1 - show
                # a token that is not shown is summed out
                chance *= float(start[position, tokens[position]]) if shown[position] else 0.5
                if shown[position]:
                    state[0, position] = tokens[position]
            later = clean(teacher, state).detach()[0]
            rows = torch.where(torch.tensor(shown).unsqueeze(-1), start, later).log()
            expected += chance * rows
            square += chance * rows.square()
    target = objective.targets(teacher, z, at(t, n), draw_of(n))
    rows = teacher.process.clean_log_probs(teacher.head(target)).detach()[..., :-1]
    sd = (square - expected.square()).sqrt() / math.sqrt(n)
    assert bool(((rows.mean(0) - expected).abs() < 4 * sd).all())  # four standard deviations
    assert float((expected - start.log()).abs().max()) > 20 * float(sd.max())


@pytest.mark.parametrize("loss", LOSSES)
def test_the_loss_is_the_plain_one_in_value_and_gradient(table: MakeTable, loss: Any) -> None:
    """On whole rows of probabilities without the mask; mse and tvd, too, compare probabilities."""
    teacher, student, again = (table(3, 3, seed=seed) for seed in (1, 2, 2))
    tokens, draw = torch.randint(0, 2, (40, 3)), draw_of(40)
    objective = SDTT(num_steps=4, min_steps=1, loss=loss)
    seen = spied(student)
    result = objective.student_loss(Networks(teacher, student), tokens, draw)
    result.total.backward()
    (z,) = seen
    masked = z == 2
    assert 20 < int(masked.sum()) < 100
    (sigma,) = student.times
    t = -torch.expm1(-sigma) / 0.999
    q = torch.softmax(teacher.head(objective.targets(teacher, z, t, draw))[..., :-1], -1).detach()
    p = clean(again, z)
    plain = {
        "kl-bwd": lambda: (p * (p / q).log()).sum(-1),
        "kl-fwd": lambda: (q * (q / p).log()).sum(-1),
        "mse": lambda: ((p - q) ** 2).sum(-1),
        "tvd": lambda: (p - q).abs().sum(-1) / 2,
    }[loss]()
    expected = plain[masked].sum()
    expected.backward()
    torch.testing.assert_close(result.total, expected, rtol=1e-10, atol=0)  # fp64
    torch.testing.assert_close(student.logits.grad, again.logits.grad, rtol=1e-9, atol=1e-12)
    p, plain = p.detach(), plain.detach()
    assert (result.tokens, result.asked) == (120, int(masked.sum()))
    assert float(result.logs["masked_loss"]) == pytest.approx(float(plain[masked].mean()))
    entropy = -(p * p.log()).sum(-1)[masked].mean()
    assert float(result.logs["student_entropy"]) == pytest.approx(float(entropy))
    assert teacher.logits.grad is None


@pytest.mark.parametrize("loss", LOSSES)
def test_a_teacher_that_is_its_own_two_steps_is_the_students_target(
    table: MakeTable, loss: Any
) -> None:
    """Without context both steps predict alike, so the teacher has nothing to learn from itself."""
    teacher = table(4, 3, context=False)
    student, tokens = copy.deepcopy(teacher), torch.randint(0, 3, (50, 3))
    objective = SDTT(num_steps=4, min_steps=1, loss=loss)
    result = objective.student_loss(Networks(teacher, student), tokens, draw_of(50))
    result.total.backward()
    assert result.total.item() == pytest.approx(0, abs=1e-12)
    assert float(student.logits.grad.abs().max()) < 1e-12
    other = table(4, 3, seed=9, context=False)
    result = objective.student_loss(Networks(teacher, other), tokens, draw_of(50))
    assert result.total.item() > 1


def test_only_marginals_are_taught_and_by_which_mean(table: MakeTable) -> None:
    """Two equal tokens, P(0) = 0.7, and a teacher that knows it (up to 1e-3).

    From two masks, whatever the student is, its one-step law is a product. The forward KL is least
    at the mean of the targets: for this teacher, consistent with itself, the prediction it has
    already. The reverse KL is least at their normalised geometric mean, which is sharper.
    """
    n, t, wrong = 50_000, 0.5, 1e-3
    teacher = table(3, 2, seed=0)
    with torch.no_grad():
        p0 = torch.tensor([0.7, 0.3]).double()
        # P(x_1 | x_2): the mixture of "equal" and "independent" that has marginals p0
        given = (1 - wrong) * torch.eye(2).double() + wrong * p0
        for a, b in product(range(3), repeat=2):
            row = int(teacher.rows(torch.tensor([[a, b]]))[0])
            teacher.logits[row, 0, :2] = (p0 if b == 2 else given[b]).log()
            teacher.logits[row, 1, :2] = (p0 if a == 2 else given[a]).log()
    show = 0.25 * (1 - 1e-5) / t
    # a position's targets: its marginal, unless the other one was shown first
    cases = [(1 - show * (1 - show), p0)]
    cases += [(show * (1 - show) * float(p0[v]), given[v]) for v in (0, 1)]
    mean = sum(chance * p for chance, p in cases)
    torch.testing.assert_close(mean, p0, rtol=1e-12, atol=0)
    geometric = torch.softmax(sum(chance * p.log() for chance, p in cases), -1)
    assert float(geometric[0]) > 0.75

    z = all_masked(n, 2, 3)
    for loss, best, worse in (("kl-fwd", mean, geometric), ("kl-bwd", geometric, mean)):
        objective = SDTT(num_steps=4, min_steps=1, loss=loss)
        target = objective.targets(teacher, z, at(t, n), draw_of(n))
        slopes = []
        for p in (best, worse):
            student = table(probs=p, length=2)
            log_p = student.process.clean_log_probs(student.table(z))
            log_q = student.process.clean_log_probs(teacher.head(target)).detach()
            divergence(loss, log_p, log_q).mean().backward()
            slopes.append(float(student.logits.grad.abs().max()))
        # targets of log-probabilities up to 7 apart: their mean is known to about 2e-2
        assert slopes[0] < 5e-3 < 2e-2 < slopes[1], loss

    data = torch.diag(p0)
    for p in (mean, geometric):
        distance = 0.5 * float((torch.outer(p, p) - data).abs().sum())
        # no product is closer than this to two equal tokens, and one step is a product
        assert distance > 0.29


def test_gradient_reaches_the_student_alone_and_only_where_it_was_asked(table: MakeTable) -> None:
    teacher, student = table(3, 2, seed=1), table(3, 2, seed=2)
    seen = spied(student)
    tokens = torch.randint(0, 2, (30, 2))
    SDTT(num_steps=4, min_steps=1).student_loss(
        Networks(teacher, student), tokens, draw_of(30)
    ).total.backward()
    (z,) = seen
    allowed = torch.zeros(9, 2, dtype=torch.bool)
    for row, state in zip(student.rows(z), z, strict=True):
        allowed[int(row)] |= state == 2
    moved = student.logits.grad.abs().sum(-1) > 0
    assert bool(moved.any())
    assert not bool((moved & ~allowed).any())
    assert not bool(student.logits.grad[..., -1].any())  # the mask's logit gets none
    assert teacher.logits.grad is None


def test_a_batch_in_which_nothing_is_masked_costs_nothing(table: MakeTable) -> None:
    teacher, student = table(3, 1, seed=1), table(3, 1, seed=2)
    for sample in range(1000):
        draw = Draw(torch.tensor([sample]), 1, 0, 0)
        seen = spied(copy.deepcopy(student))
        result = SDTT().student_loss(Networks(teacher, student), torch.zeros(1, 1).long(), draw)
        if result.asked == 0:
            break
    result.total.backward()
    assert (result.asked, result.tokens, result.total.item()) == (0, 1, 0.0)
    assert bool(result.logs["student_entropy"].isnan())
    assert not bool(student.logits.grad.any())
    assert seen == []


def test_micro_batches_add_up_to_the_whole_batch(table: MakeTable) -> None:
    tokens, gradients = torch.randint(0, 2, (8, 3)), []
    for cuts in ([(0, 8)], [(0, 3), (3, 8)]):
        networks = Networks(table(3, 3, seed=1), table(3, 3, seed=2))
        for a, b in cuts:
            draw = Draw(torch.arange(a, b), 8, 0, 0)
            SDTT(num_steps=4, min_steps=1).student_loss(
                networks, tokens[a:b], draw
            ).total.backward()
        gradients.append(networks.student.logits.grad)
    torch.testing.assert_close(*gradients)  # fp64


@pytest.mark.parametrize(
    ("objective", "last", "steps"),
    [
        (SDTT(), 6, [1024, 512, 256, 128, 64, 32, 16]),
        (SDTT(num_steps=8, min_steps=1), 2, [8, 4, 2]),
        (SDTT(num_steps=100, min_steps=8), 2, [100, 50, 25]),
        (DuoDCD(), 9, [512, 256, 128, 64, 32, 16, 8, 4, 2, 1]),
        (DuoDCD(num_steps=6), 2, [6, 3, 1.5]),
        (DuoDCD(num_steps=1), 0, [1]),
    ],
    ids=["published", "to 1", "no power of two", "dcd", "dcd from 6", "dcd at once"],
)
def test_the_step_doubles_in_every_round_up_to_the_limit(
    objective: Any, last: int, steps: list[float]
) -> None:
    assert objective.last_round == last
    for number, teacher_steps in enumerate(steps):
        objective.round = number
        assert objective.dt == pytest.approx(1 / teacher_steps, rel=1e-4)
    # the next one would be beyond it: fewer than min_steps, or more than the whole range
    limit = 0.5 / objective.min_steps if isinstance(objective, SDTT) else 1
    assert objective.dt <= limit < 2 * objective.dt


class Weights(torch.nn.Module):
    """Something with one weight."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = torch.nn.Parameter(torch.tensor(value))


@pytest.mark.parametrize("next_teacher", ["average", "student"])
@pytest.mark.parametrize("kind", [SDTT, DuoDCD])
def test_at_the_end_of_a_round_the_student_is_the_teacher_and_the_average_starts_anew(
    kind: Any, next_teacher: Any
) -> None:
    objective = kind(round_updates=2, next_teacher=next_teacher)
    teacher: Any = Weights(0.0)
    student: Any = Weights(0.0)
    ema = average_weights(student, 0.9)
    for update, value in ((1, 1.0), (2, 2.0), (3, 3.0), (4, 7.0)):
        with torch.no_grad():
            student.value.fill_(value)
        ema.update_parameters(student)
        average = ema.module.value.item()
        objective.after_student_update(Networks(teacher, student), ema, update)
        # a run that ends with the round exports the average of the round
        assert ema.module.value.item() == average
        if update == 1:
            assert (objective.round, teacher.value.item()) == (0, 0.0)
        if update == 2:
            assert average != value
            held = average if next_teacher == "average" else value
            assert (objective.round, teacher.value.item()) == (1, held)
        if update == 3:
            # the first average of the new round is the student, without a trace of the old one
            assert average == value
            assert teacher.value.item() == held
        if update == 4:
            assert average == pytest.approx(3.0 + 9 / 11 * (7.0 - 3.0))
    assert objective.round == 2


def test_the_last_round_has_no_end() -> None:
    objective = DuoDCD(num_steps=2, round_updates=1)
    teacher: Any = Weights(0.0)
    student: Any = Weights(1.0)
    ema = average_weights(student, 0.9)
    for update in range(1, 5):
        with torch.no_grad():
            student.value.fill_(float(update))
        ema.update_parameters(student)
        objective.after_student_update(Networks(teacher, student), ema, update)
        assert (objective.round, objective.dt, teacher.value.item()) == (1, 1.0, 1.0)
    assert int(ema.n_averaged) == 3


def test_an_objective_that_was_through_another_run_is_refused() -> None:
    objective = SDTT(round_updates=1)
    model: Any = Weights(0.0)
    networks, ema = Networks(model, model), average_weights(model, 0.9)
    objective.after_student_update(networks, ema, 1)
    with pytest.raises(UserError, match="this SDTT is in round 1 after update 1, so it was used"):
        objective.after_student_update(networks, ema, 1)


SIZES: dict[str, Any] = {
    "vocab_size": 5,
    "model_length": 4,
    "hidden_dim": 8,
    "cond_dim": 4,
    "n_blocks": 1,
    "n_heads": 2,
    "dropout": 0.0,
}


def network(**changes: Any) -> DiffusionLM:
    torch.manual_seed(0)
    model = DiffusionLM(DiffusionConfig(**{**SIZES, **changes}))
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.5)
    return model


def batches(*, after: int = 0) -> DataLoader[dict[str, Tensor]]:
    """Batches of four, without the first ones: a loader of tensors does not know its position."""
    generator = torch.Generator().manual_seed(1)
    rows = torch.randint(0, 4, (64, 4), generator=generator)
    data: Any = [{"input_ids": row, "index": torch.tensor(i)} for i, row in enumerate(rows)]
    return DataLoader(data[4 * after :], batch_size=4)


def distil(objective: SelfDistillation, updates: int, **settings: Any) -> DistillationModule:
    uniform = "uniform" in objective.processes
    teacher = network(process="uniform", time_conditioning=True) if uniform else network()
    given = {"lr": 1e-2, "warmup": 1, "ema_decay": 0.9, **settings}
    return DistillationModule.from_networks(
        teacher, objective, max_student_updates=updates, **given
    )


@pytest.mark.parametrize(
    "make",
    [
        lambda: SDTT(num_steps=16, min_steps=1, round_updates=2),
        lambda: DuoDCD(num_steps=8, round_updates=2),
    ],
    ids=["sdtt", "dcd"],
)
@pytest.mark.parametrize("stop", [3, 4])
def test_a_resumed_run_continues_in_its_round(make: Any, stop: int, tmp_path: Path) -> None:
    """Three updates are in the middle of a round, four at its end; rounds of two."""
    whole = distil(make(), 7)
    run = trainer(tmp_path, limit_val_batches=2)
    run.fit(whole, batches(), batches())
    first = distil(make(), stop)
    run = trainer(tmp_path, limit_val_batches=0)
    run.fit(first, batches())
    run.save_checkpoint(tmp_path / "half.ckpt")
    second = distil(make(), 7)
    run = trainer(tmp_path, limit_val_batches=0)
    run.fit(second, batches(after=stop), ckpt_path=tmp_path / "half.ckpt")
    assert whole.objective.round == second.objective.round == 3
    for name in ("teacher", "student", "ema"):
        assert differs(copy_of(getattr(whole, name)), copy_of(getattr(second, name))) == [], name
    assert differs(copy_of(whole.teacher), copy_of(first.teacher)) != []
    # validation measures the round that the run is in: another step, another loss
    validate = trainer(tmp_path)
    losses = []
    for number in (3, 0, 3):
        whole.objective.round = number
        [measured] = validate.validate(whole, batches(), verbose=False)
        losses.append(measured["val/student_loss"])
    assert losses[0] == losses[2] != losses[1]


def test_a_run_that_ends_with_a_round_exports_its_average(tmp_path: Path) -> None:
    module = distil(SDTT(num_steps=16, min_steps=1, round_updates=3), 3)
    trainer(tmp_path).fit(module, batches())
    assert module.objective.round == 1
    assert differs(copy_of(module.ema.module), copy_of(module.student)) != []
    assert differs(copy_of(module.ema.module), copy_of(module.teacher)) == []


@pytest.mark.parametrize("kind", [SDTT, DuoDCD])
def test_networks_whose_weights_cannot_change_places_are_refused(kind: Any) -> None:
    teacher, objective = network(), kind()
    objective.check(teacher, network(dropout=0.1))
    for student, sentence in (
        (teacher.with_latent(latent_global=2, latent_position=0), "the student has a latent, but"),
        (network(n_blocks=2), "student and teacher differ in n_blocks: 2 against 1, but with"),
        (network(schedule="cosine"), "differ in schedule: cosine against log-linear"),
        (network(time_conditioning=True), "differ in time_conditioning: True against False"),
    ):
        with pytest.raises(UserError, match=sentence):
            objective.check(teacher, student)


def test_a_latent_that_is_asked_for_is_refused_before_training() -> None:
    with pytest.raises(UserError, match="the student has a latent, but with SDTT its weights"):
        distil(SDTT(), 1, latent_global=2).configure_model()


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"loss": "kl"}, "loss is 'kl'; choose one of kl-bwd, kl-fwd, mse, tvd"),
        ({"num_steps": 8, "min_steps": 8}, "num_steps is 8 and min_steps is 8; choose min_steps"),
        ({"min_steps": 0}, "min_steps is 0; choose min_steps at least 1"),
        ({"round_updates": 0}, "round_updates is 0; it must be at least 1"),
        ({"next_teacher": "ema"}, "next_teacher is 'ema'; choose one of average, student"),
    ],
)
def test_settings_outside_the_method_are_refused(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        SDTT(**settings)


def test_the_uniform_process_is_refused(uniform_table: MakeTable) -> None:
    networks = Networks(uniform_table(3, 2, seed=1), uniform_table(3, 2, seed=2))
    assert isinstance(networks.student.process, Uniform)
    with pytest.raises(UserError, match="SDTT is defined for the absorbing process, but the"):
        SDTT().student_loss(networks, torch.zeros(4, 2).long(), draw_of(4))
