"""Duo-DCD: discrete consistency distillation, uniform process (arXiv 2506.10892; methods H.2).

The student at a state z_t is to predict what the teacher predicts at an earlier state z_s of the
same deterministic trajectory: w = a x + s eps with one Gaussian eps for all times, z = argmax w.

**No Gaussian is drawn here.** Of the K numbers of eps only two things matter: at which time the
largest of the other K - 1 overtakes a + s eps_x, and where that largest one is. With mu = a / s
falling over time, z_t = x exactly while max(eps_other) - eps_x < mu_t, and afterwards z_t is the
one place of the maximum, which is the same at every later time, uniform over the other tokens and
independent of the maximum's size. So a position needs two uniforms, u and one for the place:

    z_t = x  if u < p(gamma_t),  else j,       p = alpha + (1 - alpha) / K,   alpha = A(gamma_t)

which is the joint law of (z_s, z_t) exactly, with p as :class:`idlm.processes.GaussianRelaxation`
has it, and neither a table ``[B, L, K]`` nor its argmax.

Departures from the authors' code: this draw; A(gamma) is exact, where the code looks it up in a
table that ends at gamma = -1; the range of gamma follows the vocabulary (see
:mod:`idlm.objectives.gammas`); times are at least 0.001; losses are sums that the caller divides by
the number of tokens (the code's mean); the student's EMA restarts in every round, where the code's
goes on. The code's linear growth of dt is left out.
"""

from __future__ import annotations

from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from idlm.errors import UserError
from idlm.objectives.base import Draw, LossSum, Networks, mean
from idlm.objectives.chunks import over_positions
from idlm.objectives.divergences import divergence, entropy
from idlm.objectives.gammas import check_range, relaxation
from idlm.objectives.pairing import check_pairing
from idlm.objectives.rounds import NextTeacher, SelfDistillation
from idlm.processes import GaussianRelaxation
from idlm.random import Stream

Loss = Literal["kl-bwd", "kl-fwd"]
# gamma at t = 0 and at t = 1, for 50,257 states
_PUBLISHED = (-4.0, -1.0)


class DuoDCD(SelfDistillation):
    """KL between the student at z_t and the teacher at z_s = z_{t - dt}, over all positions.

    t = min(u + dt, 1) with stratified u and dt = 2^round / num_steps, a fraction of the whole range
    of gamma. Rounds follow each other as long as dt is at most 1, the whole range: ten for 512
    steps, of which the paper's 50,000 updates are the first five. See
    :class:`~idlm.objectives.rounds.SelfDistillation` for what happens between two rounds.

    The networks predict as the sampler uses them (no Bayes factor of a position's own state): for
    a network trained by the NELBO, the law of a token given the other positions' states.

    Args:
        num_steps: T, number of steps that the first dt divides [0, 1] into; 512 in Duo's script.
        gamma_min: log noise-to-signal ratio at t = 0, the published -4.
        gamma_max: the same at t = 1, the published -1; alpha then falls from 0.9987 to 0.0062 for
            K = 50257. If neither is given, alpha falls like that for the model's own K.
        loss: ``kl-bwd`` for KL(student || teacher), or ``kl-fwd``.
        round_updates: student updates in a round, the published 10,000.
        next_teacher: ``student`` as published by default, or ``average``.

    Raises:
        UserError: for a value outside what is listed.
    """

    processes: ClassVar[tuple[str, ...]] = ("uniform",)

    def __init__(
        self,
        *,
        num_steps: int = 512,
        gamma_min: float | None = None,
        gamma_max: float | None = None,
        loss: Loss = "kl-bwd",
        round_updates: int = 10_000,
        next_teacher: NextTeacher = "student",
    ) -> None:
        super().__init__(round_updates=round_updates, next_teacher=next_teacher)
        if loss not in get_args(Loss):
            raise UserError(f"loss is {loss!r}; choose one of {', '.join(get_args(Loss))}")
        if num_steps < 1:
            raise UserError(f"num_steps is {num_steps}; it must be at least 1")
        self.num_steps = num_steps
        self.gammas = check_range(gamma_min, gamma_max)
        self.loss = loss

    @property
    def last_round(self) -> int:
        return self.num_steps.bit_length() - 1  # 2^round <= num_steps

    @property
    def dt(self) -> float:
        """What student and teacher are apart in the present round."""
        return 2**self.round / self.num_steps

    def relaxation(self, vocab_size: int) -> GaussianRelaxation:
        """The schedule of the trajectories over K = ``vocab_size`` states."""
        return relaxation(self.gammas, _PUBLISHED, vocab_size)

    def times(self, draw: Draw) -> tuple[Tensor, Tensor]:
        """t of the student and s = t - dt of the teacher, float64 ``[B]`` each."""
        t = (draw.times(Stream.TIME).double() + self.dt).clamp(max=1.0)
        return t, t - self.dt

    def student_loss(self, networks: Networks, tokens: Tensor, draw: Draw) -> LossSum:
        """Divergence of the student at z_t from the teacher at z_s, summed over all positions."""
        teacher, student = networks.teacher, networks.student
        check_pairing(self, student.process)
        process = student.process
        schedule = self.relaxation(process.vocab_size)
        t, s = self.times(draw)
        z_t, z_s = trajectory(schedule, tokens, (t, s), draw)
        hidden = student.features(z_t, schedule.sigma(t))
        with torch.no_grad():
            target = teacher.features(z_s, schedule.sigma(s))

        def compare(
            hidden: Tensor, target: Tensor, z_t: Tensor, z_s: Tensor
        ) -> tuple[Tensor, Tensor]:
            log_p = process.log_probs(student.head(hidden), z_t)
            with torch.no_grad():
                log_q = process.log_probs(teacher.head(target), z_s)
            return divergence(self.loss, log_p, log_q), entropy(log_p)

        loss, spread = over_positions(
            compare, hidden, target, z_t, z_s, vocab_size=process.vocab_size
        )
        return LossSum(loss.sum(), tokens.numel(), {"student_entropy": mean(spread)})


def trajectory(
    schedule: GaussianRelaxation, x: Tensor, times: tuple[Tensor, ...], draw: Draw
) -> list[Tensor]:
    """States of one deterministic trajectory, argmax(a_t x + s_t eps) with a shared eps.

    Args:
        schedule: the relaxation.
        x: clean tokens, int64 ``[B, L]``.
        times: float64 ``[B]`` each.
        draw: names the randomness.

    Returns:
        int64 ``[B, L]`` for each of the times.
    """
    k, length = schedule.vocab_size, x.shape[1]
    # how far into the noise x stays the largest, and which token takes over
    held = draw.uniform(length, stream=Stream.CORRUPT)
    other = (draw.uniform(length, stream=Stream.RENOISE) * (k - 1)).long().clamp(max=k - 2)
    other = other + (other >= x)
    alphas = (schedule.alpha(t).unsqueeze(-1) for t in times)
    return [torch.where(held < alpha + (1.0 - alpha) / k, x, other) for alpha in alphas]
