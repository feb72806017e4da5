"""Inverse distillation and discrete moment matching against closed forms on tiny tables."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise, product
from typing import Any

import pytest
import torch
from torch import Tensor

from idlm.errors import UserError
from idlm.models import DiffusionConfig, DiffusionLM
from idlm.objectives import DMMD, IDLM, AlternatingDistillation, Draw, Networks
from idlm.objectives.alternating_masked import simulate
from idlm.random import Stream

MakeTable = Callable[..., Any]
RENOISE = ("fresh", "posterior")


def renoised(renoise: Any, steps: int, **settings: Any) -> AlternatingDistillation:
    """Either setting; only the posterior aims at a number of steps."""
    aim = {"target_steps": steps} if renoise == "posterior" else {}
    return AlternatingDistillation(renoise=renoise, **aim, **settings)


every_renoise = pytest.mark.parametrize("renoise", RENOISE)


def draw_of(n: int, *, seed: int = 0, step: int = 0) -> Draw:
    return Draw(torch.arange(n), n, seed, step)


def networks(table: MakeTable, vocab: int = 3, length: int = 3) -> Networks:
    return Networks(*(table(vocab, length, seed=seed) for seed in (1, 2, 3)))


def p_of(model: Any, row: int = 0) -> Tensor:
    """The table's clean-token probabilities at position 0."""
    return torch.softmax(model.logits.detach()[row, 0, :-1], -1)


def divergence(p: Tensor, q: Tensor) -> float:
    return float((p * (p / q).log()).sum())


def full_g(objective: AlternatingDistillation, student: Any, tokens: Tensor, draw: Draw) -> Any:
    """The simulation, the student's input, and G as a full table with its one-hot rows."""
    state = simulate(objective, student, tokens, draw)
    z_in = torch.where(state.asked, student.process.mask_id, tokens)
    return state, z_in, student.process.log_probs(student.table(z_in), z_in).exp()


@every_renoise
@pytest.mark.parametrize("weighting", ["nelbo", "flat"])
def test_teacher_equal_to_fake_gives_no_loss_and_no_gradient(
    table: MakeTable, renoise: Any, weighting: Any
) -> None:
    teacher, student, _ = networks(table)
    objective = AlternatingDistillation(renoise=renoise, weighting=weighting)
    loss = objective.student_loss(
        Networks(teacher, student, teacher), torch.randint(0, 2, (50, 3)), draw_of(50)
    )
    loss.total.backward()
    assert loss.total.item() == 0.0
    assert float(student.logits.grad.abs().max()) == 0.0


@every_renoise
def test_the_student_loss_is_the_difference_of_two_diffusion_losses(
    table: MakeTable, renoise: Any
) -> None:
    """L(teacher, G) - L(fake, G) with the process's own integrand on full tables (C.2)."""
    teacher, student, fake = networks(table)
    tokens, draw = torch.randint(0, 2, (40, 3)), draw_of(40)
    objective = renoised(renoise, 2)
    total = objective.student_loss(Networks(teacher, student, fake), tokens, draw).total
    state, _, g = full_g(objective, student, tokens, draw)
    process = student.process
    log_teacher = process.log_probs(teacher.table(state.z), state.z)
    log_fake = process.log_probs(fake.table(state.z), state.z)
    plain = process.nll_per_token(log_teacher, g, state.z, state.time) - process.nll_per_token(
        log_fake, g, state.z, state.time
    )
    assert abs(plain.sum().item()) > 1
    torch.testing.assert_close(total, plain.sum(), rtol=1e-6, atol=0)  # weights 1/t are fp32


