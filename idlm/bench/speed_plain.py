"""The same work done plainly, with tables ``[B, L, V]``: what ``idlm bench speed`` compares with.

Sampler and losses are written as the formulas stand, in the manner of the published code: the head
at every position, tables of all of them, and every token the winner of a race of V exponentials. A
race has the law of our draws. Without one the losses draw our tokens, which makes them the
reference of the tests: the same values and gradients. All of it is in one file, which nothing else
needs: what is plain is to be read in one go.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from idlm.models.dit import Latent
from idlm.models.modeling import DiffusionLM
from idlm.objectives.alternating import AlternatingDistillation
from idlm.objectives.alternating_masked import absorbing
from idlm.objectives.alternating_uniform import draw_posterior, given_state
from idlm.objectives.base import Draw, LossSum, Networks, frozen, two_times
from idlm.objectives.chunks import over_positions
from idlm.objectives.idlm_duo import IDLMDuo
from idlm.processes import Uniform
from idlm.random import Stream
from idlm.sampling.categorical import draw as draw_categorical

Loss = Callable[[Networks, Tensor, Draw], LossSum]
_Rows = tuple[Tensor, ...]


@torch.no_grad()
def plain_sample(model: DiffusionLM, count: int, length: int, steps: int, *, seed: int) -> Tensor:
    """MDLM's ancestral sampler: at every step the posterior of every position, in float64.

    Args:
        model: of the absorbing process, in eval mode.
        count: B, number of samples.
        length: L.
        steps: of the grid t = 1, 1 - 1/N, ..., 0.
        seed: of the race of V exponentials that draws each token.

    Returns:
        int64 ``[B, L]``.
    """
    process = absorbing(model)
    sample = torch.arange(count, device=model.device)
    generator = torch.Generator(model.device).manual_seed(seed)
    z = torch.full((count, length), process.mask_id, device=model.device)
    grid = torch.linspace(1.0, 0.0, steps + 1, dtype=torch.float64, device=model.device)
    for i in range(steps):
        sigma = process.schedule.sigma(grid[i]).float().expand(count)
        latent = model.sample_latent(sample, length, seed=seed, step=i)
        logits = model.head(model.features(z, sigma, latent))
        # masked at t, a position is x0 at s with chance 1 - stays
        stays = 1.0 - float(process.reveal_probability(grid[i + 1], grid[i]))
        law = process.clean_log_probs(logits).double().exp_().mul_(1.0 - stays)
        law[..., process.mask_id] = stays
        z = torch.where(z == process.mask_id, _winner(law, generator), z)
    return z


def _winner(law: Tensor, race: torch.Generator) -> Tensor:
    """A draw from each row of probabilities ``[..., V]``, a table that is used up."""
    uniform = torch.rand(law.shape, dtype=law.dtype, device=law.device, generator=race)
    times = uniform.add_(1e-10).log_().neg_().add_(1e-10)  # exponential, with guards as published
    return law.div_(times).argmax(-1)


def plain_student_loss(
    objective: AlternatingDistillation,
    networks: Networks,
    tokens: Tensor,
    draw: Draw,
    *,
    race: torch.Generator | None = None,
) -> LossSum:
    """-w <G, log teacher - log fake> at the masked positions of z, from whole tables.

    On the uniform process at all positions, each law given its own state, too.

    Args:
        objective: IDLM, D-MMD or what is between.
        networks: all three.
        tokens: clean tokens, int64 ``[B, L]``.
        draw: names the randomness.
        race: of the exponentials that draw the student's tokens as the published code does; None
            draws the tokens of the lean losses.
    """
    if isinstance(networks.student.process, Uniform):
        return _uniform_student_loss(objective, networks, tokens, draw, race)
    log_g, z, input_said, time = _simulate(objective, networks.student, tokens, draw, race)
    with torch.no_grad():
        log_teacher, log_fake = (
            _log_probs(objective, model, z, input_said, time)
            for model in (networks.teacher, networks.fake)
        )
        gap = objective.sharpening(log_teacher) - log_fake
    return _sum(objective, networks, -(log_g.exp() * gap).sum(-1), z, time)


def plain_auxiliary_loss(
    objective: AlternatingDistillation,
    networks: Networks,
    tokens: Tensor,
    draw: Draw,
    *,
    race: torch.Generator | None = None,
) -> LossSum:
    """w [ CE(G | fake) + anchor CE(teacher | fake) ] at the same positions, from whole tables.

    On the uniform process at all positions, with the drawn token in place of G. Arguments as of
    :func:`plain_student_loss`.
    """
    if isinstance(networks.student.process, Uniform):
        return _uniform_auxiliary_loss(objective, networks, tokens, draw, race)
    with torch.no_grad():
        log_g, z, input_said, time = _simulate(objective, networks.student, tokens, draw, race)
        target = log_g.exp()
        if objective.anchor:
            log_teacher = _log_probs(objective, networks.teacher, z, input_said, time)
            target = target + objective.anchor * objective.sharpening(log_teacher).exp()
    log_fake = _log_probs(objective, networks.fake, z, input_said, time)
    return _sum(objective, networks, -(target * log_fake).sum(-1), z, time)


def _simulate(
    objective: AlternatingDistillation,
    student: DiffusionLM,
    tokens: Tensor,
    draw: Draw,
    race: torch.Generator | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """log G ``[B, L, V]``, the re-noised state, what a fake model is told, and the state's time."""
    process, length = absorbing(student), tokens.shape[1]
    t_in, t_out = objective.times(draw)
    z_in = process.corrupt(tokens, t_in, draw.uniform(length, stream=Stream.CORRUPT))
    latent = draw.latent(student, length)
    logits = student(z_in, process.schedule.sigma(t_in), latent).logits
    log_g = process.log_probs(logits, z_in)
    with torch.no_grad():
        x = _tokens(log_g, draw, race)
        noise = draw.uniform(length, stream=Stream.RENOISE)
        if objective.renoise == "fresh":
            z = process.corrupt(x, t_out, noise)
        else:
            shown = noise < process.reveal_probability(t_out, t_in).unsqueeze(-1)
            z = torch.where((z_in == process.mask_id) & ~shown, process.mask_id, x)
    masks = (z_in == process.mask_id).float().mean(1)
    return log_g, z, masks if objective.fake_sees == "input_masks" else t_in, t_out


