"""Mixtures of products: what the latents of one sequence say together.

A prediction given a latent is a product over positions, so a mixture's log-likelihood needs sums
over positions first and the mean over latents last. Tables here are of single positions, and made
some positions at a time.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from idlm.models.modeling import DiffusionLM
from idlm.objectives.alternating_uniform import given_state
from idlm.objectives.chunks import in_chunks
from idlm.objectives.divergences import log_mean_exp
from idlm.processes import Absorbing, Process, Uniform
from idlm.sampling.categorical import draw as draw_categorical


def correlation(log_p: Tensor, *, control: bool = True) -> Tensor:
    """cor: minus the log-likelihood of the mixture, less that of the product of its marginals.

    In float64: a small difference of two sums over the sequence.

    Args:
        log_p: log p_i(x_d), ``[B, L, n, ...]``, zero where x_d is given.
        control: subtract the marginals.

    Returns:
        Nats ``[B, ...]``; 0 for n = 1 with ``control``.
    """
    log_p = log_p.double()
    mixture = log_mean_exp(log_p.sum(1), 1)
    return log_mean_exp(log_p, 2).sum(1) - mixture if control else -mixture


def law(process: Process, logits: Tensor, z: Tensor, t: Tensor) -> Tensor:
    """log p(x0 | z) over clean tokens, for what a network says at single positions.

    Args:
        process: absorbing or uniform.
        logits: ``[..., V]``.
        z: states there, broadcast to ``[...]``.
        t: their times, alike.

    Returns:
        ``[..., C]`` in nats: C = V - 1 without the mask, so that at masked positions no entry
        stands for log 0, or C = V for the uniform process.
    """
    z, t = z.expand(logits.shape[:-1]), t.expand(logits.shape[:-1])
    log_p = process.log_probs(logits, z)
    if isinstance(process, Absorbing):
        return log_p[..., : process.mask_id]
    flat = log_p.reshape(-1, 1, log_p.shape[-1])
    return given_state(cast(Uniform, process), flat, z.reshape(-1, 1), t.reshape(-1)).view_as(log_p)


@torch.no_grad()
def drawn_tokens(model: DiffusionLM, hidden: Tensor, z: Tensor, t: Tensor, noise: Tensor) -> Tensor:
    """A token from the prediction at each of R positions, int64 ``[R]``.

    Args:
        model: its head and process.
        hidden: features there, ``[R, D]``.
        z: states, ``[R]``; a visible one is returned (absorbing process).
        t: times, ``[R]``.
        noise: float64 uniforms, ``[R]``.
    """

    def drawn(hidden: Tensor, z: Tensor, t: Tensor, noise: Tensor) -> tuple[Tensor]:
        return (draw_categorical(law(model.process, model.head(hidden), z, t), noise),)

    return in_chunks(drawn, hidden, z, t, noise, numbers=model.process.vocab_size)[0]


def scored(process: Process, z: Tensor) -> Tensor:
    """Positions whose tokens a state leaves open: masked ones, or all of the uniform process."""
    if isinstance(process, Absorbing):
        return z == process.mask_id
    return torch.ones_like(z, dtype=torch.bool)