@every_renoise
def test_the_gradient_is_the_formula_of_the_paper(table: MakeTable, renoise: Any) -> None:
    """dL/dz_j = -(1/t) G_j (a_j - <G, a>) where the student was asked and z is masked (C.2)."""
    teacher, student, fake = networks(table)
    tokens, draw = torch.randint(0, 2, (40, 3)), draw_of(40)
    objective = renoised(renoise, 2)
    objective.student_loss(Networks(teacher, student, fake), tokens, draw).total.backward()
    state, z_in, g = full_g(objective, student, tokens, draw)
    process = student.process
    a = process.log_probs(teacher.table(state.z), state.z) - process.log_probs(
        fake.table(state.z), state.z
    )
    g, a = g.detach(), a.detach()
    expected = torch.zeros_like(student.logits)
    used = 0
    for b, position in product(range(40), range(3)):
        if state.asked[b, position] and state.scored[b, position]:
            g_row, a_row = g[b, position], a[b, position]
            row = -(g_row * (a_row - (g_row * a_row).sum())) / state.time[b].double()
            expected[int(student.rows(z_in)[b]), position] += row
            used += 1
    assert used > 10
    # fp64 with fp32 weights 1/t
    torch.testing.assert_close(student.logits.grad, expected, rtol=1e-5, atol=1e-7)
    assert not bool(student.logits.grad[..., -1].any())  # the mask's logit gets none


@every_renoise
def test_gradients_reach_the_network_in_training_and_no_other(
    table: MakeTable, renoise: Any
) -> None:
    tokens, draw = torch.randint(0, 2, (40, 3)), draw_of(40)
    objective = AlternatingDistillation(renoise=renoise)
    for name, loss in (("student", objective.student_loss), ("fake", objective.auxiliary_loss)):
        trio = networks(table)
        loss(trio, tokens, draw).total.backward()
        for other in ("teacher", "student", "fake"):
            gradient = getattr(trio, other).logits.grad
            assert (gradient is not None) == (other == name), (name, other)
        assert float(getattr(trio, name).logits.grad.abs().max()) > 0


def test_posterior_states_keep_what_was_visible_and_reveal_by_the_posterior(
    table: MakeTable,
) -> None:
    """A masked position shows with probability (alpha_s - alpha_t) / (1 - alpha_t)."""
    n, length = 4000, 8
    student = table(5, length, context=False)
    tokens = torch.randint(0, 4, (n, length))
    draw = draw_of(n)
    objective = AlternatingDistillation(renoise="posterior", target_steps=2)
    t, s = objective.times(draw)
    state = simulate(objective, student, tokens, draw)
    assert torch.equal(state.time, s)
    assert torch.equal(state.z[~state.asked], tokens[~state.asked])
    assert not bool((state.scored & ~state.asked).any())
    alpha_s, alpha_t = 1 - 0.999 * s.double(), 1 - 0.999 * t.double()
    count = state.asked.double().sum(1)
    expected = 1 - alpha_t
    sd = (length * expected * (1 - expected)).sum().sqrt()
    assert abs(float((count - length * expected).sum())) < 4 * float(sd)  # four deviations
    show = (alpha_s - alpha_t) / (1 - alpha_t)
    shown = (state.asked & ~state.scored).double().sum(1)
    sd = (count * show * (1 - show)).sum().sqrt()
    assert abs(float((shown - count * show).sum())) < 4 * float(sd)
    assert float(sd) < 0.05 * float((count * show).sum())  # the bound above says something


@every_renoise
def test_revealed_tokens_are_draws_from_the_student(table: MakeTable, renoise: Any) -> None:
    n = 6000
    probs = (0.5, 0.3, 0.15, 0.05)
    student = table(probs=probs, length=4)
    # the data is one token only: every other token must come from the student
    tokens = torch.zeros(n, 4, dtype=torch.int64)
    objective = renoised(renoise, 1)
    state = simulate(objective, student, tokens, draw_of(n))
    new = state.z[state.asked & ~state.scored]
    counts = torch.bincount(new, minlength=4).double()
    expected = torch.tensor(probs, dtype=torch.float64) * new.numel()
    assert float(((counts - expected) ** 2 / expected).sum()) < 16.3  # 3 degrees, level 1e-3
    assert not bool(state.z[~state.asked & ~state.scored].any())


