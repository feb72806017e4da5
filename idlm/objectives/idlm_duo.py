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

from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from idlm.errors import UserError
from idlm.models.modeling import DiffusionLM
from idlm.objectives.base import (
    DistillationObjective,
    Draw,
    LossSum,
    Networks,
    TimeDraws,
    frozen,
    mean,
    two_times,
)
from idlm.objectives.chunks import over_positions
from idlm.objectives.divergences import entropy
from idlm.objectives.gammas import check_range, relaxation
from idlm.objectives.pairing import check_pairing
from idlm.processes import GaussianRelaxation, Uniform
from idlm.random import Stream

# gamma at t = 0 and at t = 1, for 50,257 states
_PUBLISHED = (-3.55, -1.85)


class RelaxedSimulation(NamedTuple):
    """What the student makes of relaxed data, and the relaxed state it leads to.

    Attributes:
        log_g: log G, ``[B, L, K]``.
        w: relaxed state, ``[B, L, K]``, a function of G.
        z: its argmax, int64 ``[B, L]``.
        time: its times, float64 ``[B]``.
    """

    log_g: Tensor
    w: Tensor
    z: Tensor
    time: Tensor


class IDLMDuo(DistillationObjective):
    """L(teacher, p_G) - min_f L(f, p_G) with the uniform NELBO on relaxed states.

    Section 3 and algorithm 1 of the paper (methods C.1, C.4); the NELBO is
    :meth:`idlm.processes.Uniform.nll_per_token` with soft data G. Gradient reaches the student
    through G in the NELBO and through w in the inputs of teacher and fake model; the argmax
    carries none.

    The NELBO is computed in chunks of positions, but G and w are whole: a micro batch holds a few
    tables ``[B, L, K]`` of fp32.

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

    def simulate(self, student: DiffusionLM, tokens: Tensor, draw: Draw) -> RelaxedSimulation:
        """Run the student on relaxed data and relax its output.

        Args:
            student: the generator; a fresh latent is drawn by the names in ``draw``.
            tokens: clean tokens, int64 ``[B, L]``.
            draw: names the randomness.
        """
        _, relaxation = self.process(student)
        length, size = tokens.shape[1], relaxation.vocab_size
        t_in, t_out = (t.double() for t in two_times(draw, self.time_draws))
        dtype = torch.promote_types(student.dtype, torch.float32)
        w_in = relaxation.state(
            tokens, t_in, draw.normal(length, size, stream=Stream.RELAX, dtype=dtype)
        )
        latent = draw.latent(student, length)
        hidden = self._features(student, relaxation, w_in, t_in, latent)
        log_g = student.process.log_probs(student.head(hidden), w_in.argmax(-1))
        data = log_g.detach().exp() if self.detach_state else log_g.exp()
        noise = draw.normal(length, size, stream=Stream.RELAX_RENOISE, dtype=dtype)
        w = relaxation.state(data, t_out, noise)
        return RelaxedSimulation(log_g, w, w.detach().argmax(-1), t_out)

    def _features(
        self,
        model: DiffusionLM,
        relaxation: GaussianRelaxation,
        w: Tensor,
        t: Tensor,
        latent: Any = None,
    ) -> Tensor:
        sigma = relaxation.sigma(t).to(w.dtype)
        return model.features(relaxation.scores(w, tau=self.tau), sigma, latent)

    def auxiliary_loss(self, networks: Networks, tokens: Tensor, draw: Draw) -> LossSum:
        """NELBO of the fake model on the student's G, summed over positions (C.4, step 4)."""
        process, relaxation = self.process(networks.fake)
        with torch.no_grad():
            state = self.simulate(networks.student, tokens, draw)
        fake = networks.fake
        hidden = self._features(fake, relaxation, state.w, state.time)

        def nelbo(hidden: Tensor, log_g: Tensor, z: Tensor) -> tuple[Tensor]:
            log_fake = process.log_probs(fake.head(hidden), z)
            return (process.nll_per_token(log_fake, log_g.exp(), z, state.time),)

        (loss,) = over_positions(nelbo, hidden, state.log_g, state.z, vocab_size=process.vocab_size)
        return LossSum(loss.sum(), tokens.numel(), {"fake_nelbo": mean(loss.detach())})

    def student_loss(self, networks: Networks, tokens: Tensor, draw: Draw) -> LossSum:
        """NELBO of the teacher on G less that of the fake model, summed (C.4, step 3)."""
        process, relaxation = self.process(networks.student)
        state = self.simulate(networks.student, tokens, draw)
        teacher, fake = networks.teacher, networks.fake
        with frozen(teacher, fake):
            hidden = [self._features(m, relaxation, state.w, state.time) for m in (teacher, fake)]

        def difference(
            teacher_hidden: Tensor, fake_hidden: Tensor, log_g: Tensor, z: Tensor
        ) -> tuple[Tensor, Tensor]:
            g = log_g.exp()

            def nelbo(model: DiffusionLM, hidden: Tensor) -> Tensor:
                log_p = process.log_probs(model.head(hidden), z)
                return process.nll_per_token(log_p, g, z, state.time)

            # frozen here, too, because the backward pass comes back to this function
            with frozen(teacher, fake):
                gap = nelbo(teacher, teacher_hidden) - nelbo(fake, fake_hidden)
            return gap, entropy(log_g)

        gap, spread = over_positions(
            difference, *hidden, state.log_g, state.z, vocab_size=process.vocab_size
        )
        logs = {"student_entropy": mean(spread)}
        return LossSum(gap.sum(), tokens.numel(), logs)
