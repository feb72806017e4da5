"""Di4C against a plain transcription of its formulas, state by state, and on toys."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise, product
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from idlm import random
from idlm.errors import UserError
from idlm.models import DiffusionConfig, DiffusionLM, Latent
from idlm.objectives import Draw, Networks, chunks
from idlm.objectives.alternating_uniform import given_state
from idlm.objectives.di4c import Di4C
from idlm.objectives.divergences import divergence, log_mean_exp
from idlm.objectives.mixture import correlation, law
from idlm.processes import Absorbing, Process, Uniform
from idlm.random import Stream
from idlm.training import DistillationModule

MakeTable = Callable[..., Any]
V, L, N = 3, 2, 3


class Regions(nn.Module):
    """A student whose logits are one of R tables, which one the Gaussian latent decides."""

    has_latent = True

    def __init__(self, logits: Tensor, process: Process) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits.double())  # [R, S, L, V]
        self.aside = nn.Parameter(torch.ones((), dtype=torch.float64))
        self.dropout = nn.Dropout(0.5)
        self.process = process
        self.calls: list[dict[str, Any]] = []

    def sample_latent(self, sample: Tensor, length: int, *, seed: int, step: int) -> Latent:
        stream = Stream.LATENT_GLOBAL
        return Latent(random.normal(1, sample=sample, seed=seed, step=step, stream=stream), None)

    def features(self, z: Tensor, sigma: Tensor, latent: Latent) -> Tensor:
        cuts = torch.special.ndtri(torch.arange(1, len(self.logits)) / len(self.logits))
        assert latent.vector is not None
        region = torch.bucketize(latent.vector[:, 0], cuts.to(latent.vector))
        grad = torch.is_grad_enabled()
        self.calls.append(
            {"z": z, "sigma": sigma, "region": region, "training": self.training, "grad": grad}
        )
        row = (z * V ** torch.arange(z.shape[1])).sum(-1)
        columns = (region[:, None], row[:, None], torch.arange(z.shape[1]), int(self.training))
        parts = (torch.as_tensor(column).expand(z.shape) for column in columns)
        return torch.stack(tuple(parts), -1)

    def head(self, hidden: Tensor) -> Tensor:
        logits = self.logits[hidden[..., 0], hidden[..., 1], hidden[..., 2]]
        return torch.where(hidden[..., 3:] == 1, logits, logits * self.aside)


def random_logits(*shape: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 1.5 * torch.randn(shape, generator=generator, dtype=torch.float64)


def networks(table: MakeTable, process: Process, regions: int = 3) -> Networks:
    teacher = table(V, L, seed=1)
    teacher.process = process
    student = Regions(random_logits(regions, V**L, L, V, seed=2), process).train()
    student.dropout.eval()  # a mode of its own
    return Networks(teacher.requires_grad_(False), student)  # type: ignore[arg-type]


def all_states(process: Process) -> tuple[Tensor, Tensor]:
    """Every (x0, x_t) of two positions, each ``[B, L]``."""
    pairs = []
    if isinstance(process, Absorbing):
        for x0, masked in product(product(range(V - 1), repeat=L), product((0, 1), repeat=L)):
            pairs.append((x0, tuple(V - 1 if m else x for x, m in zip(x0, masked, strict=True))))
    else:
        pairs = list(product(product(range(V), repeat=L), repeat=2))
    x0, z = zip(*pairs, strict=True)
    return torch.tensor(x0), torch.tensor(z)


def predicted(process: Process, logits: Tensor, z: Tensor, t: Tensor) -> Tensor:
    """log p(x0 | z) at every position, ``[L, V]``, visible ones included, log 0 as -inf."""
    log_p = process.log_probs(logits[None], z[None])
    if isinstance(process, Uniform):
        return given_state(process, log_p, z[None], t.reshape(1))[0]
    return log_p[0].masked_fill(log_p[0] < -1e5, -math.inf)


def kl(p: Tensor, q: Tensor) -> Tensor:
    """KL of two distributions, summed over positions; terms of probability 0 are 0."""
    there = p > 0
    return (p[there] * (p[there].log() - q[there].log())).sum()


def lme(values: list[Tensor]) -> Tensor:
    return torch.stack(values).exp().mean().log()


def plain_cor(p: list[Tensor], x: Tensor, control: bool) -> Tensor:
    """The two brackets over all D positions, as the paper writes them."""
    at_x = [[p_i[d, x[d]].log() for d in range(L)] for p_i in p]
    joint = lme([torch.stack(row).sum() for row in at_x])
    marginals = sum(lme([row[d] for row in at_x]) for d in range(L))
    return -(joint - marginals) if control else -joint


def plain_terms(
    objective: Di4C, trio: Networks, x0: Tensor, z: Tensor, t: Tensor, draw: Draw
) -> list[list[Tensor]]:
    """cor, ind, dist, cons_cor, cons_ind of each sequence, by loops over sequences and latents."""
    student, process, n = trio.student, trio.student.process, objective.num_latents
    control = objective.control_variates
    tables = student.logits
    out = []
    for b in range(len(x0)):
        one = replace(draw, sample=draw.sample[b : b + 1])
        far = bool(t[b] >= objective.delta)

        def prediction(state: Tensor, time: Tensor, number: int, one: Draw = one) -> Tensor:
            latent = one.branch(number).latent(student, L)
            student.features(state[None], torch.zeros(1), latent)
            region = student.calls.pop()["region"]
            row = (state * V ** torch.arange(L)).sum()
            return predicted(process, tables[region, row][0], state, time).exp()

        p = [prediction(z[b], t[b], i + 1) for i in range(n)]
        mixture = torch.stack(p).mean(0)
        q = predicted(process, trio.teacher.table(z[b : b + 1])[0], z[b], t[b]).exp()
        zero = torch.zeros((), dtype=torch.float64)
        ind = kl(q, mixture) if control else zero
        dist = cons_cor = cons_ind = zero
        if not far:
            dist = sum((kl(q, p_i) for p_i in p), zero) / n
        else:
            s = t[b] - min(1 / objective.teacher_steps, float(t[b]) * objective.step_share)
            with torch.no_grad():
                seen = trio.teacher.features(z[b : b + 1])
                z_s = objective._teacher_step(
                    trio.teacher, seen, z[b : b + 1], s.reshape(1), t[b : b + 1], one
                )[0]
                later = objective.later(trio, seen, z[b : b + 1], t[b : b + 1], one)
                del student.calls[-1]
                p_s = [prediction(z_s[j], s, n + j + 1) for j in range(n)]
            xh = z_s.clone()  # where x_t shows a token, so does x_s
            scored = torch.ones(L, dtype=torch.bool)
            if isinstance(process, Absorbing):
                scored = z[b] == process.mask_id
            xh[:, scored] = later.drawn.T
            cons_cor = sum((plain_cor(p, xh_j, control) for xh_j in xh), zero) / n
            cons_ind = kl(torch.stack(p_s).mean(0), mixture) if control else zero
        out.append([plain_cor(p, x0[b], control), ind, dist, cons_cor, cons_ind])
    return out


PROCESSES = {"absorbing": Absorbing(V), "uniform": Uniform(V)}
every_process = pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES.keys())
every_control = pytest.mark.parametrize("control", [True, False], ids=["control", "plain"])


def times_for(n: int, far: bool) -> Tensor:
    """Times of their own for n sequences."""
    u = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    return 0.02 + 0.98 * u if far else 0.02 * u


def draw_of(n: int, *, seed: int = 0, step: int = 0) -> Draw:
    return Draw(torch.arange(n), n, seed, step)


@every_process
@every_control
@pytest.mark.parametrize("far", [False, True], ids=["near", "far"])
def test_every_term_is_the_papers_sum_over_all_positions_on_every_state(
    table: MakeTable, process: Process, control: bool, far: bool
) -> None:
    trio = networks(table, process)
    # steps of the teacher that are long enough to show something
    n = N if isinstance(process, Absorbing) else 2  # of 81 states
    objective = Di4C(num_latents=n, control_variates=control, teacher_steps=3)
    x0, z = all_states(process)
    t, draw = times_for(len(x0), far), draw_of(len(x0))
    terms = objective.terms(trio, x0, z, t, draw, far=far)
    loss = terms.loss.sum()
    loss.backward()
    gradient = trio.student.logits.grad.clone()

    trio.student.logits.grad = None
    plain = plain_terms(objective, trio, x0, z, t, draw)
    names = ("cor", "ind", "dist", "cons_cor", "cons_ind")
    for name, expected in zip(names, zip(*plain, strict=True), strict=True):
        ours, wanted = getattr(terms, name).detach(), torch.stack(expected).detach()
        torch.testing.assert_close(ours, wanted, rtol=0, atol=1e-10, msg=name)
        absent = {"dist"} if far else {"cons_cor", "cons_ind"}
        absent |= set() if control else {"ind", "cons_ind"}
        assert (float(ours.abs().max()) > 1e-2) == (name not in absent), name
    c = 0.1 / (1 + torch.exp(-20 * (t - 0.5)))
    total = sum(c[b] * row[0] + sum(row[1:]) for b, row in enumerate(plain))
    total.backward()
    torch.testing.assert_close(loss, total, rtol=0, atol=1e-9)
    assert float(gradient.abs().max()) > 1e-2
    torch.testing.assert_close(gradient, trio.student.logits.grad, rtol=0, atol=1e-9)


@every_process
def test_with_one_time_for_all_the_loss_is_the_published_one(
    table: MakeTable, process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``if t < delta`` on a scalar, mean over sequences of sums over positions."""
    trio, objective = networks(table, process), Di4C(num_latents=N, delta=0.5)
    tokens, draw = torch.randint(0, V - 1, (6, L)), draw_of(6)
    for value in (0.49, 0.5, 0.7):
        t = torch.full((6,), value, dtype=torch.float64)
        monkeypatch.setattr(objective, "times", lambda draw, t=t: t)
        loss = objective.student_loss(trio, tokens, draw)
        z = process.corrupt(tokens, t, draw.uniform(L, stream=Stream.CORRUPT))
        with torch.no_grad():
            plain = plain_terms(objective, trio, tokens, z, t, draw)
        cor, ind, dist, cons_cor, cons_ind = torch.tensor(plain).T
        c = 0.1 / (1 + math.exp(-20 * (value - 0.5)))
        rest = dist if value < 0.5 else cons_cor + cons_ind
        published = (c * cor + ind + rest).mean()
        assert loss.mean.item() == pytest.approx(float(published) / L, abs=1e-10)
        assert (float(loss.logs["dist"]) > 0.01) == (value < 0.5)