def test_fresh_states_forget_the_students_input(table: MakeTable) -> None:
    """IDLM masks every position of x anew with probability 1 - alpha_t, asked or not."""
    n, length = 4000, 8
    student = table(5, length, context=False)
    draw = draw_of(n)
    objective = IDLM()
    t_in, t_out = objective.times(draw)
    state = simulate(objective, student, torch.randint(0, 4, (n, length)), draw)
    assert torch.equal(state.time, t_out)
    assert float((t_in - t_out).abs().mean()) > 0.2
    chance = 0.999 * t_out.double()
    for rows in (state.asked, ~state.asked):
        size = rows.double().sum(1)
        masked = (state.scored & rows).double().sum(1)
        sd = (size * chance * (1 - chance)).sum().sqrt()
        assert abs(float((masked - size * chance).sum())) < 4 * float(sd)  # four deviations


def test_networks_are_told_the_time_of_the_state_they_see(table: MakeTable) -> None:
    tokens, draw = torch.randint(0, 2, (20, 3)), draw_of(20)
    for renoise in RENOISE:
        trio = networks(table)
        objective = AlternatingDistillation(renoise=renoise)  # type: ignore[arg-type]
        t_in, t_out = objective.times(draw)
        objective.student_loss(trio, tokens, draw)
        for model, t in ((trio.student, t_in), (trio.teacher, t_out), (trio.fake, t_out)):
            (sigma,) = model.times
            torch.testing.assert_close(sigma, -torch.log(1 - 0.999 * t), rtol=1e-4, atol=1e-6)


def test_the_students_latent_is_named_by_the_draw(table: MakeTable) -> None:
    tokens = torch.randint(0, 2, (20, 3))
    trio = networks(table)
    IDLM().student_loss(trio, tokens, Draw(torch.arange(40, 60), 20, 7, 8))
    made, used = trio.student.latents
    assert used is made
    assert torch.equal(made.vector[:, 0], torch.arange(40, 60).double() + 8007)
    assert trio.teacher.latents == trio.fake.latents == [None]


@pytest.mark.parametrize("renoise", RENOISE)
def test_with_an_optimal_fake_the_loss_is_the_divergence_from_the_teacher(
    table: MakeTable, renoise: Any
) -> None:
    """V = 3, L = 1: (1 - eps) KL(G || p*), where G is the law of the tokens that are re-noised.

    Fresh noise re-noises data, too, where the student's input was visible: there the law is
    a G + (1 - a) data with a = (1 - eps) E[t]. The fake model fitted to this very batch makes the
    identity exact; what is left to chance is the batch's law and its total weight.
    """
    n = 60_000
    g, p_star = torch.tensor([0.15, 0.85]).double(), torch.tensor([0.6, 0.4]).double()
    teacher, student = table(probs=p_star), table(probs=g)
    tokens = (torch.arange(n) % 10 >= 7).long()[torch.randperm(n)].unsqueeze(-1)  # 0.7, 0.3
    draw = draw_of(n)
    objective = renoised(renoise, 1, anchor=0.0)
    state = simulate(objective, student, tokens, draw)
    weight = (1.0 / state.time) * state.scored[:, 0]
    total = float(weight.double().sum())
    soft = float(weight[state.asked[:, 0]].double().sum())
    hard = torch.stack(
        [weight[~state.asked[:, 0] & (tokens[:, 0] == v)].double().sum() for v in (0, 1)]
    )
    law = (soft * g + hard) / total
    fake = table(probs=law)
    trio = Networks(teacher, student, fake)

    auxiliary = objective.auxiliary_loss(trio, tokens, draw)
    auxiliary.total.backward()
    # the closed form is the optimum: sums of n fp32 weights cancel to seven digits
    assert float(fake.logits.grad.abs().max()) < 1e-5 * total
    entropy = -float((law * law.log()).sum())
    assert auxiliary.total.item() == pytest.approx(total * entropy, rel=1e-5)
    loss = objective.student_loss(trio, tokens, draw)
    assert loss.total.item() == pytest.approx(total * divergence(law, p_star), rel=1e-4)

    # four standard deviations: the weight has variance log(1000), that on one token a quarter
    bound = 4 * math.sqrt(math.log(1000) / n)
    assert total / n == pytest.approx(0.999, abs=bound)
    asked = 0.999 * (0.5 * (1 + 1e-3)) if renoise == "fresh" else 1.0
    mixture = asked * g + (1 - asked) * torch.tensor([0.7, 0.3]).double()
    assert float((law - mixture).abs().max()) < bound / 2
    assert loss.mean.item() == pytest.approx(0.999 * divergence(mixture, p_star), rel=0.25)


