"""SDTT, self-distillation through time for the masked process (arXiv 2410.21035; methods H.1).

The teacher takes two ancestral steps from a noised state; the student learns to predict in one call
what the teacher predicted at each position in the step that unmasked it.

Departures from the authors' code. **The teacher's times** are t and t - dt, and its step ends at
t - 2 dt; the code means to place two times between t and t - 2 dt and mixes the weights up: at
t = 0.5 its two calls run near 0.75 and 0.25, and a position is unmasked with probability
dt / 0.75 in place of dt / t. With the weights put right, as IMDM's port does, its second call would
still be at t - 2 dt, the end of the interval, and not at t - dt, where its second step starts. A
network without time conditioning does not see its time, but which positions the first step unmasks,
and so whose context a target has, changes for any network.
**mse and tvd** compare probabilities, as their names say; in the code, log-probabilities. **The
loss** is a sum over masked positions that the caller divides by all tokens; the code takes the mean
over the masked ones of its batch. **Times** t are stratified and at least 1e-3, there 1e-5. The
optimiser keeps its state over the rounds, which the code may also reset.

What it cannot teach. A target is a product over positions, each with a context of its own, so the
student learns marginals and no correlation of the tokens that are revealed together. With targets
p_1, p_2, ... for one input, the best student for ``kl-fwd`` is their mean, which for a teacher
consistent with itself is the teacher's own prediction: nothing is learned. For ``kl-bwd`` it is
their geometric mean, normalised: a token that some context excludes is avoided, so what is sharper
than the teacher's marginals comes at the price of diversity.
"""

from __future__ import annotations

from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from idlm.errors import UserError
from idlm.models.modeling import DiffusionLM
from idlm.objectives.alternating_masked import absorbing
from idlm.objectives.base import Draw, LossSum, Networks
from idlm.objectives.chunks import in_chunks, sum_of_rows
from idlm.objectives.divergences import divergence, entropy
from idlm.objectives.pairing import check_pairing
from idlm.objectives.rounds import NextTeacher, SelfDistillation
from idlm.random import Stream
from idlm.sampling.categorical import draw as draw_categorical

Loss = Literal["kl-bwd", "kl-fwd", "mse", "tvd"]
# the samplers' grid ends here and not at 0, and with it the teacher's steps
_END = 1e-5


class SDTT(SelfDistillation):
    """Two steps of the teacher in one call of the student, in rounds of doubled steps.

    dt = (1 - 1e-5) / num_steps * 2^round is one step of a sampler with num_steps / 2^round steps,
    and the student aims at half as many. Rounds follow each other as long as that is at least
    ``min_steps``: seven from 1024 steps to 8. See :class:`~idlm.objectives.rounds.SelfDistillation`
    for what happens between two rounds, and after the last.

    Args:
        num_steps: sampling steps of the first teacher.
        min_steps: fewest sampling steps to aim at.
        loss: ``kl-bwd`` for KL(student || target), the paper's best; ``kl-fwd``; ``mse`` or
            ``tvd``, which are not in nats (see :func:`~idlm.objectives.divergences.divergence`).
        round_updates: student updates in a round, the published 10,000.
        next_teacher: ``average`` or ``student``, what becomes the teacher.

    Raises:
        UserError: for a value outside what is listed.
    """

    processes: ClassVar[tuple[str, ...]] = ("absorbing",)

    def __init__(
        self,
        *,
        num_steps: int = 1024,
        min_steps: int = 8,
        loss: Loss = "kl-bwd",
        round_updates: int = 10_000,
        next_teacher: NextTeacher = "average",
    ) -> None:
        super().__init__(round_updates=round_updates, next_teacher=next_teacher)
        if loss not in get_args(Loss):
            raise UserError(f"loss is {loss!r}; choose one of {', '.join(get_args(Loss))}")
        if min_steps < 1 or num_steps < 2 * min_steps:
            raise UserError(
                f"num_steps is {num_steps} and min_steps is {min_steps}; choose min_steps at least "
                "1 and num_steps at least twice that, because a round halves the steps"
            )
        self.num_steps = num_steps
        self.min_steps = min_steps
        self.loss = loss

    @property
    def last_round(self) -> int:
        # num_steps / 2^(round + 1) >= min_steps
        return (self.num_steps // self.min_steps).bit_length() - 2

    @property
    def dt(self) -> float:
        """One step of the teacher in the present round."""
        return (1.0 - _END) / self.num_steps * 2**self.round

    def times(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Where the teacher's two steps start: t and t - dt, no earlier than 1e-5."""
        return t, (t - self.dt).clamp(min=_END)

    @torch.no_grad()
    def targets(self, teacher: DiffusionLM, z: Tensor, t: Tensor, draw: Draw) -> Tensor:
        """Features of the step at which each position was unmasked.

        The head turns them into the recorded log-probabilities; positions that are still masked at
        the end have the last step's. Which ones these are does not matter, nor which tokens the
        last step reveals, so it draws none.

        Args:
            teacher: of the round.
            z: states ``[B, L]``.
            t: their times, float64 ``[B]``.
            draw: names the randomness.

        Returns:
            ``[B, L, D]``; what stands at positions visible in ``z`` is not used.
        """
        process = absorbing(teacher)
        first, second = self.times(t)
        masked = z == process.mask_id
        hidden = teacher.features(z, process.schedule.sigma(first))
        chance = process.reveal_probability(second, first).unsqueeze(-1)
        shown = masked & (draw.uniform(z.shape[1], stream=Stream.REVEAL) < chance)
        state = z.clone()
        noise = draw.uniform(z.shape[1], stream=Stream.TEACHER)[shown]

        def drawn(hidden: Tensor, noise: Tensor) -> tuple[Tensor]:
            return (draw_categorical(process.clean_log_probs(teacher.head(hidden)), noise),)

        tables = hidden[shown], noise
        (state[shown],) = in_chunks(drawn, *tables, numbers=process.vocab_size)
        later = teacher.features(state, process.schedule.sigma(second))
        return torch.where(shown.unsqueeze(-1), hidden, later)

    def student_loss(self, networks: Networks, tokens: Tensor, draw: Draw) -> LossSum:
        """Divergence of the student's one call from the teacher's two, summed where masked.

        The logs hold ``masked_loss``, the mean over masked positions, as the paper has it.
        """
        teacher, student = networks.teacher, networks.student
        check_pairing(self, student.process)
        process = absorbing(student)
        # a step may be a thousandth, and fp32 leaves four digits of it
        t = draw.times(Stream.TIME).double()
        z = process.corrupt(tokens, t, draw.uniform(tokens.shape[1], stream=Stream.CORRUPT))
        asked = z == process.mask_id
        target = self.targets(teacher, z, t, draw)[asked]
        hidden = student.features(z, process.schedule.sigma(t))[asked]

        def compare(hidden: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
            log_p = process.clean_log_probs(student.head(hidden))
            with torch.no_grad():
                log_q = process.clean_log_probs(teacher.head(target))
            return divergence(self.loss, log_p, log_q), entropy(log_p)

        tables = hidden, target
        loss, spread = sum_of_rows(compare, *tables, trained=student, vocab_size=process.vocab_size)
        count = asked.sum()
        logs = {"student_entropy": spread / count, "masked_loss": loss.detach() / count}
        return LossSum(loss, tokens.numel(), logs, asked=hidden.shape[0])
