"""Duo's Gaussian relaxation of the uniform process, arXiv 2506.10892 (methods B.3).

A Gaussian state w_t = a_t x + s_t eps over K states has an argmax that is exactly a draw of the
uniform process, with survival probability A(gamma_t). The published code looks A up in a shipped
table for one K; here it is integrated at each call, for any K and any gamma, to float64. That
costs B times 833 exponentials, so there is no table, no file, and no interpolation error.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from idlm.errors import UserError
from idlm.schedules import Schedule

# The trapezoid rule converges geometrically on an entire integrand: halving this step changes no
# result by more than 1e-13 of it for K up to 1e6 (the tests do halve it).
_STEP = 1 / 16
# Below -12 a normal has mass 1e-33; the complement peaks at mu / 2 and underflows before mu = 55.
_LOW, _HIGH = -12.0, 40.0
_MAX_GAMMA = 30.0


class ArgmaxLaw(NamedTuple):
    """How often argmax(mu e_x + eps) is x, with mu = exp(-gamma / 2); float64 like ``gamma``.

    Attributes:
        p: the probability, from 1 (gamma to minus infinity) down to 1/K.
        rest: 1 - p without cancellation.
        slope: dp / dgamma, never positive.
    """

    p: Tensor
    rest: Tensor
    slope: Tensor


def argmax_law(gamma: Tensor, vocab_size: int) -> ArgmaxLaw:
    """p(gamma) = integral of phi(z - mu) Phi(z)^(K-1) dz and its derivative (methods B.3).

    Args:
        gamma: log noise-to-signal ratios of any shape, in [-30, 30].
        vocab_size: K, at least 2.

    Returns:
        Three float64 tensors of the shape of ``gamma``; relative error about 1e-13 where p lies
        well inside (1/K, 1), absolute error about 1e-15 everywhere.
    """
    z_weights, z = _nodes(vocab_size, gamma.device)
    mu = torch.exp(-0.5 * gamma.double()).reshape(-1, 1)
    kernel = torch.exp(-0.5 * (z - mu) ** 2)
    sums = (kernel @ z_weights).reshape(*gamma.shape, 4)
    mu = mu.reshape(gamma.shape)
    p, zp, rest, z_rest = sums.unbind(-1)
    # of the two complementary integrals the smaller one keeps its digits, and where p is the
    # larger, mu may lie beyond the last node
    near_one = rest < 0.5
    by_mu = torch.where(near_one, mu * rest - z_rest, zp - mu * p)
    return ArgmaxLaw(
        torch.where(near_one, 1.0 - rest, p),
        torch.where(near_one, rest, 1.0 - p),
        -0.5 * mu * by_mu,
    )


@lru_cache(maxsize=16)
def _nodes(vocab_size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Weights ``[N, 4]`` of p, of its first moment and of both for 1 - p, and nodes ``[N]``."""
    count = round((_HIGH - _LOW) / _STEP) + 1
    z = _LOW + _STEP * torch.arange(count, dtype=torch.float64)
    log_power = (vocab_size - 1) * torch.special.log_ndtr(z)
    kept, rest = torch.exp(log_power), -torch.expm1(log_power)
    weights = torch.stack([kept, z * kept, rest, z * rest], -1) * (_STEP / math.sqrt(2 * math.pi))
    return weights.to(device), z.to(device)