def test_the_divergence_vanishes_only_where_the_student_is_the_teacher(table: MakeTable) -> None:
    objective = AlternatingDistillation(renoise="posterior", anchor=0.0, target_steps=1)
    teacher = table(probs=(0.6, 0.4))
    values = []
    for share in (0.1, 0.4, 0.6, 0.8):
        student = table(probs=(share, 1 - share))
        trio = Networks(teacher, student, table(probs=(share, 1 - share)))
        loss = objective.student_loss(trio, torch.zeros(2000, 1).long(), draw_of(2000))
        values.append(loss.mean.item())
    assert values[2] == pytest.approx(0.0, abs=1e-12)
    assert min(values[0], values[1], values[3]) > 1e-3


@pytest.mark.parametrize("share", [0.05, 0.6, 0.9])
def test_with_an_optimal_auxiliary_moment_matching_is_an_f_divergence(
    table: MakeTable, share: float
) -> None:
    """sum_v p_v log((p_v + q_v) / (2 q_v)), never negative, zero only for p = q (E.2)."""
    p, q = torch.tensor([share, 1 - share]).double(), torch.tensor([0.6, 0.4]).double()
    n = 4000
    fake = table(probs=(p + q) / 2)
    trio = Networks(table(probs=q), table(probs=p), fake)
    tokens, draw = torch.zeros(n, 1).long(), draw_of(n)
    objective = DMMD(target_steps=1)
    objective.auxiliary_loss(trio, tokens, draw).total.backward()
    state = simulate(objective, trio.student, tokens, draw)
    total = float(((1.0 / state.time) * state.scored[:, 0]).double().sum())
    assert total > 0.5 * n
    assert float(fake.logits.grad.abs().max()) < 1e-6 * total  # the half-way point is the optimum
    value = objective.student_loss(trio, tokens, draw).total.item() / total
    expected = float((p * ((p + q) / (2 * q)).log()).sum())
    assert value == pytest.approx(expected, abs=1e-6)
    assert (value > 1e-3) if share != 0.6 else (abs(value) < 1e-12)


@pytest.mark.parametrize("anchor", [0.0, 0.5, 3.0])
def test_the_anchor_weighs_the_teacher_in_the_fakes_optimum(
    table: MakeTable, anchor: float
) -> None:
    p, q = torch.tensor([0.1, 0.9]).double(), torch.tensor([0.6, 0.4]).double()
    fake = table(probs=(p + anchor * q) / (1 + anchor))
    trio = Networks(table(probs=q), table(probs=p), fake)
    objective = AlternatingDistillation(anchor=anchor, target_steps=1)
    loss = objective.auxiliary_loss(trio, torch.zeros(500, 1).long(), draw_of(500))
    loss.total.backward()
    assert float(fake.logits.grad.abs().max()) < 1e-6 * loss.total.item()