def _log_probs(
    objective: AlternatingDistillation,
    model: DiffusionLM,
    z: Tensor,
    input_said: Tensor,
    time: Tensor,
) -> Tensor:
    process = absorbing(model)
    logits = model(z, process.schedule.sigma(time), objective.told(model, input_said)).logits
    return process.log_probs(logits, z)


def _sum(
    objective: AlternatingDistillation, networks: Networks, rows: Tensor, z: Tensor, time: Tensor
) -> LossSum:
    process = absorbing(networks.student)
    weight = objective.weights(process, time).unsqueeze(-1)
    masked = z == process.mask_id
    return LossSum(torch.where(masked, weight * rows, 0.0).sum(), z.numel())


def _tokens(log_g: Tensor, draw: Draw, race: torch.Generator | None) -> Tensor:
    """A token at every position, int64 ``[B, L]``."""
    if race is None:
        return draw_categorical(log_g, draw.uniform(log_g.shape[1], stream=Stream.TOKEN))
    return _winner(log_g.exp(), race)


def _uniform_student_loss(
    objective: AlternatingDistillation,
    networks: Networks,
    tokens: Tensor,
    draw: Draw,
    race: torch.Generator | None,
) -> LossSum:
    state = _simulate_uniform(objective, networks.student, tokens, draw, race)
    with torch.no_grad():
        gap = _given(objective, networks.teacher, state, sharp=True)
        gap = gap - _given(objective, networks.fake, state)
    weight = objective.weights(networks.student.process, state.time).unsqueeze(-1)
    return LossSum(-(weight * (state.log_g.exp() * gap).sum(-1)).sum(), tokens.numel())


def _uniform_auxiliary_loss(
    objective: AlternatingDistillation,
    networks: Networks,
    tokens: Tensor,
    draw: Draw,
    race: torch.Generator | None,
) -> LossSum:
    with torch.no_grad():
        state = _simulate_uniform(objective, networks.student, tokens, draw, race)
        target = torch.nn.functional.one_hot(state.x, state.log_g.shape[-1]).to(state.log_g.dtype)
        if objective.anchor:
            teacher = _given(objective, networks.teacher, state, sharp=True)
            target = target + objective.anchor * teacher.exp()
    rows = -(target * _given(objective, networks.fake, state)).sum(-1)
    weight = objective.weights(networks.fake.process, state.time).unsqueeze(-1)
    return LossSum((weight * rows).sum(), tokens.numel())


class _UniformState(NamedTuple):
    """log G ``[B, L, V]``; tokens drawn and re-noised ``[B, L]``; times of input and state."""

    log_g: Tensor
    x: Tensor
    z: Tensor
    t_in: Tensor
    time: Tensor


def _simulate_uniform(
    objective: AlternatingDistillation,
    student: DiffusionLM,
    tokens: Tensor,
    draw: Draw,
    race: torch.Generator | None,
) -> _UniformState:
    process, length = cast(Uniform, student.process), tokens.shape[1]
    t_in, t_out = objective.times(draw)
    z_in = process.corrupt(tokens, t_in, draw.uniform(length, stream=Stream.CORRUPT))
    latent = draw.latent(student, length)
    logits = student(z_in, process.schedule.sigma(t_in), latent).logits
    log_g = given_state(process, process.log_probs(logits, z_in), z_in, t_in)
    with torch.no_grad():
        x = _tokens(log_g, draw, race)
        noise = draw.uniform(length, stream=Stream.RENOISE)
        if objective.renoise == "fresh":
            z = process.corrupt(x, t_out, noise)
        else:
            z = draw_posterior(process, x, z_in, t_out, t_in, noise)
    return _UniformState(log_g, x, z, t_in, t_out)