@every_process
@every_control
def test_a_batch_of_any_size_is_the_sum_of_its_sequences(
    table: MakeTable, process: Process, control: bool
) -> None:
    """Each sequence by its own time, whatever the times of the others."""
    objective = Di4C(num_latents=N, control_variates=control)
    tokens = torch.randint(0, V - 1, (9, L))

    def run(*cuts: int) -> tuple[Tensor, Tensor]:
        trio = networks(table, process)
        total = torch.zeros((), dtype=torch.float64)
        for a, b in pairwise(cuts):
            loss = objective.student_loss(trio, tokens[a:b], Draw(torch.arange(a, b), 9, 3, 4))
            loss.total.backward()
            assert loss.tokens == (b - a) * L
            total = total + loss.total.detach()
        return total, trio.student.logits.grad

    whole, single = run(0, 9), run(*range(10))
    t = objective.times(Draw(torch.arange(9), 9, 3, 4))
    assert 2 <= int((t < 0.02).sum()) <= 3  # both kinds are there
    for other in (single, run(0, 1, 6, 9)):
        torch.testing.assert_close(other[0], whole[0])  # fp64
        torch.testing.assert_close(other[1], whole[1])


def test_the_correlation_of_a_long_sequence_keeps_its_digits_in_single_precision() -> None:
    """Two sums over 1024 positions, thousands of nats each, that nearly cancel."""
    log_p = (3 * random_logits(2, 1024, 4, seed=6) - 8).float()
    shifted = log_p.double().sum(1)
    mixture = torch.logsumexp(shifted, 1) - math.log(4)
    marginals = (torch.logsumexp(log_p.double(), 2) - math.log(4)).sum(1)
    torch.testing.assert_close(correlation(log_p), marginals - mixture, rtol=0, atol=1e-9)
    assert float(marginals.abs().min()) > 2000


