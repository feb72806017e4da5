"""Distribution matching with two time-scales and a GAN head: DMD2 (arXiv 2405.14867; methods H.6).

The student's gradient at its sample x is the difference of two scores at a noised x, read from two
denoisers: the frozen teacher and an auxiliary network that is trained on the student's samples, 5
updates for each of the student's as on ImageNet and with SDXL, 10 with SD1.5
(``fake_per_student`` of the distillation module). The student's inputs are the states its own
sampler meets.

Departures from the paper's code, which is for images and EDM's noise x + sigma_edm n. With
z = alpha x + sigma n the same noise level is sigma_edm = sigma / alpha and the auxiliary network's
weight sigma_edm^-2 + 1 is 1 / sigma^2. Times are uniform in this t, not on EDM's grid, and
stratified. The student's own sampler is DDPM's, which is what samples here, where the paper's
adds fresh noise to each prediction; each row takes a step of its own. The discriminator judges the
student's sample at the very state where the scores are compared (methods H.6), and reads a vector
of features where the paper's reads a feature map. mean|p_real| is held to 1e-5 from below, where
the paper's code replaces the infinite gradient by fp32's largest number.

Losses are sums over coordinates that the caller divides by their number; a GAN term, one number for
each sample, counts once for each of its coordinates, so that the ratio of the two is the paper's.
"""

from __future__ import annotations

import copy
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from idlm.errors import UserError
from idlm.models.continuous import ContinuousDenoiser
from idlm.objectives.base import (
    DistillationObjective,
    Draw,
    LossSum,
    Networks,
    fresh_casts,
    frozen,
)
from idlm.objectives.regression import check_same_process, gaussian
from idlm.processes.gaussian import Gaussian, ddpm_states
from idlm.random import Stream

_RANGE = (0.02, 0.98)
_FLOOR = 1e-5


class Critic(nn.Module):
    """A denoiser with a discriminator on its features: the auxiliary network of DMD2 with a GAN.

    Args:
        denoiser: becomes part of it.
    """

    def __init__(self, denoiser: ContinuousDenoiser) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.process = denoiser.process
        width = denoiser.hidden
        head = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 1))
        self.head = head.to(denoiser.answer.weight)

    def forward(self, z: Tensor, t: Tensor) -> Tensor:
        """Prediction of x, like ``z``."""
        return self.denoiser(z, t)

    def realness(self, z: Tensor, t: Tensor) -> Tensor:
        """Log-odds that a noised sample was data, ``[B]``, natural log."""
        return self.head(self.denoiser.features(z, t)).squeeze(-1)