def test_the_soft_target_has_the_expectation_of_the_hard_one(table: MakeTable) -> None:
    """L_AUX with the paper's one-hot x ~ G, enumerated over V = 3, L = 2 and integrated over time.

    Exact because z_s at a position that is still masked carries nothing about its own x.
    """
    steps, n = 2, 10_000
    trio = networks(table, 3, 2)
    process = trio.student.process
    x0 = torch.tensor([0, 1])

    def log_p(model: Any, state: Tensor) -> Tensor:
        return process.log_probs(model.table(state[None]), state[None])[0].detach()

    # midpoints of s in (1e-3, 1) and of t - s in (0, 1/k)
    s = (1e-3 + 0.999 * (torch.arange(400).double() + 0.5) / 400)[:, None]
    t = (s + (torch.arange(40).double() + 0.5) / 40 / steps).clamp(max=1.0)
    asked_chance, stay = 0.999 * t, s / t
    expected = torch.zeros_like(t)
    for asked in product((False, True), repeat=2):
        z_in = torch.where(torch.tensor(asked), 2, x0)
        chance = torch.ones_like(t)
        for is_asked in asked:
            chance = chance * (asked_chance if is_asked else 1 - asked_chance)
        g = log_p(trio.student, z_in).exp()
        could_be = [[0, 1] if is_asked else [i] for i, is_asked in enumerate(asked)]  # x0 = 0, 1
        for x in product(*could_be):
            drawn = math.prod(float(g[i, v]) for i, v in enumerate(x))
            for kept in product(*([False, True] if is_asked else [False] for is_asked in asked)):
                z = torch.where(torch.tensor(kept), 2, torch.tensor(x))
                moves = torch.ones_like(t)
                for is_asked, is_kept in zip(asked, kept, strict=True):
                    if is_asked:
                        moves = moves * (stay if is_kept else 1 - stay)
                fake, teacher = log_p(trio.fake, z), log_p(trio.teacher, z)
                loss = sum(
                    float(-fake[i, v] - (teacher[i].exp() * fake[i]).sum())
                    for i, v in enumerate(x)
                    if kept[i]
                )
                expected += chance * drawn * moves * loss / s
    exact = float(expected.mean()) / 2  # per token

    objective = DMMD(target_steps=steps)
    tokens = x0.expand(n, 2)
    with torch.no_grad():
        means = torch.stack(
            [objective.auxiliary_loss(trio, tokens, draw_of(n, step=k)).mean for k in range(20)]
        )
    error = float(means.std()) / math.sqrt(20)
    assert error < 0.01 * exact
    assert abs(float(means.mean()) - exact) < 4 * error  # four standard errors


@every_renoise
@pytest.mark.parametrize("name", ["student_loss", "auxiliary_loss"])
def test_micro_batches_add_up_to_the_whole_batch(table: MakeTable, renoise: Any, name: str) -> None:
    objective = AlternatingDistillation(renoise=renoise)
    trained = "student" if name == "student_loss" else "fake"
    tokens = torch.randint(0, 2, (16, 3))

    def run(*cuts: int) -> tuple[Tensor, int, Tensor]:
        trio = networks(table)
        total, count = torch.zeros((), dtype=torch.float64), 0
        for a, b in pairwise(cuts):
            loss = getattr(objective, name)(trio, tokens[a:b], Draw(torch.arange(a, b), 16, 3, 4))
            loss.total.backward()
            total, count = total + loss.total.detach(), count + loss.tokens
        return total, count, getattr(trio, trained).logits.grad

    whole, halves, uneven = run(0, 16), run(0, 8, 16), run(0, 1, 5, 16)
    assert whole[1] == halves[1] == uneven[1] == 48
    for other in (halves, uneven):
        torch.testing.assert_close(other[0], whole[0])  # fp64
        torch.testing.assert_close(other[2], whole[2])