def test_one_latent_has_no_correlations_and_is_refused() -> None:
    log_p = random_logits(5, 4, 1, 2, seed=3)
    assert torch.equal(correlation(log_p), torch.zeros(5, 2).double())
    assert float(correlation(log_p, control=False).abs().min()) > 0
    with pytest.raises(UserError, match="num_latents is 1; it must be at least 2, because one lat"):
        Di4C(num_latents=1)


def test_two_regions_of_the_latent_have_negative_cor_where_tokens_go_together(
    table: MakeTable,
) -> None:
    """x1 = x2, all masked: log 2 below the product of the same marginals; the reverse above it."""
    sure = torch.full((2, V**L, L, V), -50.0)
    sure[0, ..., 0] = sure[1, ..., 1] = 0.0
    process = Absorbing(V)
    trio = networks(table, process)._replace(student=Regions(sure, process).train())  # type: ignore[arg-type]
    objective = Di4C(num_latents=2)
    tokens, n = torch.tensor([[0, 0], [1, 1], [0, 1]]), 40
    masked, t = torch.full((3 * n, L), 2), torch.full((3 * n,), 0.9, dtype=torch.float64)
    terms = objective.terms(trio, tokens.repeat(n, 1), masked, t, draw_of(3 * n), far=True)
    region = trio.student.calls[0]["region"].view(3 * n, 2)
    both = (region[:, 0] != region[:, 1]).view(n, 3)  # a latent in each region
    assert 20 < int(both.sum()) < 100
    cor = terms.cor.detach().view(n, 3)
    equal = cor[:, :2][both[:, :2]]
    torch.testing.assert_close(equal, torch.full_like(equal, -math.log(2)))
    assert float(cor[:, 2][both[:, 2]].min()) > 20
    assert float(cor[~both].abs().max()) < 1e-9  # one region alone is a product
    assert float(terms.cons_cor.detach().max()) < 1e-9  # the student's own draws go together, too


def test_a_product_student_has_no_correlation_term(table: MakeTable) -> None:
    trio = networks(table, Absorbing(V), regions=1)
    x0, z = all_states(Absorbing(V))
    terms = Di4C(num_latents=N).terms(trio, x0, z, times_for(16, True), draw_of(16), far=True)
    assert float(terms.cor.detach().abs().max()) < 1e-12
    assert float(terms.cons_cor.detach().abs().max()) < 1e-12
    assert float(terms.ind.detach().max()) > 0.1


def test_a_latent_that_changes_nothing_yet_gets_no_gradient_from_correlations(
    table: MakeTable,
) -> None:
    """The saddle at a silent latent, which one that is awake does not start from."""
    x0, z = all_states(Absorbing(V))
    sizes = []
    for scale in (0.0, 1.0):
        trio = networks(table, Absorbing(V))
        logits = trio.student.logits.data
        trio.student.logits.data = logits[:1] + scale * (logits - logits[:1])
        t = times_for(16, True)
        terms = Di4C(num_latents=N).terms(trio, x0, z, t, draw_of(16), far=True)
        (terms.cor.sum() + terms.cons_cor.sum()).backward()
        sizes.append(float(trio.student.logits.grad.abs().max()))
    assert sizes[0] < 1e-12 < 0.1 < sizes[1]


