"""Instant moment matching: no auxiliary network, moments in the teacher's weight space.

Algorithm 3 of arXiv 2406.04103 ("parameter space"; methods D.4) for continuous data, and the same
idea for discrete processes, which no paper has: the moments of the diffusion cross-entropy.

**Moments.** Take the diffusion loss of the teacher theta on what the student eta makes. Data goes
to z_t, the student predicts G (x~), x ~ G goes to z_s ~ q(z_s | x, z_t), and ::

    L(theta) = E w(s) CE( r | p_theta(. | z_s) ),  r = E[x | z_s, z_t]      tokens
    L(theta) = E w(s) || x~ - g_theta(z_s) ||^2                             continuous data

On data its gradient is 0, because the teacher is at its optimum. So m(eta) = grad_theta L is 0 for
a perfect student, and the student descends J = 1/2 m^T Lambda m with a diagonal Lambda.

**Its gradient** (dm/deta)^T Lambda m is a product of two expectations, so it takes two independent
batches A and B to estimate it without bias::

    A:  g = grad_theta L_A(theta),   nu = -Lambda g
    B:  w(s) < r, d/de log p_{theta + e nu}(z_s) >              tokens
        w(s) (x~ - g_theta(z_s))^T d/de g_{theta + e nu}(z_s)   continuous data,     at e = 0

For tokens m = -E w r^T dlog p/dtheta, so B's loss is m^T Lambda m in the mean and its gradient that
of J. For continuous data m = 2 E w (dg/dtheta)^T (g - x~), so the mean is half of m^T Lambda m and
the gradient half of J's. B's loss is also the limit of an auxiliary network one step from the
teacher, phi = theta - lambda Lambda g, in the student's loss of the alternating method,
-w <r, log p_theta - log p_phi> / lambda. With one batch as A and B the mean would be m^T Lambda m +
tr(Lambda cov g): it would pay the student for gradients of small variance, a perfect student too.

**What carries gradient.** r is G q(z_s | x, z_t) / q(z_s | z_t). Behind a mask z_s says nothing
about its token and r = G; on the uniform process it does. Of r only the factor G carries gradient:
that makes the gradient of J complete for all that a position's token does at this position, to the
target and to z_s, and leaves out what it does to the input of other positions. For continuous data
z_s is detached, as published (methods D.6).

**The uniform process.** A network's prediction goes through :func:`~idlm.objectives.
alternating_uniform.given_state` first, as in D-MMD. The cross-entropy is not the NELBO that such
teachers are trained with, though both are least at the same exact teacher: an inexact one has a
small moment on data. D-MMD's student loss has G for r. That is not E[x | z_s, z_t]: its gradient is
not J's, and where there is little noise it does not vanish, but grows with w(s).

**Batches.** A micro batch is cut into even and odd rows, each half with times that cover [0, 1] by
itself; each half is A for the other. nu is of one micro batch, so an accumulated update, or one of
several processes, is a mean over independent pairs: right in the mean for any micro batch of two
rows or more, but the noise of nu falls with the micro batch's own size. Make it as large as memory
allows.

Departures from methods D.4: x~ - g for x~, which leaves the gradient and makes the value an
estimate of the moment's norm; means over tokens (coordinates) instead of examples, a constant
factor; the weight w(s) of continuous data is at most 100, as in the alternating method.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor

from idlm.errors import UserError
from idlm.models.modeling import DiffusionLM
from idlm.objectives import alternating_masked, alternating_uniform, moment_matching
from idlm.objectives.alternating import AlternatingDistillation
from idlm.objectives.base import DistillationObjective, Draw, LossSum, Networks
from idlm.objectives.instant_half import GaussianHalf, Half, MaskedHalf, UniformHalf
from idlm.objectives.instant_teacher import SecondMoment, Weights, WeightSpace
from idlm.objectives.pairing import check_pairing
from idlm.objectives.regression import check_same_process
from idlm.processes import Absorbing, Uniform
from idlm.processes.gaussian import Gaussian
from idlm.processes.gaussian import Weighting as GaussianWeighting

Preconditioner = Literal["adam", "identity"]
_TOKEN_WEIGHTINGS = ("nelbo", "flat")
_MAX_GAUSSIAN_WEIGHT = 100.0  # as in alternating moment matching


class InstantMomentMatching(DistillationObjective):
    """Match the moments of the teacher's gradient, see above.

    The teacher's weights must be whole, in fp32 or float64; its derivative uses attention without
    fused kernels. A micro batch holds up to four copies of the teacher's weights beside it
    (gradients and directions), a run with ``adam`` two more, one of which is in its checkpoints.

    Args:
        target_steps: k, the number of sampling steps to aim at: t = min(1, s + U(0, 1/k)).
        preconditioner: Lambda. ``adam`` is 1 / (sqrt v + 1e-8) with v the running second moment of
            the teacher's gradient g, see
            :class:`~idlm.objectives.instant_teacher.SecondMoment`; ``identity`` is 1.
        beta2: decay of v per update, 0.999 if not given; for ``adam`` only.
        weighting: w(s). For tokens ``nelbo`` (the teacher's own, the default) or ``flat``; for
            continuous data see :meth:`idlm.processes.gaussian.Gaussian.weight`, ``snr+1`` if not
            given, and at most 100.

    Raises:
        UserError: for a value outside what is listed.
    """

    processes: ClassVar[tuple[str, ...]] = (Absorbing.name, Uniform.name, Gaussian.name)
    trains = "student"

    def __init__(
        self,
        *,
        target_steps: int = 16,
        preconditioner: Preconditioner = "adam",
        beta2: float | None = None,
        weighting: str | None = None,
    ) -> None:
        if target_steps < 1:
            raise UserError(f"target_steps is {target_steps}; it must be at least 1")
        if preconditioner not in get_args(Preconditioner):
            raise UserError(f"preconditioner is {preconditioner!r}; choose one of adam, identity")
        if beta2 is not None and preconditioner != "adam":
            raise UserError(
                f"beta2 is {beta2} but preconditioner is {preconditioner!r}, which has no second "
                "moment; leave beta2 out, or choose preconditioner 'adam'"
            )
        if beta2 is not None and not 0.0 <= beta2 < 1.0:
            raise UserError(f"beta2 is {beta2}; it must be in [0, 1)")
        known = dict.fromkeys((*_TOKEN_WEIGHTINGS, *get_args(GaussianWeighting)))
        if weighting is not None and weighting not in known:
            raise UserError(f"weighting is {weighting!r}; choose one of {', '.join(known)}")
        self.target_steps = target_steps
        self.preconditioner = preconditioner
        self.beta2 = (0.999 if beta2 is None else beta2) if preconditioner == "adam" else None
        self.weighting = weighting
        self._tuples = AlternatingDistillation(renoise="posterior", target_steps=target_steps)
        self._second = None if self.beta2 is None else SecondMoment(self.beta2)

    def check(self, teacher: DiffusionLM, student: DiffusionLM) -> None:
        """Refuse a weighting of another process, and a teacher that cannot be differentiated."""
        self._weights(student.process, torch.full((1,), 0.5))
        if isinstance(student.process, Gaussian):
            check_same_process(teacher, student)
        WeightSpace(teacher)

    def student_loss(self, networks: Networks, tokens: Tensor, draw: Draw) -> LossSum:
        """w <r, d/de log p_{theta + e nu}> summed, each half with the other's nu.

        A single row has no halves: in training it is refused, in validation it scores nothing and
        counts for 0 tokens.

        Raises:
            UserError: for a micro batch of one row in training, an unfit teacher or process.
        """
        check_pairing(self, networks.student.process)
        if tokens.shape[0] < 2:
            return _no_pair(networks, tokens, draw)
        with _differentiable():
            # copies, because tensors that were made in inference mode stay without gradient
            tokens, sample = tokens.clone(), draw.sample.clone()
            space = WeightSpace(networks.teacher)
            halves = [
                self._half(networks.student, tokens[i::2], draw.rows(sample[i::2])) for i in (0, 1)
            ]
            directions = [self._direction(half, space, draw.training) for half in halves]
            even, odd = (
                half.student_loss(space, direction)
                for half, direction in zip(halves, reversed(directions), strict=True)
            )
        asked = even.asked + odd.asked
        logs: dict[str, Tensor] = {}
        if even.entropy is not None and odd.entropy is not None:
            logs["student_entropy"] = (even.entropy + odd.entropy) / asked
        return LossSum(even.total + odd.total, tokens.numel(), logs, asked)

    def after_student_update(self, networks: Networks, average: Any, updates: int) -> None:
        """Let the gradients of this update enter v, averaged over all processes."""
        if self._second is not None:
            self._second.end_update()

    def state_dict(self) -> dict[str, Any]:
        """v and its number of updates."""
        return {} if self._second is None else self._second.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take v back.

        Raises:
            UserError: if the state is that of a run with another preconditioner.
        """
        if bool(state) != (self._second is not None):
            other = "adam" if state else "identity"
            raise UserError(
                f"preconditioner is {self.preconditioner!r} but the checkpoint is of a run with "
                f"{other!r}; resume with the same preconditioner"
            )
        if self._second is not None:
            self._second.load_state_dict(state)

    def _half(self, student: DiffusionLM, tokens: Tensor, draw: Draw) -> Half:
        process: Any = student.process
        if isinstance(process, Gaussian):
            steps = self.target_steps
            state = moment_matching.simulate(student, tokens, draw, target_steps=steps)
            return GaussianHalf(state, self._weights(process, state.time).to(state.x.dtype))
        if isinstance(process, Absorbing):
            masked = alternating_masked.simulate(self._tuples, student, tokens, draw)
            return MaskedHalf(student, masked, self._weights(process, masked.time))
        noised = alternating_uniform.simulate(self._tuples, student, tokens, draw)
        return UniformHalf(student, noised, self._weights(process, noised.time))

    def _weights(self, process: Any, time: Tensor) -> Tensor:
        """w(s) ``[B]``."""
        gaussian = isinstance(process, Gaussian)
        allowed = get_args(GaussianWeighting) if gaussian else _TOKEN_WEIGHTINGS
        if self.weighting is not None and self.weighting not in allowed:
            raise UserError(
                f"weighting is {self.weighting!r}, but the model's process is {process.name!r}; "
                f"choose one of {', '.join(allowed)}"
            )
        if gaussian:
            weight = process.weight(time, self.weighting or "snr+1")
            return weight.clamp(max=_MAX_GAUSSIAN_WEIGHT)
        flat = self.weighting == "flat"
        return torch.ones_like(time) if flat else process.schedule.weight(time)

    def _direction(self, half: Half, space: WeightSpace, training: bool) -> Weights:
        """nu = -Lambda g of one half; no gradient reaches the student through it."""
        g = space.gradient(lambda weights: half.teacher_loss(space, weights))
        if self._second is not None:
            if training:
                self._second.observe(g)
            g = self._second.precondition(g)
        return {name: -value for name, value in g.items()}


def _no_pair(networks: Networks, tokens: Tensor, draw: Draw) -> LossSum:
    if draw.training:
        raise UserError(
            f"a micro batch has {tokens.shape[0]} row, but instant moment matching needs two "
            "independent halves; choose micro_batch_size so that no part of a batch has one row"
        )
    nothing = torch.zeros((), device=tokens.device, requires_grad=True)
    entropy = {"student_entropy": torch.full_like(nothing.detach(), torch.nan)}
    discrete = not isinstance(networks.student.process, Gaussian)
    return LossSum(nothing, 0, entropy if discrete else {}, asked=0)


@contextmanager
def _differentiable() -> Iterator[None]:
    """Out of inference mode, in which Lightning validates, without turning gradients on."""
    enabled = torch.is_grad_enabled()
    with torch.inference_mode(False), torch.set_grad_enabled(enabled):
        yield
