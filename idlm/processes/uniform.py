"""The uniform process of UDLM and Duo, arXiv 2412.10193 and 2506.10892."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from idlm.processes.base import Process, as_probabilities
from idlm.schedules import LogLinear, Schedule


class Uniform(Process):
    """Each token turns into any of the K = V states, itself included, with probability 1 - alpha_t.

    There is no mask: a state does not tell whether it is clean. What is computed from
    probabilities is computed, and returned, in float64: K alpha p + 1 - alpha loses its small
    terms in less.
    """

    name = "uniform"

    def __init__(self, vocab_size: int, schedule: Schedule | None = None) -> None:
        super().__init__(schedule or LogLinear(), vocab_size)

    def prior(self, shape: tuple[int, ...], like: Tensor, noise: Tensor | None = None) -> Tensor:
        if noise is None:
            return torch.randint(self.vocab_size, shape, device=like.device)
        return self._state(_exact(noise).reshape(shape))

    def corrupt(self, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """Replace each token with probability 1 - alpha_t by a uniform draw over all K.

        Args:
            x0: clean tokens, int64 ``[B, L]``.
            t: times, ``[B]`` or ``[B, 1]``.
            noise: uniforms in ``[0, 1)``, float64 ``[B, L]``; one number decides both whether and
                to what a token turns.

        Raises:
            ValueError: if the noise is not float64.
        """
        change = 1.0 - self._alpha(t)
        # below `change` the number is again uniform, on [0, change)
        return torch.where(_exact(noise) < change, self._state(noise / change), x0)

    def log_probs(self, logits: Tensor, z_t: Tensor) -> Tensor:
        """Plain log-softmax over all K states (parameterisation ``mean``), fp32 at least.

        Args:
            logits: raw logits ``[B, L, V]``.
            z_t: states ``[B, L]``; they constrain nothing here.
        """
        logits = logits if logits.dtype == torch.float64 else logits.float()
        return torch.log_softmax(logits, dim=-1)

    def nll_per_token(self, log_probs: Tensor, x0: Tensor, z_t: Tensor, t: Tensor) -> Tensor:
        """Integrand of the uniform NELBO (UDLM's loss; Duo eq. for the mean parameterisation).

        With xbar = K alpha x0 + 1 - alpha, z = z_t, r_j = xbar_j / xbar_z, and rt_j alike from the
        denoiser's probabilities::

            -alpha' / (K alpha) * sum_j [ r_j log(r_j / rt_j) - r_j + rt_j ]

        The sums of xbar and its twin are K exactly, which the published code uses, and so do we:
        probabilities from fp32 sum to 1 + 1e-7, and the difference would show.

        Args:
            log_probs: output of :meth:`log_probs`, ``[B, L, V]``.
            x0: clean tokens ``[B, L]`` or probabilities ``[B, L, V]``.
            z_t: states ``[B, L]``.
            t: times ``[B]`` or ``[B, 1]``, above 0.

        Returns:
            Nats ``[B, L]``, float64, never negative; zero only where the denoiser is x0.
        """
        k = self.vocab_size
        alpha = self._alpha(t).unsqueeze(-1)
        target = k * alpha * as_probabilities(x0, k) + 1.0 - alpha
        model = k * alpha * log_probs.double().exp() + 1.0 - alpha
        state = z_t.unsqueeze(-1)
        target_z, model_z = target.gather(-1, state), model.gather(-1, state)
        ratio = target / target_z
        divergence = torch.xlogy(ratio, ratio) - ratio * torch.log(model / model_z)
        total = divergence.sum(-1) + (k / model_z - k / target_z).squeeze(-1)
        slope = -self.schedule.dalpha(t.reshape(-1, 1).double())
        return slope / (k * alpha.squeeze(-1)) * total

    def nll_difference(
        self, first: Tensor, second: Tensor, x0: Tensor, z_t: Tensor, t: Tensor
    ) -> Tensor:
        """:meth:`nll_per_token` of one prediction less that of another, for half of the work.

        What has no denoiser in it drops out, and with xbar for the target's numbers ::

            -alpha' / (K alpha) * [ sum_j xbar_j (d_j - d_z) / xbar_z + K / m1_z - K / m2_z ]

        where m1 and m2 are K alpha p + 1 - alpha of the two predictions, and d = log m2 - log m1.

        Args:
            first: log-probabilities ``[B, L, V]``.
            second: alike.
            x0: clean tokens ``[B, L]`` or probabilities ``[B, L, V]``.
            z_t: states ``[B, L]``.
            t: times ``[B]`` or ``[B, 1]``, above 0.

        Returns:
            Nats ``[B, L]``, float64.
        """
        k, state = self.vocab_size, z_t.unsqueeze(-1)
        alpha = self._alpha(t).unsqueeze(-1)
        rest, scale = 1.0 - alpha, k * alpha
        target = torch.addcmul(rest, scale, as_probabilities(x0, k))
        target_z = target.gather(-1, state)
        model_1, model_2 = (
            torch.addcmul(rest, scale, log_p.double().exp()) for log_p in (first, second)
        )
        change = model_2.log() - model_1.log()
        total = torch.linalg.vecdot(target, change).unsqueeze(-1)
        total = total - target.sum(-1, keepdim=True) * change.gather(-1, state)
        total = total / target_z + k / model_1.gather(-1, state) - k / model_2.gather(-1, state)
        slope = -self.schedule.dalpha(t.reshape(-1, 1).double())
        return slope / (k * alpha.squeeze(-1)) * total.squeeze(-1)

    def posterior(self, x0: Tensor, z_t: Tensor, s: Tensor, t: Tensor) -> Tensor:
        """q(z_s | x0, z_t); for soft ``x0`` the plug-in form, as Duo's sampler uses it.

        The plug-in form is not the mixture sum_v x0(v) q(z_s | v, z_t): here the two differ.

        Args:
            x0: clean tokens ``[B, L]`` or probabilities ``[B, L, V]``.
            z_t: states ``[B, L]``.
            s: earlier times ``[B]`` or ``[B, 1]``.
            t: later times, same shape.

        Returns:
            Probabilities ``[B, L, V]``, float64.
        """
        k = self.vocab_size
        clean = as_probabilities(x0, k)
        alpha_s, alpha_t = self._alpha(s).unsqueeze(-1), self._alpha(t).unsqueeze(-1)
        step = alpha_t / alpha_s  # a token survives from s to t
        at_s = alpha_s * clean + (1.0 - alpha_s) / k
        # P(z_t | z_s) for each z_s: the rest (1 - step) / k, and step more where z_s = z_t
        here = as_probabilities(z_t, k)
        joint = at_s * (step * here + (1.0 - step) / k)
        evidence = alpha_t * clean.gather(-1, z_t.unsqueeze(-1)) + (1.0 - alpha_t) / k
        return joint / evidence

    def parts(self, alpha_s: Any, alpha_t: Any) -> tuple[Any, Any, Any, Any]:
        """Weights of the three laws that q(z_s | x, z_t) mixes (methods B.1), for x on the simplex.

        They sum to 1 - alpha_t + K alpha_t x(z_t), which normalises them.

        Args:
            alpha_s: survival at the earlier time, a float or a tensor of any shape.
            alpha_t: at the later one, alike.

        Returns:
            Weight of a draw from x, of a uniform draw, of the present state z_t where x(z_t) is 0,
            and what the last gains per unit of x(z_t).
        """
        kept = alpha_t / alpha_s  # a token survives from s to t
        return (
            alpha_s - alpha_t,
            (1.0 - kept) * (1.0 - alpha_s),
            kept - alpha_t,
            self.vocab_size * alpha_t,
        )

    def _alpha(self, t: Tensor) -> Tensor:
        """alpha ``[B, 1]`` in float64, rounded to the dtype of ``t`` as in the published code."""
        return self.schedule.alpha(t.reshape(-1, 1)).double()

    def _state(self, noise: Tensor) -> Tensor:
        """The state a uniform number stands for."""
        return (noise * self.vocab_size).long().clamp(max=self.vocab_size - 1)


def _exact(noise: Tensor) -> Tensor:
    if noise.dtype != torch.float64:
        raise ValueError(
            f"noise is {noise.dtype}; the uniform process needs float64, because one number "
            "decides both whether and to which of all states a token turns"
        )
    return noise
