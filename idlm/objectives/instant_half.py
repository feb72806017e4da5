"""One half of a micro batch of instant moment matching: what it asks of the teacher, by process.

Every class holds the training tuple of its rows (methods D.2, E.1) and has

- ``teacher_loss(space, weights)``: the teacher's own diffusion loss on the student's output, a
  mean over tokens (coordinates for continuous data), whose gradient is the moment g;
- ``student_loss(space, direction)``: the student's loss for a direction nu in weight space, a sum.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol, cast

import torch
from torch import Tensor

from idlm.models.modeling import DiffusionLM
from idlm.objectives.alternating_masked import Simulation
from idlm.objectives.alternating_uniform import UniformSimulation, given_state
from idlm.objectives.base import row_weights
from idlm.objectives.chunks import in_chunks, over_positions
from idlm.objectives.divergences import entropy
from idlm.objectives.instant_teacher import Weights, WeightSpace
from idlm.objectives.moment_matching import Matching
from idlm.processes import Absorbing, Uniform


class Half(Protocol):
    """The interface of the three classes."""

    def teacher_loss(self, space: WeightSpace, weights: Weights) -> Tensor:
        """The teacher's weighted loss on this half, nats per token, as a function of weights."""
        ...

    def student_loss(self, space: WeightSpace, direction: Weights) -> StudentLoss:
        """This half's score along ``direction``, the preconditioned gradient of the other."""
        ...


class StudentLoss(NamedTuple):
    """The student's loss on one half.

    Attributes:
        total: summed, with gradient.
        entropy: of the student's probabilities in nats, summed over ``asked``; None without tokens.
        asked: positions that the student answered.
    """

    total: Tensor
    entropy: Tensor | None
    asked: int


class MaskedHalf(NamedTuple):
    """Absorbing process; the positions masked in z_s, in chunks, where E[x | z_s, z_t] is G."""

    student: DiffusionLM
    state: Simulation
    weight: Tensor  # w(s), [B]

    def teacher_loss(self, space: WeightSpace, weights: Weights) -> Tensor:
        """w(s) CE(G | teacher) at masked positions of z_s, nats per token."""
        process = cast(Absorbing, space.network.process)

        def cross_entropy(hidden: Tensor, student: Tensor) -> tuple[Tensor]:
            log_p = process.clean_log_probs(space.call("head", weights, hidden))
            with torch.no_grad():
                target = process.clean_log_probs(self.student.head(student)).exp()
            return (-(target * log_p).sum(-1),)

        tables = self._features(space, weights), self._asked().detach()
        (cross,) = in_chunks(cross_entropy, *tables, numbers=process.vocab_size)
        return (self._row_weights() * cross).sum() / self.state.z.numel()

    def student_loss(self, space: WeightSpace, direction: Weights) -> StudentLoss:
        """w(s) <G, d log p> along ``direction`` at masked positions, summed, in nats."""
        state, process = self.state, cast(Absorbing, space.network.process)
        hidden, tangent = space.derivative(lambda w: self._features(space, w), direction)

        def score(student: Tensor, hidden: Tensor, tangent: Tensor) -> tuple[Tensor, Tensor]:
            def log_probs(weights: Weights, hidden: Tensor) -> Tensor:
                return process.clean_log_probs(space.call("head", weights, hidden))

            _, change = space.derivative(log_probs, direction, (hidden, tangent))
            log_g = process.clean_log_probs(self.student.head(student))
            return (log_g.exp() * change).sum(-1), entropy(log_g)

        tables = self._asked(), hidden, tangent
        scores, spread = in_chunks(score, *tables, numbers=process.vocab_size)
        total = (self._row_weights() * scores).sum()
        return StudentLoss(total, spread.sum() + state.drawn_entropy, int(state.asked.sum()))

    def _asked(self) -> Tensor:
        """The student's features where G is scored, ``[S, D]``: z_t was masked there, too."""
        return self.state.hidden[self.state.scored]

    def _row_weights(self) -> Tensor:
        return row_weights(self.weight, self.state.scored)

    def _features(self, space: WeightSpace, weights: Weights) -> Tensor:
        state, process = self.state, cast(Absorbing, space.network.process)
        sigma = process.schedule.sigma(state.time)
        return space.call("features", weights, state.z, sigma)[state.scored]


