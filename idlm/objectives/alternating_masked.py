"""The alternating objective on the masked process, at the masked positions alone.

The steps and the departures on both processes are those of :mod:`idlm.objectives.alternating`.

Sums run over masked positions of z only: at visible ones teacher and fake model agree exactly, and
the published -1e6 entries would drown the logged losses (methods C.7.3).

The head runs once at each position that was masked in the student's input, and no table of
``[B, L, V]`` is ever held. The mask of z does not depend on the tokens that are drawn, so they are
drawn only where z shows them, and G is compared only where z hides them; no position needs both.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from idlm.models.modeling import DiffusionLM
from idlm.objectives.base import Draw, LossSum, Networks, row_weights
from idlm.objectives.chunks import in_chunks, sum_of_rows
from idlm.objectives.divergences import entropy, row_dot
from idlm.processes import Absorbing
from idlm.processes.absorbing import LOG_ZERO
from idlm.random import Stream
from idlm.sampling.categorical import draw as draw_categorical

if TYPE_CHECKING:
    from idlm.objectives.alternating import AlternatingDistillation


class Simulation(NamedTuple):
    """One pass of the student and the state it leads to.

    Attributes:
        hidden: the student's features, ``[B, L, D]``, with gradient.
        asked: positions masked in the student's input, bool ``[B, L]``.
        input_said: what a fake model may be told of that input, its time or its share of masked
            positions, ``[B]``.
        z: re-noised state, int64 ``[B, L]``.
        time: its times, ``[B]``.
        scored: positions masked in ``z``, bool ``[B, L]``.
        drawn_entropy: entropy of G in nats, summed over the positions that are asked, not scored.
    """

    hidden: Tensor
    asked: Tensor
    input_said: Tensor
    z: Tensor
    time: Tensor
    scored: Tensor
    drawn_entropy: Tensor


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

    with torch.no_grad():
        noise = draw.uniform(length, stream=Stream.RENOISE)
        if objective.renoise == "fresh":
            z = process.corrupt(tokens, t_out, noise)
        else:
            shown = noise < process.reveal_probability(t_out, t_in).unsqueeze(-1)
            z = torch.where(asked & ~shown, process.mask_id, tokens)
        scored = z == process.mask_id
        drawn = asked & ~scored

        def tokens_of(hidden: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
            log_g = torch.log_softmax(_clean_logits(student, hidden), -1)
            return draw_categorical(log_g, noise), entropy(log_g)

        coins = draw.uniform(length, stream=Stream.TOKEN)
        z[drawn], spread = in_chunks(
            tokens_of, hidden[drawn], coins[drawn], numbers=process.vocab_size
        )
    input_said = asked.float().mean(1) if objective.fake_sees == "input_masks" else t_in
    return Simulation(hidden, asked, input_said, z, t_out, scored, spread.sum())


def auxiliary_loss(
    objective: AlternatingDistillation, networks: Networks, tokens: Tensor, draw: Draw
) -> LossSum:
    """w [ CE(sg G | fake) + anchor CE(teacher | fake) ] summed over masked positions of z.

    IDLM's L_fake (methods C.3) for anchor 0; L_AUX of D-MMD (E.2) with the soft target that the
    masked process allows for anchor 1.
    """
    with torch.no_grad():
        state = simulate(objective, networks.student, tokens, draw)
        teacher = _features(objective, networks.teacher, state) if objective.anchor else None
    fake, process = networks.fake, absorbing(networks.fake)

    def cross_entropy(
        hidden: Tensor, weight: Tensor, answer: Tensor, soft: Tensor, x0: Tensor, *anchor: Tensor
    ) -> tuple[Tensor, Tensor]:
        log_fake = torch.log_softmax(_clean_logits(fake, hidden), -1)
        with torch.no_grad():
            law = _law(networks.student, answer, soft, x0)
            if anchor:
                target = _teacher(objective, networks, *anchor).exp_()
                law = law.add_(target, alpha=objective.anchor)
        cross = -row_dot(law, log_fake)
        return weight * cross, cross

    tables = [_features(objective, fake, state), _weights(objective, fake, state)]
    tables += [*_answers(state, tokens), *([] if teacher is None else [teacher])]
    size = process.vocab_size
    total, plain = sum_of_rows(cross_entropy, *tables, trained=fake, vocab_size=size)
    return LossSum(total, tokens.numel(), {"fake_masked_ce": plain / state.scored.sum()})


def student_loss(
    objective: AlternatingDistillation, networks: Networks, tokens: Tensor, draw: Draw
) -> LossSum:
    """-w <G, log teacher - log fake> summed over masked positions of z (methods C.2, E.2)."""
    state = simulate(objective, networks.student, tokens, draw)
    student, process = networks.student, absorbing(networks.student)
    with torch.no_grad():
        teacher = _features(objective, networks.teacher, state)
        fake = _features(objective, networks.fake, state)

    def score(
        teacher: Tensor, fake: Tensor, weight: Tensor, answer: Tensor, soft: Tensor, x0: Tensor
    ) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            gap = _teacher(objective, networks, teacher)
            gap = gap.sub_(torch.log_softmax(_clean_logits(networks.fake, fake), -1))
            expected = gap.gather(-1, x0.unsqueeze(-1)).squeeze(-1)
            gap = _where(gap, soft)
        logits = _clean_logits(student, _where(answer, soft))
        law = torch.softmax(logits, -1)
        expected = expected.masked_scatter(soft, row_dot(law, gap))
        with torch.no_grad():  # H = log Z - <G, logits>, without another table
            best, token = law.max(-1, keepdim=True)
            log_z = (logits.gather(-1, token) - best.log()).squeeze(-1)
            spread = log_z - row_dot(law, logits)
        return -weight * expected, spread.new_zeros(len(soft)).masked_scatter(soft, spread)

    tables = [teacher, fake, _weights(objective, student, state), *_answers(state, tokens)]
    size = process.vocab_size
    total, spread = sum_of_rows(score, *tables, trained=student, vocab_size=size)
    asked = state.asked.sum()
    logs = {"student_entropy": (spread + state.drawn_entropy) / asked}
    return LossSum(total, tokens.numel(), logs, asked=int(asked))


def _features(objective: AlternatingDistillation, model: DiffusionLM, state: Simulation) -> Tensor:
    """Features of teacher or fake model at the scored positions, ``[S, D]``."""
    sigma = absorbing(model).schedule.sigma(state.time)
    return model.features(state.z, sigma, objective.told(model, state.input_said))[state.scored]


def _teacher(objective: AlternatingDistillation, networks: Networks, hidden: Tensor) -> Tensor:
    """log p of the teacher to distil, sharpened if that is asked for, a new table ``[r, V]``."""
    model = networks.teacher
    return objective.sharpening(torch.log_softmax(_clean_logits(model, hidden), -1))


def _clean_logits(model: DiffusionLM, hidden: Tensor) -> Tensor:
    """Logits of x0 at masked positions, ``[r, V]`` in fp32 at least; nothing is on the mask."""
    logits = model.head(hidden)
    logits = logits if logits.dtype == torch.float64 else logits.float()
    lowered: Tensor = _Lowered.apply(logits, absorbing(model).mask_id)
    return lowered


class _Lowered(torch.autograd.Function):
    """A column of a new table set to log 0 in place: autograd's own way makes two more tables."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, column: int) -> Tensor:
        logits[..., column] = LOG_ZERO
        ctx.mark_dirty(logits)
        return logits

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None  # that of the column is 0: softmax gave it no weight