def test_the_mean_of_few_latents_is_below_the_mixture_and_rises_to_it() -> None:
    """Jensen: E[LME_n] over all draws of n latents from two regions, enumerated."""
    log_p = torch.tensor([[0.9, 0.2], [0.1, 0.7]]).double().log()  # of two positions, two regions
    mixture = float(log_mean_exp(log_p.sum(0), 0))
    seen = []
    for n in (1, 2, 4, 8):
        draws = torch.tensor(list(product((0, 1), repeat=n)))
        likelihood = -correlation(log_p[:, draws].transpose(0, 1), control=False)
        seen.append(float(likelihood.mean()))
    assert seen == sorted(seen)
    assert seen[-1] < mixture
    assert mixture - seen[-1] < 0.2 * (mixture - seen[0])


def test_few_latents_charge_a_mixture_for_marginals_that_are_right() -> None:
    """E KL(teacher || mean of n), enumerated: about sum_v Var(p_v) / (2 n q_v), not 0."""
    regions = torch.tensor([[0.75, 0.25], [0.25, 0.75]], dtype=torch.float64)
    teacher = regions.mean(0)
    assert float(kl(teacher, teacher)) == pytest.approx(0.0, abs=1e-12)
    for n in (4, 8, 12):
        draws = torch.tensor(list(product((0, 1), repeat=n)))
        charged = divergence("kl-fwd", log_mean_exp(regions.log()[draws], 1), teacher.log()).mean()
        assert float(charged) == pytest.approx(2 * 0.25**2 / (2 * n * 0.5), rel=0.1)


def data_gradients(table: MakeTable, control: bool) -> tuple[Tensor, Tensor]:
    """Gradient of the data term with c = 1 for each x0 at one all-masked state, and P(x0)."""
    joint = torch.tensor([0.5, 0.1, 0.05, 0.35]).double()  # of 00, 01, 10, 11
    tokens = torch.tensor(list(product(range(2), repeat=2)))
    process = Absorbing(V)
    trio = networks(table, process)
    marginals = torch.stack([joint.view(2, 2).sum(1), joint.view(2, 2).sum(0)])
    teacher = table(V, L)
    teacher.logits.data[8, :, :2] = marginals.log()  # of the state (2, 2)
    trio = trio._replace(teacher=teacher.requires_grad_(False))
    # a slope of 0 and a weight of 2 make c(t) = 1
    objective = Di4C(
        num_latents=N, control_variates=control, correlation_weight=2.0, correlation_slope=0.0
    )
    draw = Draw(torch.zeros(4).long(), 1, 0, 0)  # the same latents for each
    terms = objective.terms(
        trio, tokens, torch.full((4, L), 2), torch.full((4,), 0.01).double(), draw, far=False
    )
    data = terms.weight * terms.cor + terms.ind
    rows = [torch.autograd.grad(row, trio.student.logits, retain_graph=True)[0] for row in data]
    return torch.stack(rows), joint.reshape(-1, 1, 1, 1, 1)


def test_control_variates_keep_the_datas_expected_gradient_and_lower_its_variance(
    table: MakeTable,
) -> None:
    """At c = 1, with a teacher that knows the marginals."""
    (plain, chance), (controlled, _) = (data_gradients(table, c) for c in (False, True))
    mean, ours = (chance * plain).sum(0), (chance * controlled).sum(0)
    assert float(mean.abs().max()) > 0.05
    torch.testing.assert_close(ours, mean, rtol=0, atol=1e-12)
    variance, lower = ((chance * (g - mean) ** 2).sum() for g in (plain, controlled))
    assert float(lower) < 0.7 * float(variance)