class DMD2(DistillationObjective):
    """Improved distribution matching distillation: L_gen and L_fake of methods H.6.

    Args:
        target_steps: k, the number of sampling steps; the student is trained on their states only.
        gan: whether the auxiliary network also tells real data from samples; then teacher and
            student are :class:`~idlm.models.continuous.ContinuousDenoiser`. Without it no data
            enters the loss.
        gan_weight: w_g of the student's GAN loss; 3e-3 (ImageNet) if not given.
        critic_weight: w_c of the discriminator's loss; 1e-2 if not given.

    Raises:
        UserError: for a number of steps below 1, or a weight that is not positive or has no GAN.
    """

    processes: ClassVar[tuple[str, ...]] = (Gaussian.name,)
    latent: ClassVar[tuple[int, int]] = (0, 0)
    fake_per_student: ClassVar[int] = 5

    def __init__(
        self,
        *,
        target_steps: int = 4,
        gan: bool = False,
        gan_weight: float | None = None,
        critic_weight: float | None = None,
    ) -> None:
        if target_steps < 1:
            raise UserError(f"target_steps is {target_steps}; it must be at least 1")
        for name, weight in (("gan_weight", gan_weight), ("critic_weight", critic_weight)):
            if weight is not None and not gan:
                raise UserError(f"{name} is {weight} but gan is off; set gan, or leave {name} out")
            if weight is not None and not weight > 0.0:
                raise UserError(f"{name} is {weight}; it must be above 0, or leave gan off")
        self.target_steps = target_steps
        self.gan = gan
        self.gan_weight = 3e-3 if gan and gan_weight is None else gan_weight
        self.critic_weight = 1e-2 if gan and critic_weight is None else critic_weight

    def check(self, teacher: nn.Module, student: nn.Module) -> None:
        """Refuse different schedules, and a teacher without the features a GAN head needs."""
        check_same_process(teacher, student)
        if self.gan and not isinstance(teacher, ContinuousDenoiser):
            raise UserError(
                f"gan is on, but the teacher is a {type(teacher).__name__}, whose features the "
                "discriminator does not know; give a ContinuousDenoiser, or leave gan off"
            )

    def make_auxiliary(self, teacher: Any, student: Any) -> nn.Module:
        """A copy of the teacher, with a new discriminator head if there is a GAN."""
        fake = copy.deepcopy(teacher)
        return Critic(fake) if self.gan else fake

    def generate(self, student: nn.Module, data: Tensor, draw: Draw) -> Tensor:
        """The student's answer, with gradient, at a random state of its own k-step sampler.

        Args:
            student: the generator, ``(z, t) -> x``.
            data: ``[B, ...]``, of which only shape and dtype count.
            draw: names the randomness.
        """
        steps, shape = self.target_steps, data.shape[1:]
        noise = draw.normal(steps, *shape, stream=Stream.POSTERIOR, dtype=data.dtype)
        with torch.no_grad(), fresh_casts(student):
            states, times = zip(
                *ddpm_states(gaussian(student), student, noise.transpose(0, 1)), strict=True
            )
        step = (steps * draw.uniform(stream=Stream.CHOICE)).long().clamp(max=steps - 1)
        rows = torch.arange(data.shape[0], device=data.device)
        return student(torch.stack(states)[step, rows], torch.stack(times)[step, rows])

    @staticmethod
    def _noised(networks: Networks, x: Tensor, t: Tensor, draw: Draw) -> Tensor:
        noise = draw.normal(*x.shape[1:], stream=Stream.NOISE, dtype=x.dtype)
        return gaussian(networks.student).corrupt(x, t, noise)

    def auxiliary_loss(self, networks: Networks, tokens: Tensor, draw: Draw) -> LossSum:
        """||x - auxiliary(x_t)||^2 / sigma^2 + w_c [ softplus(D(x_t)) + softplus(-D(real_t)) ].

        x is the student's sample; each of the three terms has times and noise of its own.
        """
        with torch.no_grad():
            x = self.generate(networks.student, tokens, draw)
        process = gaussian(networks.student)
        t = draw.times(Stream.TIME)
        prediction = networks.fake(self._noised(networks, x, t, draw), t)
        total = process.loss(prediction, x, t, "snr+1").sum()
        if not self.gan:
            return LossSum(total, tokens.numel())
        critic = cast(Critic, networks.auxiliary)
        one, other = draw.branch(1), draw.branch(2)
        t_fake, t_real = one.times(Stream.TIME), other.times(Stream.TIME)
        on_fake = critic.realness(self._noised(networks, x, t_fake, one), t_fake)
        on_real = critic.realness(self._noised(networks, tokens, t_real, other), t_real)
        loss = nn.functional.softplus(on_fake) + nn.functional.softplus(-on_real)
        logs = {"critic_loss": loss.detach().mean()}
        total = total + cast(float, self.critic_weight) * _per_coordinate(loss, tokens)
        return LossSum(total, tokens.numel(), logs)

    def student_loss(self, networks: Networks, tokens: Tensor, draw: Draw) -> LossSum:
        """||x - sg(x - gradient)||^2 / 2 + w_g softplus(-D(x_t)), t in 2 to 98 % of its range.

        ::

            gradient = (p_real - p_fake) / mean|p_real|,
            p_real = x - teacher(x_t),  p_fake = x - auxiliary(x_t),

        the mean over the coordinates of each sample. The value is half the gradient's square.
        """
        x = self.generate(networks.student, tokens, draw)
        low, high = _RANGE
        t = low + (high - low) * draw.times(Stream.TIME)
        x_t = self._noised(networks, x, t, draw)
        with torch.no_grad():
            p_real, p_fake = x - networks.teacher(x_t, t), x - networks.fake(x_t, t)
            size = p_real.abs().flatten(1).mean(1).clamp(min=_FLOOR)
            gradient = (p_real - p_fake) / size.reshape(-1, *[1] * (x.dim() - 1))
            target = x - gradient
        total = 0.5 * ((x - target) ** 2).sum()
        if not self.gan:
            return LossSum(total, tokens.numel())
        with frozen(cast(Any, networks.auxiliary)):
            realness = cast(Critic, networks.auxiliary).realness(x_t, t)
        loss = nn.functional.softplus(-realness)
        total = total + cast(float, self.gan_weight) * _per_coordinate(loss, tokens)
        return LossSum(total, tokens.numel(), {"gan_loss": loss.detach().mean()})


def _per_coordinate(loss: Tensor, data: Tensor) -> Tensor:
    """A loss per sample ``[B]``, summed as if each coordinate of ``data`` had it."""
    return loss.sum() * (data.numel() / data.shape[0])