def _weights(objective: AlternatingDistillation, model: DiffusionLM, state: Simulation) -> Tensor:
    """w at each scored position, ``[S]``."""
    return row_weights(objective.weights(model.process, state.time), state.scored)


def _answers(state: Simulation, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What makes G at the S scored positions.

    Returns:
        The student's features ``[S, D]``; whether it was asked there, ``[S]``: where it was not,
        which only fresh noise brings about, G is one-hot; and the data ``[S]`` that it is then.
    """
    return state.hidden[state.scored], state.asked[state.scored], tokens[state.scored]


def _law(student: DiffusionLM, answer: Tensor, soft: Tensor, x0: Tensor) -> Tensor:
    """G at some scored positions, ``[r, V]``, from :func:`_answers`; without gradient."""
    law = torch.softmax(_clean_logits(student, _where(answer, soft)), -1)
    if len(law) == len(soft):
        return law
    full = law.new_zeros(len(soft), law.shape[-1])
    full[soft] = law
    return full.scatter_add_(-1, x0.unsqueeze(-1), (~soft).to(law.dtype).unsqueeze(-1))


def _where(rows: Tensor, chosen: Tensor) -> Tensor:
    """The chosen rows; all of them are not copied."""
    return rows if bool(chosen.all()) else rows[chosen]