class GaussianRelaxation(Schedule):
    """The relaxed state of the uniform process, and the schedule its argmax follows.

    gamma_t = gamma_min + t (gamma_max - gamma_min), a_t = sqrt(sigmoid(-gamma_t)),
    s_t = sqrt(sigmoid(gamma_t)), w_t = a_t x + s_t eps. For one-hot x, z_t = argmax w_t is a draw
    of q(z_t | x) of the uniform process with alpha_t = A(gamma_t) = (K p - 1) / (K - 1), so this
    object is the schedule to give to :class:`idlm.processes.Uniform`. For soft x that identity
    does not hold: the argmax is then not a draw of alpha x + (1 - alpha) / K.

    The defaults are Duo's curriculum on OpenWebText (methods B.4): alpha falls from 0.945 to
    0.049, not from 1 to 0.

    Departures from the published code: alpha' is the true derivative, where the code takes the
    forward difference 1000 (A(gamma + 1e-3) - A(gamma)), which is 0 at the end of its table;
    gamma outside [gamma_min, gamma_max] is evaluated, where the code clips it to its table.

    Args:
        vocab_size: K, the number of states.
        gamma_min: log noise-to-signal ratio at t = 0.
        gamma_max: the same at t = 1.

    Raises:
        UserError: if K is below 2, or the range is empty or leaves [-30, 30].
    """

    name = "gaussian-relaxation"

    def __init__(
        self, vocab_size: int, *, gamma_min: float = -3.55, gamma_max: float = -1.85
    ) -> None:
        if vocab_size < 2:
            raise UserError(f"vocab_size is {vocab_size}; a process needs at least two states")
        if not -_MAX_GAMMA <= gamma_min < gamma_max <= _MAX_GAMMA:
            raise UserError(
                f"gamma_min is {gamma_min} and gamma_max is {gamma_max}; choose gamma_min below "
                f"gamma_max, both in [-{_MAX_GAMMA:g}, {_MAX_GAMMA:g}] (Duo: -3.55 and -1.85)"
            )
        self.vocab_size = vocab_size
        self.gamma_min = gamma_min
        self.gamma_max = gamma_max

    def gamma(self, t: Tensor) -> Tensor:
        """Log noise-to-signal ratio gamma_t, float64 of the shape of ``t``."""
        return self.gamma_min + t.double() * (self.gamma_max - self.gamma_min)

    def alpha(self, t: Tensor) -> Tensor:
        return self._survival(t)[0].to(t.dtype)

    def dalpha(self, t: Tensor) -> Tensor:
        """The exact d alpha / d t = (gamma_max - gamma_min) dA / dgamma."""
        k = self.vocab_size
        scale = (self.gamma_max - self.gamma_min) * k / (k - 1)
        return (scale * self._law(t).slope).to(t.dtype)

    def sigma(self, t: Tensor) -> Tensor:
        alpha, lost = self._survival(t)
        return -torch.where(lost < 0.5, torch.log1p(-lost), torch.log(alpha)).to(t.dtype)

    def inverse(self, alpha: Tensor) -> Tensor:
        """The time at which the survival probability is ``alpha``, by bisection.

        Raises:
            ValueError: if an alpha is not one that some t in [0, 1] has.
        """
        low, high = torch.zeros_like(alpha.double()), torch.ones_like(alpha.double())
        # rounded as the caller's alpha was
        first, last = (self.alpha(end).to(alpha.dtype) for end in (low, high))
        if not bool(((alpha <= first) & (alpha >= last)).all()):
            raise ValueError(
                f"alpha must lie in [{float(last.min()):.6g}, {float(first.max()):.6g}], which is "
                f"what gamma in [{self.gamma_min}, {self.gamma_max}] spans for "
                f"{self.vocab_size} states"
            )
        for _ in range(53):
            middle = 0.5 * (low + high)
            later = self.alpha(middle) > alpha
            low, high = torch.where(later, middle, low), torch.where(later, high, middle)
        return (0.5 * (low + high)).to(alpha.dtype)

    def state(self, x: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """w_t = a_t x + s_t eps; its argmax is z_t. Gradient flows through a soft ``x``.

        Args:
            x: tokens, int64 ``[B, L]``, or probabilities ``[B, L, K]``.
            t: times, ``[B]`` or ``[B, 1]``.
            noise: eps, standard normal ``[B, L, K]``, fp32 or float64.

        Returns:
            ``[B, L, K]`` in the dtype of ``noise``.

        Raises:
            ValueError: if shapes do not fit, or the noise is of half precision, in which the
                largest of thousands of normals is often a tie.
        """
        if noise.dtype not in (torch.float32, torch.float64):
            raise ValueError(f"noise is {noise.dtype}; the relaxed state needs fp32 or float64")
        soft = x.is_floating_point()
        expected = (*x.shape[:2], self.vocab_size)
        if noise.shape != expected or x.shape != expected[: 3 if soft else 2]:
            raise ValueError(
                f"x has shape {tuple(x.shape)} and noise {tuple(noise.shape)}; noise is [B, L, K] "
                f"and x is tokens [B, L] or probabilities [B, L, K], with K = {self.vocab_size}"
            )
        gamma = self.gamma(t).reshape(-1, 1, 1)
        a = torch.sqrt(torch.sigmoid(-gamma)).to(noise.dtype)
        s = torch.sqrt(torch.sigmoid(gamma)).to(noise.dtype)
        if soft:
            return a * x.to(noise.dtype) + s * noise
        # no one-hot table of the size of the noise
        signal = a.expand(*expected[:2], 1)
        return (s * noise).scatter_add(-1, x.unsqueeze(-1), signal)

    @staticmethod
    def scores(w: Tensor, *, tau: float = 1e-3) -> Tensor:
        """w / tau, the network's 3-D float input; its embedding takes softmax(w / tau) @ E.

        Args:
            w: relaxed state ``[B, L, K]``.
            tau: temperature; Duo's runs on OpenWebText and IDLM keep it at 1e-3 (methods B.4).

        Raises:
            UserError: if ``tau`` is not positive.
        """
        if not tau > 0:
            raise UserError(f"tau is {tau}; it is a temperature above 0 (Duo: 1e-3)")
        return w / tau

    def _law(self, t: Tensor) -> ArgmaxLaw:
        return argmax_law(self.gamma(t), self.vocab_size)

    def _survival(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """A and 1 - A, each with its own digits."""
        k, law = self.vocab_size, self._law(t)
        lost = k * law.rest / (k - 1)
        return torch.where(law.rest < 0.5, 1.0 - lost, (k * law.p - 1) / (k - 1)), lost
