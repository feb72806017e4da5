"""The alternating objective on the masked process, at the masked positions alone.

The steps and the departures on both processes are those of :mod:`idlm.objectives.alternating`.

One more departure. Sums run over masked positions of z only: at visible ones teacher and fake model
agree exactly, and the published -1e6 entries would drown the logged losses (methods C.7.3).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from idlm.models.modeling import DiffusionLM
from idlm.objectives.base import Draw, LossSum, Networks, mean, row_weights
from idlm.objectives.divergences import entropy
from idlm.processes import Absorbing
from idlm.random import Stream
from idlm.sampling.categorical import draw as draw_categorical

if TYPE_CHECKING:
    from idlm.objectives.alternating import AlternatingDistillation


class Simulation(NamedTuple):
    """One pass of the student and the state it leads to.

    Attributes:
        log_g: log G at the positions masked in the student's input, ``[M, V]``.
        asked: those positions, bool ``[B, L]``.
        t_in: times of the student's input, ``[B]``.
        z: re-noised state, int64 ``[B, L]``.
        time: its times, ``[B]``.
        scored: positions masked in ``z``, bool ``[B, L]``.
    """

    log_g: Tensor
    asked: Tensor
    t_in: Tensor
    z: Tensor
    time: Tensor
    scored: Tensor


def absorbing(model: DiffusionLM) -> Absorbing:
    """The model's process, where the masked computation is the one that applies."""
    process = model.process
    assert isinstance(process, Absorbing)  # checked for each loss
    return process


def simulate(
    objective: AlternatingDistillation, student: DiffusionLM, tokens: Tensor, draw: Draw
) -> Simulation:
    """Run the student on noised data, draw its tokens and re-noise them.

    Args:
        objective: its times and how it re-noises.
        student: the generator; a fresh latent is drawn by the names in ``draw``.
        tokens: clean tokens, int64 ``[B, L]``.
        draw: names the randomness.
    """
    process = absorbing(student)
    length = tokens.shape[1]
    t_in, t_out = objective.times(draw)
    z_in = process.corrupt(tokens, t_in, draw.uniform(length, stream=Stream.CORRUPT))
    asked = z_in == process.mask_id
    latent = draw.latent(student, length)
    hidden = student.features(z_in, process.schedule.sigma(t_in), latent)
    log_g = process.clean_log_probs(student.head(hidden[asked]))

    with torch.no_grad():
        x = tokens.clone()
        x[asked] = draw_categorical(log_g, draw.uniform(length, stream=Stream.TOKEN)[asked])
        noise = draw.uniform(length, stream=Stream.RENOISE)
        if objective.renoise == "fresh":
            z = process.corrupt(x, t_out, noise)
        else:
            shown = noise < process.reveal_probability(t_out, t_in).unsqueeze(-1)
            z = torch.where(asked & ~shown, process.mask_id, x)
    return Simulation(log_g, asked, t_in, z, t_out, z == process.mask_id)


def auxiliary_loss(
    objective: AlternatingDistillation, networks: Networks, tokens: Tensor, draw: Draw
) -> LossSum:
    """w [ CE(sg G | fake) + anchor CE(teacher | fake) ] summed over masked positions of z.

    IDLM's L_fake (methods C.3) for anchor 0; L_AUX of D-MMD (E.2) with the soft target that the
    masked process allows for anchor 1.
    """
    with torch.no_grad():
        state = simulate(objective, networks.student, tokens, draw)
        target = _teacher(objective, networks, state) if objective.anchor else None
    log_fake = _log_probs(objective, networks.fake, state)
    cross = -_expect(state, tokens, log_fake)
    if target is not None:
        cross = cross - objective.anchor * (target.exp() * log_fake).sum(-1)
    total = (_weights(objective, networks.fake, state) * cross).sum()
    return LossSum(total, tokens.numel(), {"fake_masked_ce": mean(cross.detach())})


def student_loss(
    objective: AlternatingDistillation, networks: Networks, tokens: Tensor, draw: Draw
) -> LossSum:
    """-w <G, log teacher - log fake> summed over masked positions of z (methods C.2, E.2)."""
    state = simulate(objective, networks.student, tokens, draw)
    with torch.no_grad():
        gap = _teacher(objective, networks, state) - _log_probs(objective, networks.fake, state)
    per_token = -_expect(state, tokens, gap)
    total = (_weights(objective, networks.student, state) * per_token).sum()
    logs = {"student_entropy": mean(entropy(state.log_g))}
    return LossSum(total, tokens.numel(), logs, asked=state.log_g.shape[0])


def _log_probs(objective: AlternatingDistillation, model: DiffusionLM, state: Simulation) -> Tensor:
    """log p of ``model`` at the scored positions, ``[S, V]``."""
    process = absorbing(model)
    sigma = process.schedule.sigma(state.time)
    hidden = model.features(state.z, sigma, objective.told(model, state.t_in))
    return process.clean_log_probs(model.head(hidden[state.scored]))


def _teacher(objective: AlternatingDistillation, networks: Networks, state: Simulation) -> Tensor:
    """log p of the teacher to distil, sharpened if that is asked for, ``[S, V]``."""
    return objective.sharpening(_log_probs(objective, networks.teacher, state))


def _weights(objective: AlternatingDistillation, model: DiffusionLM, state: Simulation) -> Tensor:
    """w at each scored position, ``[S]``."""
    return row_weights(objective.weights(model.process, state.time), state.scored)


def _expect(state: Simulation, tokens: Tensor, values: Tensor) -> Tensor:
    """<G, values> at each scored position, ``[S]``; G is one-hot x0 where it was visible.

    Args:
        state: the simulation, gradient through its ``log_g``.
        tokens: clean tokens ``[B, L]``.
        values: ``[S, V]``.
    """
    soft = state.asked[state.scored]
    rows = state.scored[state.asked]
    out = values.gather(-1, tokens[state.scored].unsqueeze(-1)).squeeze(-1)
    mixed = (state.log_g[rows].exp() * values[soft]).sum(-1)
    return out.masked_scatter(soft, mixed)