def _given(
    objective: AlternatingDistillation,
    model: DiffusionLM,
    state: _UniformState,
    *,
    sharp: bool = False,
) -> Tensor:
    """log E[x | z] of a network, ``[B, L, V]``."""
    process = cast(Uniform, model.process)
    told = objective.told(model, state.t_in)
    logits = model(state.z, process.schedule.sigma(state.time), told).logits
    log_p = process.log_probs(logits, state.z)
    return given_state(
        process, objective.sharpening(log_p) if sharp else log_p, state.z, state.time
    )


def plain_duo_student_loss(
    objective: IDLMDuo, networks: Networks, tokens: Tensor, draw: Draw
) -> LossSum:
    """NELBO of the teacher on G less that of the fake model, from whole tables G, w and noise."""
    process, _ = objective.process(networks.student)
    g, w, z, time = _relax(objective, networks.student, tokens, draw)
    teacher, fake = networks.teacher, networks.fake
    with frozen(teacher, fake):
        hidden = [_relaxed_features(objective, model, w, time) for model in (teacher, fake)]

    def difference(teacher_hidden: Tensor, fake_hidden: Tensor, g: Tensor, z: Tensor) -> _Rows:
        with frozen(teacher, fake):
            rows = [
                process.nll_per_token(process.log_probs(model.head(hidden), z), g, z, time)
                for model, hidden in ((teacher, teacher_hidden), (fake, fake_hidden))
            ]
        return (rows[0] - rows[1],)

    (gap,) = over_positions(difference, *hidden, g, z, vocab_size=process.vocab_size)
    return LossSum(gap.sum(), tokens.numel())


def plain_duo_auxiliary_loss(
    objective: IDLMDuo, networks: Networks, tokens: Tensor, draw: Draw
) -> LossSum:
    """NELBO of the fake model on the student's G, from whole tables G, w and noise."""
    process, _ = objective.process(networks.fake)
    with torch.no_grad():
        g, w, z, time = _relax(objective, networks.student, tokens, draw)
    hidden = _relaxed_features(objective, networks.fake, w, time)

    def nelbo(hidden: Tensor, g: Tensor, z: Tensor) -> _Rows:
        log_fake = process.log_probs(networks.fake.head(hidden), z)
        return (process.nll_per_token(log_fake, g, z, time),)

    (loss,) = over_positions(nelbo, hidden, g, z, vocab_size=process.vocab_size)
    return LossSum(loss.sum(), tokens.numel())


def _relax(
    objective: IDLMDuo, student: DiffusionLM, tokens: Tensor, draw: Draw
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """G and the relaxed state ``[B, L, K]`` that it leads to, its argmax, and its times."""
    _, relaxation = objective.process(student)
    shape = (tokens.shape[1], relaxation.vocab_size)
    t_in, t_out = (t.double() for t in two_times(draw, objective.time_draws))
    dtype = torch.promote_types(student.dtype, torch.float32)
    noise = draw.normal(*shape, stream=Stream.RELAX, dtype=dtype)
    w_in = relaxation.state(tokens, t_in, noise)
    latent = draw.latent(student, tokens.shape[1])
    hidden = _relaxed_features(objective, student, w_in, t_in, latent)
    g = student.process.log_probs(student.head(hidden), w_in.argmax(-1)).exp()
    noise = draw.normal(*shape, stream=Stream.RELAX_RENOISE, dtype=dtype)
    w = relaxation.state(g.detach() if objective.detach_state else g, t_out, noise)
    return g, w, w.detach().argmax(-1), t_out


def _relaxed_features(
    objective: IDLMDuo, model: DiffusionLM, w: Tensor, t: Tensor, latent: Latent | None = None
) -> Tensor:
    _, relaxation = objective.process(model)
    scores = relaxation.scores(w, tau=objective.tau)
    return model.features(scores, relaxation.sigma(t).to(w.dtype), latent)


def plain_losses(objective: Any, race: torch.Generator) -> tuple[Loss, Loss]:
    """The plain auxiliary loss and the plain student loss of an objective.

    Args:
        objective: any of those that have plain losses here.
        race: of the tokens; IDLM-Duo draws none.
    """
    if isinstance(objective, IDLMDuo):
        return partial(plain_duo_auxiliary_loss, objective), partial(
            plain_duo_student_loss, objective
        )
    losses = plain_auxiliary_loss, plain_student_loss
    return partial(losses[0], objective, race=race), partial(losses[1], objective, race=race)
