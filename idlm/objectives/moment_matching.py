"""Moment matching on Gaussian data, alternating (arXiv 2406.04103, algorithm 2; methods D.2, D.3).

The condition is E[x~ | z_s] = E[x | z_s] for every s: what the student predicts, seen from the
state its sampler goes to next, has the mean that data has there. An auxiliary network learns the
left side; the teacher is the right.

Departures. The student's loss is w (x~ - teacher(z_s))^T (auxiliary - teacher) where the paper has
w x~^T (auxiliary - teacher): the same gradient, and a value that says something. With the auxiliary
network at its optimum it is w ||E[x~ | z_s] - teacher||^2 / (1 + anchor), zero where the moments
match. Times s are stratified and at least 0.001. The weight w(s), which the paper leaves to its
code, is held to a maximum. Losses are sums that the caller divides by the number of coordinates.
"""

from __future__ import annotations

import math
from typing import ClassVar, NamedTuple, get_args

import torch
from torch import Tensor, nn

from idlm.errors import UserError
from idlm.objectives.base import DistillationObjective, Draw, LossSum, Networks, matching_times
from idlm.objectives.regression import check_same_process, gaussian
from idlm.processes.gaussian import Gaussian, Weighting
from idlm.random import Stream


class Matching(NamedTuple):
    """One pass of the student and the state at which its moment is compared (methods D.2).

    Attributes:
        x: the student's prediction x~, ``[B, ...]``, with gradient.
        z: z_s ~ q(z_s | sg[x~], z_t), without, like ``x``.
        time: s, ``[B]``.
    """

    x: Tensor
    z: Tensor
    time: Tensor


def simulate(
    student: nn.Module, data: Tensor, draw: Draw, *, target_steps: int, eta: float = 1.0
) -> Matching:
    """The training tuple of both algorithms: data to z_t, the student to x~, a random step to z_s.

    Args:
        student: the generator, ``(z, t) -> x``.
        data: ``[B, ...]``.
        draw: names the randomness.
        target_steps: k, the number of sampling steps to aim at.
        eta: share of the noise in the step from t to s that is fresh, in (0, 1].
    """
    process = gaussian(student)
    t, s = matching_times(draw, target_steps)
    shape, dtype = data.shape[1:], data.dtype
    z_t = process.corrupt(data, t, draw.normal(*shape, stream=Stream.NOISE, dtype=dtype))
    x = student(z_t, t)
    fresh = draw.normal(*shape, stream=Stream.POSTERIOR, dtype=dtype)
    return Matching(x, process.matching_state(x, z_t, s, t, fresh, eta=eta), s)


class MomentMatching(DistillationObjective):
    """Alternating moment matching.

    Args:
        target_steps: k, the number of sampling steps to aim at.
        anchor: weight of the teacher in the auxiliary network's target. Its optimum is
            (E[x~ | z_s] + anchor * teacher) / (1 + anchor), so that only the scale of the student's
            gradient depends on it; 1 as published, 0 for none.
        eta: share of fresh noise in the step to z_s; 1 is the posterior the sampler draws from.
        weighting: w(s), see :meth:`idlm.processes.gaussian.Gaussian.weight`.
        max_weight: largest w(s); without a bound, states of almost no noise outweigh the others.

    Raises:
        UserError: for a value outside what is listed.
    """

    processes: ClassVar[tuple[str, ...]] = (Gaussian.name,)
    latent: ClassVar[tuple[int, int]] = (0, 0)

    def __init__(
        self,
        *,
        target_steps: int = 8,
        anchor: float = 1.0,
        eta: float = 1.0,
        weighting: Weighting = "snr+1",
        max_weight: float = 100.0,
    ) -> None:
        if target_steps < 1:
            raise UserError(f"target_steps is {target_steps}; it must be at least 1")
        if not 0.0 <= anchor < math.inf:
            raise UserError(f"anchor is {anchor}; it is a weight, 0 or more (published: 1)")
        if not 0.0 < eta <= 1.0:
            raise UserError(
                f"eta is {eta}; moment matching needs a random z_s, so choose a number above 0 and "
                "at most 1 (published: 1)"
            )
        if weighting not in get_args(Weighting):
            raise UserError(
                f"weighting is {weighting!r}; choose one of {', '.join(get_args(Weighting))}"
            )
        if not max_weight > 0.0:
            raise UserError(f"max_weight is {max_weight}; it must be above 0, inf for no bound")
        self.target_steps = target_steps
        self.anchor = anchor
        self.eta = eta
        self.weighting: Weighting = weighting
        self.max_weight = max_weight

    def check(self, teacher: nn.Module, student: nn.Module) -> None:
        """Refuse networks of different schedules."""
        check_same_process(teacher, student)

    def times(self, draw: Draw) -> tuple[Tensor, Tensor]:
        """t and s, see :func:`~idlm.objectives.base.matching_times`."""
        return matching_times(draw, self.target_steps)

    def simulate(self, student: nn.Module, data: Tensor, draw: Draw) -> Matching:
        """The training tuple, see :func:`simulate`."""
        return simulate(student, data, draw, target_steps=self.target_steps, eta=self.eta)

    def weights(self, process: Gaussian, time: Tensor) -> Tensor:
        """w of a state at each of the times ``[B]``, float64 ``[B]``."""
        return process.weight(time, self.weighting).clamp(max=self.max_weight)

    def _weighted(self, networks: Networks, state: Matching, values: Tensor) -> Tensor:
        """Values ``[B, ...]``, each row times its w(s), summed."""
        weight = self.weights(gaussian(networks.student), state.time)
        return (weight.to(values.dtype) * values.flatten(1).sum(1)).sum()

    def auxiliary_loss(self, networks: Networks, tokens: Tensor, draw: Draw) -> LossSum:
        """w ( ||sg x~ - auxiliary||^2 + anchor ||teacher - auxiliary||^2 ) at z_s, summed."""
        with torch.no_grad():
            state = self.simulate(networks.student, tokens, draw)
            teacher = networks.teacher(state.z, state.time) if self.anchor else None
        fake = networks.fake(state.z, state.time)
        squared = (state.x - fake) ** 2
        if teacher is not None:
            squared = squared + self.anchor * (teacher - fake) ** 2
        return LossSum(self._weighted(networks, state, squared), tokens.numel())

    def student_loss(self, networks: Networks, tokens: Tensor, draw: Draw) -> LossSum:
        """w (x~ - teacher)^T sg[auxiliary - teacher] at z_s, summed."""
        state = self.simulate(networks.student, tokens, draw)
        with torch.no_grad():
            teacher = networks.teacher(state.z, state.time)
            gap = networks.fake(state.z, state.time) - teacher
        total = self._weighted(networks, state, (state.x - teacher) * gap)
        return LossSum(total, tokens.numel(), {"moment_gap": (gap**2).mean()})
