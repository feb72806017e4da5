"""IDLM on the uniform process, with the gradient through Duo's relaxed state (arXiv 2602.19066).

IDLM-Duo, and IDLM-DCD where the teacher is a DCD-distilled checkpoint (methods C.4): the networks
see the Gaussian relaxation w = a x + s eps of a state instead of its argmax, so the state that
scores the student's output G is a differentiable function of it.

Departures from the paper's code. tau is constant: there it drops from 1e-3 to 1e-10, which makes
the inputs hard and cuts the gradient, once Lightning has counted 500,000 optimiser steps, of both
networks together. alpha' is exact (see :class:`idlm.processes.GaussianRelaxation`). The two times
of an update are independent by default; the code ties them (methods C.7.2). The range of gamma
follows the vocabulary (see :mod:`idlm.objectives.gammas`). Losses are sums that the caller divides
by the token count, where the code sums over positions: a constant factor L. Students have a latent
by default, where the paper's have none: a vector of 64 that enters every adaLN by rows of its own,
and 64 numbers per position that are added to the embedding of the relaxed state.

What keeps it stable, on three equal tokens of K = 6 (docs/decisions.md has the numbers): a range
that reaches noise, without which nothing is learned at the sampler's start, and learning rates that
fall to zero, without which it drifts. The gradient through softmax(w / tau) has a heavy tail, norms
of 0.1 with outliers beyond 1000, so gradients are to be clipped, and near the usual norm. The
objective judges outputs pooled over the times of the student's input and does not ask that they
have the data's law at each time, so more sampling steps are not sure to be better.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from idlm.errors import UserError
from idlm.models.dit import Embedded
from idlm.models.modeling import DiffusionLM
from idlm.objectives.base import (
    DistillationObjective,
    Draw,
    LossSum,
    Networks,
    TimeDraws,
    frozen,
    two_times,
)
from idlm.objectives.chunks import over_positions, sum_of_rows
from idlm.objectives.divergences import entropy
from idlm.objectives.gammas import check_range, relaxation
from idlm.objectives.pairing import check_pairing
from idlm.processes import GaussianRelaxation, Uniform
from idlm.random import Stream

# gamma at t = 0 and at t = 1, for 50,257 states
_PUBLISHED = (-3.55, -1.85)
# the NELBO's tables are float64: a chunk of half as many positions for the same memory
_WIDE = 2


class Generated(NamedTuple):
    """What the student makes of relaxed data.

    Attributes:
        hidden: its features, ``[B, L, D]``; its head makes log G of them.
        z: the argmax of its input, int64 ``[B, L]``.
    """

    hidden: Tensor
    z: Tensor


class Relaxed(NamedTuple):
    """The relaxed state that a student's output leads to, as networks take it in.

    Attributes:
        embedded: for each network its embedding of the state, ``[B, L, D]``, a function of G.
        z: its argmax, int64 ``[B, L]``.
        time: its times, float64 ``[B]``.
    """

    embedded: tuple[Tensor, ...]
    z: Tensor
    time: Tensor


class IDLMDuo(DistillationObjective):
    """L(teacher, p_G) - min_f L(f, p_G) with the uniform NELBO on relaxed states.

    Section 3 and algorithm 1 of the paper (methods C.1, C.4); the NELBO is
    :meth:`idlm.processes.Uniform.nll_per_token` with soft data G. Gradient reaches the student
    through G in the NELBO and through w in the inputs of teacher and fake model; the argmax
    carries none.

    No table of ``[B, L, K]`` is ever held, nor the noise of one: a chunk of positions is relaxed,
    embedded and dropped, and made again, noise and all, in the backward pass and where the NELBO
    asks for G. What networks get of a relaxed state is its embedding.

    Args:
        gamma_min: log noise-to-signal ratio at t = 0, the published -3.55.
        gamma_max: the same at t = 1, the published -1.85; alpha then falls from 0.945 to 0.049 for
            K = 50257. If neither is given, alpha falls like that for the model's own K.
        tau: temperature of the relaxed input softmax(w / tau), the published 1e-3.
        time_draws: ``independent`` as in the paper, ``tied`` as in its code.
        detach_state: cut the gradient through w, the paper's ablation, which drifts to high
            entropy and perplexity.

    Raises:
        UserError: for a value outside what is listed.
    """

    processes: ClassVar[tuple[str, ...]] = ("uniform",)
    shardable: ClassVar[bool] = True

    def __init__(
        self,
        *,
        gamma_min: float | None = None,
        gamma_max: float | None = None,
        tau: float = 1e-3,
        time_draws: TimeDraws = "independent",
        detach_state: bool = False,
    ) -> None:
        if time_draws not in ("independent", "tied"):
            raise UserError(f"time_draws is {time_draws!r}; choose one of independent, tied")
        # checked by the one who uses it, before anything is trained
        GaussianRelaxation.scores(torch.zeros(()), tau=tau)
        self.gammas = check_range(gamma_min, gamma_max)
        self.tau = tau
        self.time_draws = time_draws
        self.detach_state = detach_state

    def process(self, model: DiffusionLM) -> tuple[Uniform, GaussianRelaxation]:
        """The uniform process that the argmax of a relaxed state follows, and the relaxation.

        Raises:
            UserError: if the model is of another process.
        """
        check_pairing(self, model.process)
        size = model.process.vocab_size
        schedule = relaxation(self.gammas, _PUBLISHED, size)
        return Uniform(size, schedule), schedule

    def generate(self, student: DiffusionLM, tokens: Tensor, draw: Draw) -> Generated:
        """Run the student on relaxed data.

        Args:
            student: the generator; a fresh latent is drawn by the names in ``draw``.
            tokens: clean tokens, int64 ``[B, L]``.
            draw: names the randomness.
        """
        _, relaxation = self.process(student)
        t, _ = self.times(draw)
        embed = student.embedder()

        def enter(first: int, tokens: Tensor) -> tuple[Tensor, Tensor]:
            noise = _noise(student, tokens, draw, Stream.RELAX, first)
            w = relaxation.state(tokens, t, noise)
            return embed(relaxation.scores(w, tau=self.tau)), w.argmax(-1)

        size = relaxation.vocab_size
        embedded, z = over_positions(enter, tokens, vocab_size=size, numbered=True)
        latent = draw.latent(student, tokens.shape[1])
        return Generated(_features(student, relaxation, embedded, t, latent), z)

    def relax(
        self, student: DiffusionLM, made: Generated, readers: Sequence[DiffusionLM], draw: Draw
    ) -> Relaxed:
        """Relax the student's output and embed it as each of the readers does.

        Args:
            student: the generator.
            made: what :meth:`generate` gave.
            readers: networks that take the state in; gradient reaches the embeddings of those that
                are not frozen when this is called.
            draw: names the randomness.
        """
        _, relaxation = self.process(student)
        _, t = self.times(draw)
        embedders = [reader.embedder() for reader in readers]
        fixed = [m for m in (student, *readers) if not any(p.requires_grad for p in m.parameters())]

        def leave(first: int, hidden: Tensor, z: Tensor) -> tuple[Tensor, ...]:
            # the backward pass comes back to this function
            with frozen(*fixed):
                g = student.process.log_probs(student.head(hidden), z).exp()
                noise = _noise(student, z, draw, Stream.RELAX_RENOISE, first)
                w = relaxation.state(g.detach() if self.detach_state else g, t, noise)
                scores = relaxation.scores(w, tau=self.tau)
                return w.detach().argmax(-1), *(embed(scores) for embed in embedders)

        size = relaxation.vocab_size
        z, *embedded = over_positions(leave, *made, vocab_size=size, numbered=True)
        return Relaxed(tuple(embedded), z, t)

    def times(self, draw: Draw) -> tuple[Tensor, Tensor]:
        """Times of the student's input and of the state its output leads to, float64 ``[B]``."""
        t_in, t_out = two_times(draw, self.time_draws)
        return t_in.double(), t_out.double()

    def auxiliary_loss(self, networks: Networks, tokens: Tensor, draw: Draw) -> LossSum:
        """NELBO of the fake model on the student's G, summed over positions (C.4, step 4)."""
        student, fake = networks.student, networks.fake
        process, relaxation = self.process(fake)
        with torch.no_grad():
            made = self.generate(student, tokens, draw)
        with frozen(student):
            state = self.relax(student, made, (fake,), draw)
        hidden = _features(fake, relaxation, state.embedded[0], state.time)

        def nelbo(fake_hidden: Tensor, student_hidden: Tensor, *states: Tensor) -> tuple[Tensor]:
            z_in, z, time = states
            with torch.no_grad():
                g = student.process.log_probs(student.head(student_hidden), z_in).exp()
            log_fake = process.log_probs(fake.head(fake_hidden), z)
            return (process.nll_per_token(log_fake, g, z, time),)

        rows = _rows(hidden, *made, state.z, time=state.time)
        (loss,) = sum_of_rows(nelbo, *rows, trained=fake, vocab_size=_WIDE * process.vocab_size)
        return LossSum(loss, tokens.numel(), {"fake_nelbo": loss.detach() / tokens.numel()})

    def student_loss(self, networks: Networks, tokens: Tensor, draw: Draw) -> LossSum:
        """NELBO of the teacher on G less that of the fake model, summed (C.4, step 3)."""
        teacher, student, fake = networks.teacher, networks.student, networks.fake
        process, relaxation = self.process(student)
        made = self.generate(student, tokens, draw)
        with frozen(teacher, fake):
            state = self.relax(student, made, (teacher, fake), draw)
            hidden = [
                _features(model, relaxation, embedded, state.time)
                for model, embedded in zip((teacher, fake), state.embedded, strict=True)
            ]

        def difference(
            teacher_hidden: Tensor, fake_hidden: Tensor, student_hidden: Tensor, *states: Tensor
        ) -> tuple[Tensor, Tensor]:
            z_in, z, time = states
            log_g = student.process.log_probs(student.head(student_hidden), z_in)
            log_teacher = process.log_probs(teacher.head(teacher_hidden), z)
            log_fake = process.log_probs(fake.head(fake_hidden), z)
            gap = process.nll_difference(log_teacher, log_fake, log_g.exp(), z, time)
            return gap, entropy(log_g)

        rows = _rows(*hidden, *made, state.z, time=state.time)
        size = _WIDE * process.vocab_size
        with frozen(teacher, fake):
            gap, spread = sum_of_rows(difference, *rows, trained=student, vocab_size=size)
        return LossSum(gap, tokens.numel(), {"student_entropy": spread / tokens.numel()})


def _noise(student: DiffusionLM, z: Tensor, draw: Draw, stream: Stream, first: int) -> Tensor:
    """eps at the positions of ``z`` ``[B, l]``, of which ``first`` is the first."""
    dtype = torch.promote_types(student.dtype, torch.float32)
    shape = (z.shape[1], student.process.vocab_size)
    return draw.normal(*shape, stream=stream, dtype=dtype, first=first)


def _features(
    model: DiffusionLM,
    relaxation: GaussianRelaxation,
    embedded: Tensor,
    t: Tensor,
    latent: Any = None,
) -> Tensor:
    sigma = relaxation.sigma(t).to(torch.promote_types(model.dtype, torch.float32))
    return model.features(Embedded(embedded), sigma, latent)


def _rows(*tables: Tensor, time: Tensor) -> list[Tensor]:
    """Tables ``[B, L, ...]`` as ``[B L, 1, ...]``, then the time of each row, ``[B L]``."""
    times = time.unsqueeze(-1).expand(tables[0].shape[:2])
    return [*(table.flatten(0, 1).unsqueeze(1) for table in tables), times.flatten()]
