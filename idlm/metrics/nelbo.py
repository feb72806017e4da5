"""The continuous-time NELBO of token rows: one value per row, at given times, without gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from idlm.models.dit import Latent
from idlm.models.modeling import DiffusionLM
from idlm.objectives.chunks import in_chunks
from idlm.processes import Absorbing, Process


@torch.no_grad()
def diffusion_nats(
    model: DiffusionLM,
    tokens: Tensor,
    t: Tensor,
    noise: Tensor,
    *,
    scored: Tensor | None = None,
    latent: Latent | None = None,
) -> Tensor:
    """Integrand of the NELBO at one time for each row, summed over its scored positions.

    MDLM eq. 10 for the absorbing process, UDLM's loss for the uniform one (methods A.4, B.2),
    ``nll_per_token`` for any: the same number as :func:`idlm.objectives.mdlm.masked_nelbo` and its
    siblings, but for each row, in float64, and with positions that are given and so stay clean.

    Args:
        model: a denoiser of tokens.
        tokens: clean tokens, int64 ``[B, L]``.
        t: times above 0, ``[B]``; beyond 1 the network is told time 1.
        noise: uniforms in ``[0, 1)`` that decide the corruption, float64 ``[B, L]``.
        scored: True where a token is noised and counts, bool ``[B, L]``; everywhere if not given.
        latent: of the network, if it takes one.

    Returns:
        Nats, float64 ``[B]``.
    """
    process = model.process

    def nats(hidden: Tensor, x0: Tensor, z: Tensor, t: Tensor) -> tuple[Tensor]:
        # one position is one row here: [r, 1]
        x0, z = x0.unsqueeze(-1), z.unsqueeze(-1)
        log_p = process.log_probs(model.head(hidden).unsqueeze(1), z)
        return (process.nll_per_token(log_p, x0, z, t).squeeze(-1).double(),)

    return _summed(nats, model, tokens, t, noise, scored, latent)


@torch.no_grad()
def reconstruction_nats(
    model: DiffusionLM,
    tokens: Tensor,
    t: Tensor,
    noise: Tensor,
    *,
    scored: Tensor | None = None,
    latent: Latent | None = None,
) -> Tensor:
    """-log p(x | z_t) of a last sampler step from t to 0, summed over each row's scored positions.

    The step is the ancestral one with alpha_s = 1 (methods A.7 and B.5): the posterior with the
    denoiser's probabilities in the place of x.

    Args:
        model: a denoiser of tokens.
        tokens: clean tokens, int64 ``[B, L]``.
        t: times of z_t, ``[B]``.
        noise: uniforms that decide the corruption, float64 ``[B, L]``.
        scored: True where a token is noised and counts, bool ``[B, L]``; everywhere if not given.
        latent: of the network, if it takes one.

    Returns:
        Nats, float64 ``[B]``.
    """
    process = model.process

    def nats(hidden: Tensor, x0: Tensor, z: Tensor, t: Tensor) -> tuple[Tensor]:
        x0, z = x0.unsqueeze(-1), z.unsqueeze(-1)
        clean = process.log_probs(model.head(hidden).unsqueeze(1), z).double().exp()
        last = process.posterior(clean, z, torch.zeros_like(t), t)
        return (-last.gather(-1, x0.unsqueeze(-1)).flatten().log(),)

    return _summed(nats, model, tokens, t, noise, scored, latent)


def _summed(
    nats: Callable[..., tuple[Tensor]],
    model: DiffusionLM,
    tokens: Tensor,
    t: Tensor,
    noise: Tensor,
    scored: Tensor | None,
    latent: Latent | None,
) -> Tensor:
    """``nats`` of features, clean tokens, states and times at what counts, by row ``[B]``."""
    z_t, features = _noised(model, tokens, t, noise, scored, latent)
    chosen = _counted(model.process, z_t, scored)
    times = t.unsqueeze(-1).expand(tokens.shape)[chosen]
    tables = features[chosen], tokens[chosen], z_t[chosen], times
    return _by_row(nats, model.process, chosen, *tables)


def _noised(
    model: DiffusionLM,
    tokens: Tensor,
    t: Tensor,
    noise: Tensor,
    scored: Tensor | None,
    latent: Latent | None,
) -> tuple[Tensor, Tensor]:
    """z_t with given positions clean, and the features of all positions."""
    process = model.process
    z_t = process.corrupt(tokens, t, noise)
    if scored is not None:
        z_t = torch.where(scored, z_t, tokens)
    sigma = process.schedule.sigma(t.clamp(max=1.0))
    return z_t, model.features(z_t, sigma, latent)


def _counted(process: Process, z_t: Tensor, scored: Tensor | None) -> Tensor:
    """Positions that can be other than 0: under SUBS a visible one is not."""
    counted = torch.ones_like(z_t, dtype=torch.bool) if scored is None else scored
    return counted & (z_t == process.mask_id) if isinstance(process, Absorbing) else counted


def _by_row(fn: Any, process: Process, chosen: Tensor, *tables: Tensor) -> Tensor:
    """Sum ``fn`` of the chosen positions over each row, in chunks of bounded tables."""
    found = torch.zeros(chosen.shape, dtype=torch.float64, device=chosen.device)
    if bool(chosen.any()):
        (found[chosen],) = in_chunks(fn, *tables, numbers=process.vocab_size)
    return found.sum(-1)
