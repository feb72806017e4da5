"""The absorbing (masked) process of MDLM, arXiv 2406.07524."""

from __future__ import annotations

import torch
from torch import Tensor

from idlm.processes.base import Process, column
from idlm.schedules import LogLinear, Schedule

# Stands for log 0 in full tables of log-probabilities: finite, so that products with a zero
# probability stay zero. Scored sums never touch it: they run over masked positions only.
LOG_ZERO = -1e6


class Absorbing(Process):
    """Each token turns into the mask, the last state, with probability 1 - alpha_t."""

    name = "absorbing"
    has_mask = True

    def __init__(self, vocab_size: int, schedule: Schedule | None = None) -> None:
        super().__init__(schedule or LogLinear(), vocab_size)
        self.mask_id: int = vocab_size - 1

    def prior(self, shape: tuple[int, ...], like: Tensor, noise: Tensor | None = None) -> Tensor:
        return torch.full(shape, self.mask_id, dtype=torch.int64, device=like.device)

    def corrupt(self, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """Mask each position with probability 1 - alpha_t.

        Args:
            x0: clean tokens, int64 ``[B, L]``.
            t: times, ``[B]`` or ``[B, 1]``.
            noise: uniforms in ``[0, 1)``, ``[B, L]``.
        """
        masked = noise < 1.0 - self.schedule.alpha(column(t, noise))
        return torch.where(masked, self.mask_id, x0)

    def log_probs(self, logits: Tensor, z_t: Tensor) -> Tensor:
        """SUBS: zero mass on the mask, visible tokens carried over (MDLM section 3.2.3).

        The arithmetic is fp32 at least, whatever comes in; nothing is changed in place.

        Args:
            logits: raw logits ``[B, L, V]``.
            z_t: states ``[B, L]``.

        Returns:
            Natural-log probabilities ``[B, L, V]``; entries of :data:`LOG_ZERO` mean log 0.
        """
        clean = self.clean_log_probs(logits)
        visible = (z_t != self.mask_id).unsqueeze(-1)
        states = torch.arange(self.vocab_size, device=z_t.device)
        carried = torch.where(states == z_t.unsqueeze(-1), 0.0, LOG_ZERO).to(clean.dtype)
        return torch.where(visible, carried, clean)

    def clean_log_probs(self, logits: Tensor) -> Tensor:
        """log p(x0) at *masked* positions for logits of any leading shape ``[..., V]``.

        The row of SUBS that lean losses and samplers use: no visible position ever enters.
        """
        logits = logits if logits.dtype == torch.float64 else logits.float()
        is_mask = torch.arange(self.vocab_size, device=logits.device) == self.mask_id
        # the mask takes no part in the normalisation, and its own entry means log 0 exactly
        log_p = torch.log_softmax(logits + LOG_ZERO * is_mask, dim=-1)
        if log_p.requires_grad:
            return log_p.masked_fill(is_mask, LOG_ZERO)
        log_p[..., self.mask_id] = LOG_ZERO  # no pass over the table
        return log_p

    def nll_per_token(self, log_probs: Tensor, x0: Tensor, z_t: Tensor, t: Tensor) -> Tensor:
        """-alpha'/(1-alpha) * cross-entropy of x0 under the denoiser (MDLM eq. 10).

        Args:
            log_probs: output of :meth:`log_probs`, ``[B, L, V]``.
            x0: clean tokens ``[B, L]`` or probabilities ``[B, L, V]``.
            z_t: states ``[B, L]``.
            t: times ``[B]`` or ``[B, 1]``.

        Returns:
            Nats ``[B, L]``, zero at visible positions: the state carries its token over, and for
            soft ``x0`` the published rows hold -1e6 there, which cancels in every difference of
            two denoisers and would only burn digits.
        """
        if x0.dim() == z_t.dim():
            entropy = -log_probs.gather(-1, x0.unsqueeze(-1)).squeeze(-1)
        else:
            entropy = -(x0 * log_probs).sum(-1)
        weight = self.schedule.weight(column(t, log_probs))
        return torch.where(z_t == self.mask_id, weight * entropy, 0.0)

    def reveal_probability(self, s: Tensor, t: Tensor) -> Tensor:
        """Chance that a position masked at t is visible at s: (alpha_s - alpha_t)/(1 - alpha_t)."""
        alpha_s, alpha_t = self.schedule.alpha(s), self.schedule.alpha(t)
        return (alpha_s - alpha_t) / (1.0 - alpha_t)

    def posterior(self, x0: Tensor, z_t: Tensor, s: Tensor, t: Tensor) -> Tensor:
        """q(z_s | x0, z_t), linear in x0: a visible token stays, a masked one is revealed.

        Args:
            x0: clean tokens ``[B, L]`` or probabilities ``[B, L, V]``; mass that ``x0`` puts on
                the mask stays on the mask.
            z_t: states ``[B, L]``.
            s: earlier times ``[B]`` or ``[B, 1]``.
            t: later times, same shape.

        Returns:
            Probabilities ``[B, L, V]``.
        """
        soft = x0.is_floating_point()
        dtype = x0.dtype if soft else torch.promote_types(t.dtype, torch.float32)
        one_hot = torch.nn.functional.one_hot
        clean = x0 if soft else one_hot(x0, self.vocab_size).to(dtype)
        show = self.reveal_probability(s.reshape(-1, 1, 1).to(dtype), t.reshape(-1, 1, 1).to(dtype))
        state = one_hot(z_t, self.vocab_size).to(dtype)
        mask = one_hot(torch.full_like(z_t, self.mask_id), self.vocab_size).to(dtype)
        revealed = show * clean + (1.0 - show) * mask
        return torch.where((z_t == self.mask_id).unsqueeze(-1), revealed, state)