def test_control_variates_keep_the_expected_gradient_of_consistency(
    table: MakeTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over all xh, each with the chance that some latent draws it."""
    process = Absorbing(V)
    tokens = torch.tensor(list(product(range(2), repeat=2)))
    masked, t = torch.full((4, L), 2), torch.full((4,), 0.4).double()
    draw = Draw(torch.zeros(4).long(), 1, 0, 0)
    sums = []
    for control in (False, True):
        trio = networks(table, process)
        objective = Di4C(num_latents=N, control_variates=control)
        seen = trio.teacher.features(masked)
        later = objective.later(trio, seen, masked, t, draw)
        logits = trio.student.head(later.hidden)
        p_s = law(process, logits, later.z, later.s).exp().detach().view(4, L, N, 2)[0]
        chance = torch.stack([p_s[0, :, a] * p_s[1, :, b] for a, b in tokens.tolist()]).mean(1)
        fixed = later._replace(drawn=tokens.reshape(-1, 1).expand(-1, N))
        monkeypatch.setattr(objective, "later", lambda *args, fixed=fixed: fixed)
        terms = objective.terms(trio, tokens, masked, t, draw, far=True)
        expected = (chance * (terms.cons_cor + terms.cons_ind)).sum()
        sums.append(torch.autograd.grad(expected, trio.student.logits)[0])
        assert float(chance.sum()) == pytest.approx(1.0)
    assert float(sums[0].abs().max()) > 1e-2
    torch.testing.assert_close(*sums, rtol=0, atol=1e-12)


@every_process
def test_gradient_passes_only_through_the_prediction_at_x_t(
    table: MakeTable, process: Process
) -> None:
    """What the student says later is evaluated, without gradient, and the teacher gets none."""
    trio = networks(table, process)
    trio.teacher.requires_grad_(True)
    tokens = torch.randint(0, V - 1, (12, L))
    loss = Di4C(num_latents=N).student_loss(trio, tokens, draw_of(12))
    loss.total.backward()
    assert [call["grad"] for call in trio.student.calls] == [True, True, False]
    # `aside` scales the logits in eval mode only, so any gradient there would be the target's
    assert trio.student.aside.grad is None or float(trio.student.aside.grad.abs()) == 0.0
    assert trio.teacher.logits.grad is None
    assert float(trio.student.logits.grad.abs().max()) > 0
    with torch.no_grad():
        trio.student.aside.fill_(3.0)
    other = Di4C(num_latents=N).student_loss(trio, tokens, draw_of(12))
    assert other.total.item() != loss.total.item()  # but the target does count


def test_the_later_pass_is_in_eval_mode_and_every_module_gets_its_own_back(
    table: MakeTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    trio = networks(table, Absorbing(V))
    tokens = torch.randint(0, 2, (12, L))
    objective = Di4C(num_latents=N)
    objective.student_loss(trio, tokens, draw_of(12))
    assert [call["training"] for call in trio.student.calls] == [True, True, False]
    assert trio.student.training
    assert not trio.student.dropout.training  # it was off before
    trio.student.eval()
    objective.student_loss(trio, tokens, draw_of(12))
    assert not trio.student.training

    def broken(*args: Any) -> Tensor:
        raise RuntimeError("no")

    trio.student.train()
    trio.student.calls.clear()
    plain = trio.student.features
    monkeypatch.setattr(
        trio.student, "features", lambda *a: plain(*a) if trio.student.training else broken()
    )
    with pytest.raises(RuntimeError, match="no"):
        objective.student_loss(trio, tokens, draw_of(12))
    assert trio.student.training


def test_networks_are_told_the_time_of_the_state_they_see(table: MakeTable) -> None:
    trio = networks(table, Absorbing(V))
    objective = Di4C(num_latents=N, teacher_steps=10, step_share=0.25)
    t = torch.tensor([0.03, 0.2, 0.6, 1.0]).double()
    tokens, z = torch.zeros(4, L).long(), torch.full((4, L), 2)
    objective.terms(trio, tokens, z, t, draw_of(4), far=True)
    s = torch.tensor([0.03 * 0.75, 0.15, 0.5, 0.9]).double()  # t - min(1/10, t/4)
    for call, time in zip(trio.student.calls, (t, s), strict=True):
        expected = -torch.log(1 - 0.999 * time).float().repeat_interleave(N)
        torch.testing.assert_close(call["sigma"], expected)
    (sigma,) = trio.teacher.times
    torch.testing.assert_close(sigma, -torch.log(1 - 0.999 * t).float())


@every_process
def test_later_states_are_draws_of_one_ancestral_step_of_the_teacher(
    table: MakeTable, process: Process
) -> None:
    trio, n = networks(table, process), 1500
    objective = Di4C(num_latents=4, teacher_steps=2)
    t = torch.full((n,), 0.8, dtype=torch.float64)
    s = t - 0.4  # half of t is less than half a unit
    for start in ((2, 2), (2, 0)):
        z = torch.tensor(start).expand(n, L)
        seen = trio.teacher.features(z)
        z_s = objective._teacher_step(trio.teacher, seen, z, s, t, draw_of(n)).flatten(0, 1)
        log_p = process.log_probs(trio.teacher.table(z[:1]), z[:1])
        law_s = process.posterior(log_p.exp(), z[:1], s[:1], t[:1])[0]
        expected = (law_s[0, :, None] * law_s[1]).flatten()
        counts = torch.bincount(z_s[:, 0] * V + z_s[:, 1], minlength=V * V).double()
        assert not bool(counts[expected == 0].any())
        there = expected > 0
        wanted = 4 * n * expected[there]
        chi2 = float(((counts[there] - wanted) ** 2 / wanted).sum())
        assert chi2 < 26.1  # at most 8 degrees, level 1e-3


@every_process
def test_the_drawn_tokens_are_the_students_one_step_later(
    table: MakeTable, process: Process
) -> None:
    """By latent: xh[j] is from the prediction at x_s[j] with the region of its own latent."""
    trio, n = networks(table, process), 4000
    objective = Di4C(num_latents=2, teacher_steps=4)
    z, t = torch.tensor([2, 2]).expand(n, L), torch.full((n,), 0.5, dtype=torch.float64)
    later = objective.later(trio, trio.teacher.features(z), z, t, draw_of(n))
    call = trio.student.calls[-1]
    region, z_s = call["region"].view(n, 2), call["z"].view(n, 2, L)
    assert torch.equal(later.z.view(n, L, 2).transpose(1, 2), z_s)
    drawn = later.drawn.view(n, L, 2)
    compared = 0
    for j, a, r, d in product(range(2), range(V), range(3), range(L)):
        state = torch.tensor([2, a] if d == 0 else [a, 2])  # one position, its neighbour given
        rows = (region[:, j] == r) & (z_s[:, j] == state).all(-1)
        count = int(rows.sum())
        if count < 100:
            continue
        logits = trio.student.logits.detach()[r, int((state * V ** torch.arange(L)).sum())]
        p = predicted(process, logits, state, t[0] - 0.25).exp()[d]
        error = torch.bincount(drawn[rows, d, j], minlength=V).double() / count - p
        bound = 4 * (p * (1 - p) / count).sqrt() + 1e-12  # four standard deviations
        assert bool((error.abs() <= bound).all())
        compared += 1
    assert compared >= 8
    if isinstance(process, Absorbing):  # what has been revealed stays
        shown = later.z != process.mask_id
        assert int(shown.sum()) > 100
        assert torch.equal(later.drawn[shown], later.z[shown])


def test_draws_of_one_prediction_are_independent_between_latents_and_positions(
    table: MakeTable,
) -> None:
    trio, n = networks(table, Absorbing(V), regions=1), 3000
    z, t = torch.full((n, L), 2), torch.full((n,), 0.9, dtype=torch.float64)
    objective = Di4C(num_latents=2, teacher_steps=10**6)  # so short a step shows nothing
    later = objective.later(trio, trio.teacher.features(z), z, t, draw_of(n))
    assert bool((later.z == 2).all())
    correlations = torch.corrcoef(later.drawn.view(n, 2 * L).T.double()).fill_diagonal_(0.0)
    assert float(correlations.abs().max()) < 4 / math.sqrt(n)  # four standard deviations


def test_latents_are_independent_of_each_other_and_named_by_the_draw(table: MakeTable) -> None:
    trio, n = networks(table, Absorbing(V), regions=2), 600
    objective = Di4C(num_latents=3)
    z, t = torch.full((n, L), 2), torch.full((n,), 0.5, dtype=torch.float64)

    def regions(draw: Draw) -> Tensor:
        trio.student.calls.clear()
        objective.terms(trio, z * 0, z, t, draw, far=True)
        return torch.cat([c["region"].view(n, 3) for c in trio.student.calls], 1).double()

    first = regions(draw_of(n))
    correlations = torch.corrcoef(torch.cat([first, first.roll(1, 0)], 1).T)
    correlations.fill_diagonal_(0.0)
    assert float(correlations.abs().max()) < 4.5 / math.sqrt(n)  # 66 pairs, also of neighbours
    assert torch.equal(first, regions(draw_of(n)))
    for other in (draw_of(n, seed=1), draw_of(n, step=1)):
        assert not torch.equal(first, regions(other))


@pytest.mark.parametrize("size", [1, 2, 7, 50])
def test_times_are_near_by_their_share_and_uniform_on_either_side(size: int) -> None:
    objective = Di4C(num_latents=2, delta=0.1, near_share=0.3)
    t = objective.times(Draw(torch.arange(4200), size, 0, 0))
    near = t < 0.1
    if size == 50:  # stratified: every batch has its share
        assert bool((near.view(-1, 50).sum(1) == 15).all())
    sd = math.sqrt(0.21 / len(t))  # of independent times, and the largest there is
    assert float(near.double().mean()) == pytest.approx(0.3, abs=4 * sd)
    for part, low, high in ((t[near], 0.0, 0.1), (t[~near], 0.1, 1.0)):
        assert float(part.min()) >= low
        assert float(part.max()) < high
        u = ((part - low) / (high - low)).sort().values
        steps = (torch.arange(len(u)).double() + 0.5) / len(u)
        assert float((u - steps).abs().max()) < 1.95 / math.sqrt(len(u))  # Kolmogorov, level 1e-3
    for share, side in ((0.0, False), (1.0, True)):
        t = Di4C(num_latents=2, delta=0.1, near_share=share).times(draw_of(50))
        assert bool(((t < 0.1) == side).all())
        assert bool(torch.isfinite(t).all())


def test_no_time_is_zero() -> None:
    """At t = 0 the uniform process leaves nothing open, and Bayes' factor has no value."""

    class Zero(Draw):
        def uniform(self, *shape: int, stream: Stream) -> Tensor:
            return torch.zeros(len(self.sample), *shape, dtype=torch.float64)

    for share in (0.3, 0.0):
        objective = Di4C(num_latents=2, near_share=share)
        t = objective.times(Zero(torch.arange(1), 1, 0, 0))
        assert float(t) == (1e-5 if share else 0.02)


def test_the_weight_of_the_datas_correlations_is_a_sigmoid_of_time() -> None:
    objective = Di4C(num_latents=2)
    c = objective.coefficient(torch.tensor([0.0, 0.5, 0.6, 1.0]).double())
    assert c.tolist() == pytest.approx([0.1 / (1 + math.exp(10)), 0.05, 0.0880797, 0.0999955])


def test_at_masked_positions_no_entry_stands_for_log_zero() -> None:
    process = Absorbing(V)
    z, t = torch.tensor([2, 1]), torch.tensor([0.5, 0.5])
    log_p = law(process, random_logits(2, V, seed=0), z, t)
    assert log_p.shape == (2, V - 1)
    assert float(log_p[0].min()) > -20
    assert float(log_p[0].exp().sum()) == pytest.approx(1)
    assert log_p[1].exp().tolist() == [0.0, 1.0]  # a visible token is a certainty


@every_process
def test_single_precision_gives_the_same_terms(table: MakeTable, process: Process) -> None:
    """Where the published -1e6 would leave three digits."""
    x0, z = all_states(process)
    objective = Di4C(num_latents=N)
    found = []
    for dtype in (torch.float64, torch.float32):
        trio = networks(table, process)
        trio.student.logits.data = trio.student.logits.data.to(dtype)
        trio.student.aside.data = trio.student.aside.data.to(dtype)
        trio.teacher.logits.data = trio.teacher.logits.data.to(dtype)
        t = times_for(len(x0), True)
        found.append(objective.terms(trio, x0, z, t, draw_of(len(x0)), far=True))
    for name in ("cor", "ind", "cons_cor", "cons_ind"):
        double, single = (getattr(terms, name).double() for terms in found)
        torch.testing.assert_close(single, double, rtol=1e-4, atol=2e-6, msg=name)


def lm(process: str, length: int = 16, vocab: int = 64) -> Networks:
    config = DiffusionConfig(
        vocab_size=vocab,
        model_length=length,
        hidden_dim=4,
        cond_dim=4,
        n_blocks=1,
        n_heads=1,
        dropout=0.0,
        process=process,
        time_conditioning=True,
    )
    torch.manual_seed(1)
    teacher = DiffusionLM(config).double().eval()
    student = teacher.with_latent(latent_global=3, latent_position=2).train()
    for weight in (*teacher.parameters(), *student.parameters()):
        nn.init.normal_(weight, std=0.4)
    return Networks(teacher.requires_grad_(False), student)


class Largest(TorchDispatchMode):
    """How many numbers the largest tensor has that is made."""

    numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(tensor, Tensor):
                self.numbers = max(self.numbers, tensor.untyped_storage().nbytes() // 8)
        return out


@every_control
@pytest.mark.parametrize("process", ["absorbing", "uniform"])
def test_chunks_give_the_same_value_and_gradient_and_no_table_of_all_logits(
    process: str, control: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    objective = Di4C(num_latents=4, control_variates=control)
    tokens = torch.randint(0, 255, (4, 16))

    def run() -> tuple[Tensor, list[Tensor], int]:
        trio = lm(process, vocab=256)
        with Largest() as largest:
            total = objective.student_loss(trio, tokens, draw_of(4)).total
            total.backward()
        gradients = [p.grad for p in trio.student.parameters()]
        assert all(gradient is not None for gradient in gradients)
        return total, gradients, largest.numbers

    whole, expected, large = run()
    monkeypatch.setattr(chunks, "NUMBERS", 2 * 4 * 256)  # two positions at a time
    total, gradients, small = run()
    torch.testing.assert_close(total, whole)  # fp64
    for ours, theirs in zip(gradients, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-12)
    assert large > 15 * 4 * 256  # all latents at all scored positions
    assert small < 4 * 4 * 256  # the backbone's own tensors


def test_nothing_masked_is_a_loss_of_zero_and_logs_no_entropy(table: MakeTable) -> None:
    trio, objective = networks(table, Absorbing(V)), Di4C(num_latents=N)
    tokens = torch.zeros(3, L).long()
    for far in (False, True):
        terms = objective.terms(trio, tokens, tokens, times_for(3, far), draw_of(3), far=far)
        terms.loss.sum().backward()
        assert terms.loss.tolist() == [0.0] * 3
    empty = 0
    for step in range(20):  # the lowest of 1000 strata: t is about 1e-4
        loss = objective.student_loss(trio, tokens[:1], Draw(torch.tensor([0]), 1000, 0, step))
        empty += bool(loss.logs["student_entropy"].isnan()) and loss.total.item() == 0.0
        assert loss.asked == 0 or not empty
    assert empty == 20


def test_logs_add_up_to_the_loss_and_hold_the_students_entropy(table: MakeTable) -> None:
    trio = networks(table, Absorbing(V), regions=1)
    objective = Di4C(num_latents=N, correlation_weight=0.0)
    tokens, draw = torch.randint(0, 2, (20, L)), draw_of(20)
    loss = objective.student_loss(trio, tokens, draw)
    names = ("ind", "dist", "cons_cor", "cons_ind")  # c = 0
    assert sum(float(loss.logs[name]) for name in names) == pytest.approx(loss.mean.item())
    t = objective.times(draw)
    z = Absorbing(V).corrupt(tokens, t, draw.uniform(L, stream=Stream.CORRUPT))
    log_p = torch.log_softmax(trio.student.logits[0, (z * V ** torch.arange(L)).sum(-1), :, :2], -1)
    entropy = -(log_p.exp() * log_p).sum(-1)[z == 2].mean()
    assert float(loss.logs["student_entropy"]) == pytest.approx(entropy.item())
    assert loss.asked == int((z == 2).sum())


OTHERS = {
    "num_latents": 5,
    "delta": 0.3,
    "near_share": 0.6,
    "teacher_steps": 4,
    "step_share": 0.1,
    "correlation_weight": 0.2,
    "correlation_slope": 10.0,
    "correlation_center": 0.3,
    "control_variates": False,
}


def test_no_option_is_idle_and_the_defaults_are_the_published_constants(table: MakeTable) -> None:
    tokens, draw = torch.randint(0, 2, (40, L)), draw_of(40)
    published = {
        "num_latents": 16,
        "delta": 0.02,
        "near_share": 0.3,
        "teacher_steps": 1024,
        "step_share": 0.5,
        "correlation_weight": 0.1,
        "correlation_slope": 20.0,
        "correlation_center": 0.5,
        "control_variates": True,
    }
    assert vars(Di4C()) == published

    def loss(**settings: Any) -> float:
        trio = networks(table, Absorbing(V))
        objective = Di4C(**{"num_latents": 4, **settings})
        return objective.student_loss(trio, tokens, draw).total.item()

    assert set(OTHERS) == set(published)
    for name, value in OTHERS.items():
        # step_share counts for t below 1 / (share * steps): in long steps
        base = {"teacher_steps": 2} if name == "step_share" else {}
        assert loss(**base) != loss(**base, **{name: value}), name


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"num_latents": 0}, "num_latents is 0; it must be at least 2"),
        ({"delta": 0.0}, r"delta is 0.0; it must be in \[0.0001, 1\)"),
        ({"delta": 1.0}, "delta is 1.0"),
        ({"near_share": 1.1}, r"near_share is 1.1; it must be in \[0, 1\]"),
        ({"teacher_steps": 0}, "teacher_steps is 0; it must be at least 1"),
        ({"step_share": 0.0}, r"step_share is 0.0; it must be in \(0, 1\)"),
        ({"step_share": 1.0}, "step_share is 1.0"),
        ({"correlation_weight": -1.0}, "correlation_weight is -1.0; it must be 0 or more"),
        ({"correlation_slope": math.inf}, "correlation_slope is inf; it must be finite"),
        ({"correlation_center": math.nan}, "correlation_center is nan; it must be finite"),
    ],
)
def test_settings_outside_the_method_are_refused(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        Di4C(**settings)


def test_a_student_without_a_latent_is_refused() -> None:
    trio = lm("absorbing")
    with pytest.raises(UserError, match="this student has none; set latent_global or latent_pos"):
        Di4C().check(trio.teacher, trio.teacher)
    Di4C().check(*trio[:2])


def test_another_process_is_refused(table: MakeTable) -> None:
    class Gaussian:
        name = "gaussian"

    trio = networks(table, Absorbing(V))
    trio.student.process = Gaussian()
    with pytest.raises(UserError, match="Di4C is defined for the absorbing and the uniform"):
        Di4C().student_loss(trio, torch.zeros(2, L).long(), draw_of(2))


def equal_tokens_teacher(table: MakeTable) -> Any:
    """Knows that both tokens are equal: even odds at (m, m), the visible one otherwise."""
    teacher = table(V, L)
    teacher.logits.data.zero_()
    for row, (a, b) in enumerate(product(range(V), repeat=2)):  # row = first + V * second
        for position, other in ((0, a), (1, b)):
            if other < 2:
                teacher.logits.data[row, position, other] = 8.0
    return teacher.requires_grad_(False)


def test_a_student_learns_in_one_step_that_two_tokens_are_equal(table: MakeTable) -> None:
    """P(x1 = x2): the teacher's one step has 0.5, with any factorised student."""
    torch.manual_seed(0)
    config = DiffusionConfig(
        vocab_size=V,
        model_length=L,
        hidden_dim=16,
        cond_dim=16,
        n_blocks=1,
        n_heads=2,
        dropout=0.0,
        time_conditioning=True,
        latent_global=4,
    )
    student = DiffusionLM(config)
    trio = Networks(equal_tokens_teacher(table), student)
    masked = torch.full((1000, L), 2)
    assert torch.allclose(trio.teacher.table(masked[:1])[..., :2], torch.zeros(2).double())
    sigma = student.process.schedule.sigma(torch.ones(1000))
    latent = student.sample_latent(torch.arange(1000), L, seed=99, step=0)

    def equal() -> float:
        with torch.no_grad():
            logits = student.head(student.features(masked, sigma, latent))
        p = torch.softmax(logits[..., :2].double(), -1)
        return float((p[:, 0] * p[:, 1]).sum(-1).mean())

    assert equal() == pytest.approx(0.5, abs=1e-6)
    # a stronger data term than the published 0.1, for 70 updates
    objective = Di4C(num_latents=8, correlation_weight=1.0)
    optimiser = torch.optim.Adam(student.parameters(), lr=1e-2)
    for step in range(70):
        tokens = torch.randint(0, 2, (32, 1)).expand(32, L)
        draw = Draw(torch.arange(32) + 32 * step, 32, 0, step)
        optimiser.zero_grad()
        objective.student_loss(trio, tokens, draw).mean.backward()
        optimiser.step()
    assert equal() > 0.85


def test_the_distillation_module_runs_it_with_a_student_alone() -> None:
    trio = lm("absorbing", vocab=8)
    module = DistillationModule.from_networks(
        trio.teacher, Di4C(num_latents=2), latent_global=3, latent_position=0, lr=1e-2
    )
    module.configure_model()
    assert module.networks is not None
    assert module.networks.auxiliary is None
    assert module.networks.student.has_latent
    with pytest.raises(UserError, match=r"fake_lr is 0\.1, but Di4C has no fake model"):
        DistillationModule.from_networks(trio.teacher, Di4C(), fake_lr=0.1)
