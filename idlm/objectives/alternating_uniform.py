"""The alternating objective on the uniform process: every position is noised, and every one counts.

The steps are those of :mod:`idlm.objectives.alternating` (D-MMD, arXiv 2603.20155, uniform case;
methods E). Two things differ from the masked case. A state does not tell whether it is clean, so
the sums run over all positions. And z depends on the very token that was drawn, so the fake
model's target is that token: E[x | z] is not the mean of the student's probabilities given z.

What a network of the uniform process predicts is not E[x | z]. The NELBO of UDLM and Duo is least
where the prediction at a position is the law of its token given the *other* positions: the state
of its own position enters that loss by itself. D-MMD matches E[x | z], so each prediction is first
multiplied by q(z_l | x_l), see :func:`given_state`. The student's draws from that, followed by the
posterior, then have exactly the law of Duo's sampler, which plugs the prediction itself into the
posterior, at any number of steps.

Departures beside those of :mod:`idlm.objectives.alternating`, of which one reads differently here:
there is no mask, so a student's noise per position is added to the embedding of every token, and
D-MMD gives uniform students none at all, because z_1 is random (methods E.4). The "traditional"
parameterisation of D-MMD's appendix, one-step posteriors in place of predictions, is not offered.

The student's loss keeps the paper's soft probabilities, <G, log teacher(z) - log fake(z)>. With
the fake model at its optimum and p = E[G | z] that is sum_v p_v log((P_v + q_v) / 2 q_v), where
P = E[x | z] and q is the teacher; p = P, and with it a divergence, for a student that is sure of
each token.

No table of ``[B, L, V]`` is ever held: see :mod:`idlm.objectives.chunks`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, cast

import torch
from torch import Tensor

from idlm.models.modeling import DiffusionLM
from idlm.objectives.base import Draw, LossSum, Networks
from idlm.objectives.chunks import over_positions, sum_of_rows
from idlm.objectives.divergences import entropy
from idlm.processes import Uniform
from idlm.random import Stream
from idlm.sampling.categorical import draw as draw_categorical

if TYPE_CHECKING:
    from idlm.objectives.alternating import AlternatingDistillation


class UniformSimulation(NamedTuple):
    """One pass of the student and the state it leads to.

    Attributes:
        hidden: the student's features, with gradient, ``[B, L, D]``.
        z_in: the student's input, int64 ``[B, L]``.
        x: the tokens drawn from the student, int64 ``[B, L]``.
        z: re-noised state, int64 ``[B, L]``.
        t_in: times of the student's input, ``[B]``.
        time: times of ``z``, ``[B]``.
    """

    hidden: Tensor
    z_in: Tensor
    x: Tensor
    z: Tensor
    t_in: Tensor
    time: Tensor


def given_state(process: Uniform, log_p: Tensor, z: Tensor, t: Tensor) -> Tensor:
    """log E[x | z] from a network's prediction: Bayes with what a position's own state says.

    P(x_l | z) is proportional to P(x_l | z at other positions) q(z_l | x_l), and q(z_l | x_l) is
    1 + K alpha / (1 - alpha) times larger for x_l = z_l than for every other token.

    Args:
        process: the uniform process.
        log_p: the network's log-probabilities, ``[B, L, V]``, or of rows ``[R, V]``.
        z: the states it saw, ``[B, L]`` or ``[R]``.
        t: their times, ``[B]`` or ``[R]``, above 0.

    Returns:
        Log-probabilities in nats, of the shape of ``log_p``.
    """
    alpha = process.schedule.alpha(t.double())
    more = torch.log1p(process.vocab_size * alpha / (1.0 - alpha)).to(log_p.dtype)
    more = more.reshape(-1, *(1 for _ in z.shape)).expand(*z.shape, 1)
    return torch.log_softmax(log_p.scatter_add(-1, z.unsqueeze(-1), more), dim=-1)


def simulate(
    objective: AlternatingDistillation, student: DiffusionLM, tokens: Tensor, draw: Draw
) -> UniformSimulation:
    """Run the student on noised data, draw a token at every position and re-noise them.

    Args:
        objective: its times and how it re-noises.
        student: the generator; it may have a latent, though z_in is random enough (methods E.4).
        tokens: clean tokens, int64 ``[B, L]``.
        draw: names the randomness.
    """
    process = cast(Uniform, student.process)
    length = tokens.shape[1]
    t_in, t_out = objective.times(draw)
    z_in = process.corrupt(tokens, t_in, draw.uniform(length, stream=Stream.CORRUPT))
    latent = draw.latent(student, length)
    hidden = student.features(z_in, process.schedule.sigma(t_in), latent)

    def drawn(hidden: Tensor, z: Tensor, noise: Tensor) -> tuple[Tensor]:
        log_g = given_state(process, process.log_probs(student.head(hidden), z), z, t_in)
        return (draw_categorical(log_g, noise),)

    with torch.no_grad():
        noise = draw.uniform(length, stream=Stream.TOKEN)
        (x,) = over_positions(drawn, hidden, z_in, noise, vocab_size=process.vocab_size)
        noise = draw.uniform(length, stream=Stream.RENOISE)
        if objective.renoise == "fresh":
            z = process.corrupt(x, t_out, noise)
        else:
            z = draw_posterior(process, x, z_in, t_out, t_in, noise)
    return UniformSimulation(hidden, z_in, x, z, t_in, t_out)


def draw_posterior(
    process: Uniform, x: Tensor, z_t: Tensor, s: Tensor, t: Tensor, noise: Tensor
) -> Tensor:
    """Draw z_s ~ q(z_s | x, z_t) for hard ``x`` with one number per position and no table.

    One number chooses among the three laws that the posterior mixes, see
    :meth:`idlm.processes.Uniform.parts`, and where it falls within the uniform one says the state.

    Args:
        process: the uniform process.
        x: clean tokens, int64 ``[B, L]``.
        z_t: states, int64 ``[B, L]``.
        s: earlier times ``[B]``.
        t: later times ``[B]``.
        noise: float64 uniforms in ``[0, 1)``, ``[B, L]``.

    Returns:
        int64 ``[B, L]``.
    """
    k = process.vocab_size
    alpha_s, alpha_t = (process.schedule.alpha(time).double().unsqueeze(-1) for time in (s, t))
    clean, anywhere, stay, slope = process.parts(alpha_s, alpha_t)
    u = noise * (clean + anywhere + stay + slope * (x == z_t))
    # the part of the number that decided is uniform again, and says where "anywhere" is
    state = (u / anywhere * k).long().clamp(max=k - 1)
    jumped = torch.where(u < anywhere + clean, x, z_t)
    return torch.where(u < anywhere, state, jumped)


def auxiliary_loss(
    objective: AlternatingDistillation, networks: Networks, tokens: Tensor, draw: Draw
) -> LossSum:
    """w [ CE(x | fake) + anchor CE(teacher | fake) ] summed, x the drawn token (E.2)."""
    process = cast(Uniform, networks.fake.process)
    with torch.no_grad():
        state = simulate(objective, networks.student, tokens, draw)
        teacher = _features(objective, networks.teacher, state) if objective.anchor else None
    fake = _features(objective, networks.fake, state)

    def cross_entropy(
        fake: Tensor, x: Tensor, z: Tensor, time: Tensor, weight: Tensor, *anchor: Tensor
    ) -> tuple[Tensor, Tensor]:
        log_fake = process.log_probs(networks.fake.head(fake), z)
        log_fake = given_state(process, log_fake, z, time)
        cross = -log_fake.gather(-1, x.unsqueeze(-1)).squeeze(-1)
        for teacher in anchor:
            with torch.no_grad():
                target = _teacher(objective, networks, teacher, z, time).exp()
            cross = cross - objective.anchor * (target * log_fake).sum(-1)
        return weight * cross, cross

    weights = objective.weights(process, state.time)
    times = (per_position(number, tokens) for number in (state.time, weights))
    tables = [fake, state.x, state.z, *times, *([] if teacher is None else [teacher])]
    rows = [table.flatten(0, 1) for table in tables]
    size = process.vocab_size
    total, plain = sum_of_rows(cross_entropy, *rows, trained=networks.fake, vocab_size=size)
    return LossSum(total, tokens.numel(), {"fake_ce": plain / tokens.numel()})


def student_loss(
    objective: AlternatingDistillation, networks: Networks, tokens: Tensor, draw: Draw
) -> LossSum:
    """-w <G, log teacher - log fake> over all positions, gradient through G alone (E.2)."""
    process = cast(Uniform, networks.student.process)
    state = simulate(objective, networks.student, tokens, draw)
    with torch.no_grad():
        teacher, fake = (_features(objective, m, state) for m in (networks.teacher, networks.fake))

    def score(
        student: Tensor,
        z_in: Tensor,
        t_in: Tensor,
        teacher: Tensor,
        fake: Tensor,
        z: Tensor,
        time: Tensor,
        weight: Tensor,
    ) -> tuple[Tensor, Tensor]:
        log_g = process.log_probs(networks.student.head(student), z_in)
        log_g = given_state(process, log_g, z_in, t_in)
        with torch.no_grad():
            log_fake = process.log_probs(networks.fake.head(fake), z)
            gap = _teacher(objective, networks, teacher, z, time)
            gap = gap.sub_(given_state(process, log_fake, z, time))
        return -weight * (log_g.exp() * gap).sum(-1), entropy(log_g)

    weights = objective.weights(process, state.time)
    t_in, *times = (per_position(number, tokens) for number in (state.t_in, state.time, weights))
    tables = (state.hidden, state.z_in, t_in, teacher, fake, state.z, *times)
    rows = [table.flatten(0, 1) for table in tables]
    size = process.vocab_size
    total, spread = sum_of_rows(score, *rows, trained=networks.student, vocab_size=size)
    return LossSum(total, tokens.numel(), {"student_entropy": spread / tokens.numel()})


def per_position(numbers: Tensor, like: Tensor) -> Tensor:
    """A number per sequence ``[B]`` at each of its positions, ``[B, L]``."""
    return numbers.unsqueeze(-1).expand(like.shape)


def _teacher(
    objective: AlternatingDistillation, networks: Networks, hidden: Tensor, z: Tensor, t: Tensor
) -> Tensor:
    """log E[x | z] of the teacher; sharpened first, as a sampler sharpens the prediction."""
    process = cast(Uniform, networks.teacher.process)
    log_p = process.log_probs(networks.teacher.head(hidden), z)
    return given_state(process, objective.sharpening(log_p), z, t)


def _features(
    objective: AlternatingDistillation, model: DiffusionLM, state: UniformSimulation
) -> Tensor:
    sigma = model.process.schedule.sigma(state.time)
    return model.features(state.z, sigma, objective.told(model, state.t_in))