def test_idlm_and_dmmd_are_two_settings_of_one_objective(table: MakeTable) -> None:
    pairs = [
        (IDLM(), {"renoise": "fresh", "anchor": 0.0}),
        (IDLM(time_draws="tied"), {"renoise": "fresh", "anchor": 0.0, "time_draws": "tied"}),
        (IDLM(pure_noise=0.5), {"renoise": "fresh", "anchor": 0.0, "pure_noise": 0.5}),
        (DMMD(target_steps=4), {"renoise": "posterior", "anchor": 1.0, "target_steps": 4}),
        (DMMD(weighting="flat"), {"renoise": "posterior", "anchor": 1.0, "weighting": "flat"}),
    ]
    trio, tokens, draw = networks(table), torch.randint(0, 2, (30, 3)), draw_of(30)
    seen = set()
    for special, settings in pairs:
        general = AlternatingDistillation(**settings)  # type: ignore[arg-type]
        for name in ("student_loss", "auxiliary_loss"):
            ours = getattr(special, name)(trio, tokens, draw).total.item()
            assert ours == getattr(general, name)(trio, tokens, draw).total.item()
            seen.add(ours)
    assert len(seen) == 10  # and no setting is idle


# loss and sum of |gradient| of each setting, student first; stored, so that no edit moves them
GOLDEN = {
    "idlm": [(-32.25276909089467, 20.636811840147335), (82.46628061752588, 64.0741107635227)],
    "tied": [(-92.60312400623832, 23.194283726102057), (140.8445266496857, 70.27206866189012)],
    "dmmd": [(-18.804303076402345, 29.556447697356923), (125.8435053622869, 65.23268606609474)],
    "flat": [(-13.057089759569855, 20.354469317812256), (61.79101779733981, 33.16913321421948)],
}


@pytest.mark.parametrize(
    ("name", "objective"),
    [
        ("idlm", IDLM()),
        ("tied", IDLM(time_draws="tied")),
        ("dmmd", DMMD(target_steps=4)),
        ("flat", DMMD(weighting="flat", anchor=0.5)),
    ],
)
def test_the_masked_losses_and_gradients_equal_the_stored_values(
    table: MakeTable, name: str, objective: AlternatingDistillation
) -> None:
    tokens, draw = (torch.arange(60) % 2).reshape(20, 3), draw_of(20, seed=3, step=4)
    losses = ((objective.student_loss, "student"), (objective.auxiliary_loss, "fake"))
    for (loss, trained), (value, gradient) in zip(losses, GOLDEN[name], strict=True):
        trio = networks(table)
        total = loss(trio, tokens, draw).total
        total.backward()
        assert total.item() == pytest.approx(value, rel=1e-12)  # fp64
        size = float(getattr(trio, trained).logits.grad.abs().sum())
        assert size == pytest.approx(gradient, rel=1e-12)


def test_flat_weighting_counts_every_masked_position_once(table: MakeTable) -> None:
    trio, tokens, draw = networks(table), torch.randint(0, 2, (30, 3)), draw_of(30)
    objective = AlternatingDistillation(weighting="flat", anchor=0.0)
    loss = objective.auxiliary_loss(trio, tokens, draw)
    scored = int(simulate(objective, trio.student, tokens, draw).scored.sum())
    assert loss.total.item() == pytest.approx(
        float(loss.logs["fake_masked_ce"]) * scored, rel=1e-12
    )


def test_the_logged_entropy_is_the_students_at_masked_positions(table: MakeTable) -> None:
    g = torch.tensor([0.2, 0.8]).double()
    trio = Networks(table(probs=(0.5, 0.5)), table(probs=g), table(probs=(0.4, 0.6)))
    loss = IDLM().student_loss(trio, torch.zeros(100, 1).long(), draw_of(100))
    entropy = -float((g * g.log()).sum())
    # the table of probabilities 0.2 and 0.8 is built in fp32
    assert float(loss.logs["student_entropy"]) == pytest.approx(entropy, rel=1e-6)


@every_renoise
def test_nothing_masked_is_a_loss_of_zero_and_logs_no_mean(table: MakeTable, renoise: Any) -> None:
    objective = renoised(renoise, 1000)
    empty = unscored = 0
    for step in range(30):
        trio = networks(table, 3, 1)
        # the lowest of 1000 strata: t is about 0.002, in the posterior case for both times
        draw = Draw(torch.tensor([0]), 1000, 0, step)
        for name in ("student_loss", "auxiliary_loss"):
            loss = getattr(objective, name)(trio, torch.zeros(1, 1).long(), draw)
            assert bool(torch.isfinite(loss.total))
            loss.total.backward()
            empty += loss.total.item() == 0.0
            unscored += any(bool(torch.isnan(value)) for value in loss.logs.values())
            assert not any(bool(torch.isinf(value)) for value in loss.logs.values())
    assert empty > 10
    assert unscored > 10  # averages leave NaN out, where a 0 would pull them down


