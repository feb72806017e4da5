"""Noise schedules: alpha_t, the probability that a token survives at time t.

alpha falls from alpha(0), 1 for the token processes, to alpha(1) close to 0. Every method takes
times of any shape and returns that shape and dtype.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from idlm.errors import UserError


class Schedule(ABC):
    """alpha_t and its derivative; everything else follows from the two."""

    name: str

    @abstractmethod
    def alpha(self, t: Tensor) -> Tensor:
        """Survival probability alpha_t."""

    @abstractmethod
    def dalpha(self, t: Tensor) -> Tensor:
        """d alpha / d t, never positive."""

    @abstractmethod
    def inverse(self, alpha: Tensor) -> Tensor:
        """The time at which the survival probability is ``alpha``."""

    def sigma(self, t: Tensor) -> Tensor:
        """sigma_t = -log alpha_t, the conditioning the published networks take."""
        return -torch.log(self.alpha(t))

    def weight(self, t: Tensor) -> Tensor:
        """-alpha' / (1 - alpha), the weight of the continuous-time masked NELBO (MDLM eq. 10)."""
        return -self.dalpha(t) / (1.0 - self.alpha(t))


class LogLinear(Schedule):
    """alpha_t = 1 - (1 - eps) t, hence weight exactly 1/t (MDLM, arXiv 2406.07524; eps 1e-3)."""

    name = "log-linear"

    def __init__(self, eps: float = 1e-3) -> None:
        if not 0.0 <= eps < 1.0:
            raise UserError(f"eps of the log-linear schedule is {eps}; it must be in [0, 1)")
        self.eps = eps

    def alpha(self, t: Tensor) -> Tensor:
        return 1.0 - (1.0 - self.eps) * t

    def dalpha(self, t: Tensor) -> Tensor:
        return torch.full_like(t, -(1.0 - self.eps))

    def inverse(self, alpha: Tensor) -> Tensor:
        return (1.0 - alpha) / (1.0 - self.eps)

    def sigma(self, t: Tensor) -> Tensor:
        return -torch.log1p(-(1.0 - self.eps) * t)

    def weight(self, t: Tensor) -> Tensor:
        # eps cancels; the quotient of the two would lose digits at small t
        return 1.0 / t


class Cosine(Schedule):
    """alpha_t = 1 - (1 - eps) (1 - cos(pi t / 2)); slow at t = 0, where tokens matter most.

    The cosine schedule of MDLM's repository (``CosineNoise``), with its eps of 1e-3.
    """

    name = "cosine"

    def __init__(self, eps: float = 1e-3) -> None:
        if not 0.0 <= eps < 1.0:
            raise UserError(f"eps of the cosine schedule is {eps}; it must be in [0, 1)")
        self.eps = eps

    def alpha(self, t: Tensor) -> Tensor:
        return self.eps + (1.0 - self.eps) * torch.cos(0.5 * math.pi * t)

    def dalpha(self, t: Tensor) -> Tensor:
        return -(1.0 - self.eps) * 0.5 * math.pi * torch.sin(0.5 * math.pi * t)

    def inverse(self, alpha: Tensor) -> Tensor:
        return torch.arccos((alpha - self.eps) / (1.0 - self.eps)) * (2.0 / math.pi)

    def weight(self, t: Tensor) -> Tensor:
        # -alpha'/(1-alpha) = (pi/2) sin(a) / (1 - cos(a)) = (pi/2) / tan(a/2), a = pi t / 2
        return 0.5 * math.pi / torch.tan(0.25 * math.pi * t)


_SCHEDULES = {LogLinear.name: LogLinear, Cosine.name: Cosine}


def make_schedule(name: str, eps: float = 1e-3) -> Schedule:
    """Build a schedule by name.

    Raises:
        UserError: if the name is not one of ``log-linear``, ``cosine``.
    """
    if name not in _SCHEDULES:
        raise UserError(f"schedule is {name!r}; choose one of {', '.join(sorted(_SCHEDULES))}")
    return _SCHEDULES[name](eps)


def stratified_times(index: Tensor, size: int, noise: Tensor, *, minimum: float = 1e-3) -> Tensor:
    """Times for the members of a batch of ``size``: one stratum each, uniform inside it.

    Stratification over the *global* batch lowers the variance of the logged loss; the members
    held here are given by ``index``. (MDLM's "antithetic sampling", methods A.2; the published
    code stratifies over whatever batch it holds.)

    Args:
        index: stratum of each member, int64 ``[B]`` in ``[0, size)``.
        size: global batch size.
        noise: uniforms in ``[0, 1)``, ``[B]``.
        minimum: smallest time, the published ``sampling_eps``; keeps the 1/t weight finite.

    Returns:
        Times in ``[minimum, 1)``, ``[B]``, dtype of ``noise``.
    """
    u = (noise + index.to(noise.dtype)) / size
    return minimum + (1.0 - minimum) * u