class UniformHalf(NamedTuple):
    """Uniform process; all positions, in chunks.

    The target is r = E[x | z_s, z_t]. Because z_t depends on x through z_s alone, Bayes leaves the
    student's prediction at z_t times q(z_s | x): r is :func:`given_state` of that prediction with
    the state and the time of z_s. It is the mean of the drawn x given the states, so it takes the
    place of the drawn x without changing a mean.
    """

    student: DiffusionLM
    state: UniformSimulation
    weight: Tensor  # w(s), [B]

    def teacher_loss(self, space: WeightSpace, weights: Weights) -> Tensor:
        """w(s) CE(r | teacher) over all positions, nats per token."""
        state, process = self.state, cast(Uniform, space.network.process)
        hidden = space.call("features", weights, state.z, process.schedule.sigma(state.time))

        def cross_entropy(hidden: Tensor, student: Tensor, z: Tensor) -> tuple[Tensor]:
            logits = space.call("head", weights, hidden)
            log_p = given_state(process, process.log_probs(logits, z), z, state.time)
            with torch.no_grad():
                log_student = process.log_probs(self.student.head(student), z)
                target = given_state(process, log_student, z, state.time).exp()
            return (-(target * log_p).sum(-1),)

        tables = (hidden, state.hidden.detach(), state.z)
        (cross,) = over_positions(cross_entropy, *tables, vocab_size=process.vocab_size)
        return (self.weight.unsqueeze(-1) * cross).sum() / state.z.numel()

    def student_loss(self, space: WeightSpace, direction: Weights) -> StudentLoss:
        """w(s) <r, d log p> along ``direction`` over all positions, summed, in nats."""
        state, process = self.state, cast(Uniform, space.network.process)
        sigma = process.schedule.sigma(state.time)
        hidden, tangent = space.derivative(
            lambda w: space.call("features", w, state.z, sigma), direction
        )

        def score(
            student: Tensor, z_in: Tensor, z: Tensor, hidden: Tensor, tangent: Tensor
        ) -> tuple[Tensor, Tensor]:
            def log_probs(weights: Weights, hidden: Tensor) -> Tensor:
                logits = space.call("head", weights, hidden)
                return given_state(process, process.log_probs(logits, z), z, state.time)

            _, change = space.derivative(log_probs, direction, (hidden, tangent))
            log_student = process.log_probs(self.student.head(student), z_in)
            log_g = given_state(process, log_student, z_in, state.t_in)
            with torch.no_grad():
                target = given_state(process, log_student, z, state.time).exp()
            # r = G q(z_s | x, z_t) / q(z_s | z_t), of which G alone carries gradient
            credit = target * (log_g - log_g.detach()).exp()
            return (credit * change).sum(-1), entropy(log_g)

        tables = (state.hidden, state.z_in, state.z, hidden, tangent)
        scores, spread = over_positions(score, *tables, vocab_size=process.vocab_size)
        total = (self.weight.unsqueeze(-1) * scores).sum()
        return StudentLoss(total, spread.sum(), spread.numel())


class GaussianHalf(NamedTuple):
    """Continuous data: ``Matching`` has x~ with gradient, z_s and s."""

    state: Matching
    weight: Tensor  # w(s), [B], in the dtype of the data

    def teacher_loss(self, space: WeightSpace, weights: Weights) -> Tensor:
        """w(s) ||x~ - teacher||^2, a mean over coordinates."""
        prediction = space.call("forward", weights, self.state.z, self.state.time)
        squared = ((prediction - self.state.x.detach()) ** 2).flatten(1).sum(1)
        return (self.weight * squared).sum() / self.state.z.numel()

    def student_loss(self, space: WeightSpace, direction: Weights) -> StudentLoss:
        """w(s) (x~ - teacher) . d teacher along ``direction``, summed."""
        state = self.state
        teacher, change = space.derivative(
            lambda w: space.call("forward", w, state.z, state.time), direction
        )
        product = ((state.x - teacher) * change).flatten(1).sum(1)
        return StudentLoss((self.weight * product).sum(), None, state.z.numel())