def test_a_real_generator_learns_through_both_losses() -> None:
    """The same objective on the network itself, in fp32, latent included."""
    config = DiffusionConfig(
        vocab_size=7, model_length=8, hidden_dim=8, cond_dim=4, n_blocks=1, n_heads=2, dropout=0.0
    )
    teacher = DiffusionLM(config)
    for weight in teacher.parameters():
        torch.nn.init.normal_(weight, std=0.5)
    student = teacher.with_latent(latent_global=3, latent_position=3)
    fake = teacher.with_latent(latent_global=0, latent_position=0)
    trio, tokens = Networks(teacher, student, fake), torch.randint(0, 6, (16, 8))
    for objective in (IDLM(), DMMD()):
        # all three agree at step 0, so there is nothing to learn from the teacher yet
        first = objective.student_loss(trio, tokens, draw_of(16))
        assert first.total.item() == 0.0
        objective.auxiliary_loss(trio, tokens, draw_of(16)).total.backward()
        with torch.no_grad():
            for weight in fake.parameters():
                if weight.grad is not None:
                    weight -= 1e-3 * weight.grad
        fake.zero_grad()
        again = [objective.student_loss(trio, tokens, draw_of(16)).total for _ in range(2)]
        assert torch.equal(again[0], again[1])  # the latent is named by the draw, too
        again[0].backward()
        assert float(student.backbone.latent.position.weight.grad.abs().max()) > 0
        assert all(p.grad is None for p in teacher.parameters())
        student.zero_grad()
        fake.load_state_dict(teacher.state_dict())


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"renoise": "hard"}, "renoise is 'hard'; choose one of fresh, posterior"),
        ({"time_draws": "both"}, "time_draws is 'both'; choose one of independent, tied"),
        ({"weighting": "snr"}, "weighting is 'snr'; choose one of nelbo, flat"),
        ({"anchor": -0.1}, "anchor is -0.1; it is a weight, 0"),
        ({"anchor": float("nan")}, "anchor is nan; it is a weight, 0"),
        ({"target_steps": 0}, "target_steps is 0; it must be at least 1"),
        ({"renoise": "fresh", "target_steps": 8}, "target_steps is 8 but renoise is 'fresh'"),
        (
            {"renoise": "posterior", "time_draws": "tied"},
            "time_draws is 'tied', which needs renoise 'fresh'",
        ),
    ],
)
def test_settings_outside_the_method_are_refused(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        AlternatingDistillation(**settings)


def test_another_process_is_refused(table: MakeTable) -> None:
    class Uniform:
        name = "uniform"

    trio = networks(table)
    trio.student.process = Uniform()
    with pytest.raises(UserError, match=r"defined for the absorbing process, but .* 'uniform'"):
        IDLM().student_loss(trio, torch.zeros(2, 3).long(), draw_of(2))


def test_the_two_losses_of_one_draw_see_the_same_states(table: MakeTable) -> None:
    """Same names, same numbers: an update that is repeated after a resume repeats its noise."""
    trio, tokens = networks(table), torch.randint(0, 2, (30, 3))
    objective = DMMD()
    first = simulate(objective, trio.student, tokens, draw_of(30, step=2))
    second = simulate(objective, trio.student, tokens, draw_of(30, step=2))
    assert torch.equal(first.z, second.z)
    assert not torch.equal(
        first.z, simulate(objective, trio.student, tokens, draw_of(30, step=3)).z
    )
    assert {Stream.TOKEN, Stream.RENOISE, Stream.CORRUPT}.isdisjoint({Stream.TIME, Stream.TIME_2})
