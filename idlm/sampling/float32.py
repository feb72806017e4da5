"""The masked sampler with float32 races, as several published codes draw: a research option.

MDLM's first code, SDTT, Di4C and IDLM's masked sampler draw a token by an exponential race in
float32, over every token *and* the mask (methods A.7, C.7.1). A float32 uniform has 24 bits and
never exceeds 1 - 2^-24, so that no exponential is below 6e-8. In N steps every token's weight is
divided by about N while the mask keeps the rest, and a token whose probability is below about
N * 2^-24 hardly ever wins. That is a lower temperature nobody asked for: generative perplexity and
entropy both fall, the more the more steps (arXiv 2409.02908). It is here to measure that, and to
repeat published numbers; the sampler of this project draws in float64.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from idlm import random
from idlm.models.modeling import DiffusionLM
from idlm.processes import Absorbing
from idlm.random import Stream
from idlm.sampling.ancestral import clean_logits
from idlm.sampling.base import Callback, Settings, StepState
from idlm.sampling.categorical import nucleus, temper

_TINY = 1e-10  # of the published code: keeps both logarithms finite


def race(weights: Tensor, uniform: Tensor) -> Tensor:
    """The published draw, argmax_v q_v / E_v with E_v = 1e-10 - log(U_v + 1e-10).

    All arithmetic is in the dtype of the arguments. In float64 the winner follows q to 1e-9; in
    float32 tokens of small weight hardly ever win (methods A.7).

    Args:
        weights: q, not negative, need not be normalised, ``[..., V]``.
        uniform: U in ``[0, 1)``, ``[..., V]``.

    Returns:
        int64 ``[...]``.
    """
    return (weights / (_TINY - (uniform + _TINY).log())).argmax(-1)


def sample_float32(
    model: DiffusionLM,
    tokens: Tensor,
    write: Tensor,
    sample: Tensor,
    settings: Settings,
    *,
    window: int = 0,
    callback: Callback | None = None,
) -> tuple[Tensor, int]:
    """Write the open positions on the grid t = 1, 1 - 1/N, ..., 0, every draw a float32 race.

    A :class:`~idlm.sampling.base.Sampler`. Each step runs the head at all masked positions, as the
    published samplers do, and so costs far more than the default. The network is not asked again
    about a row in which nothing was revealed, unless it hears the time or a latent (MDLM's cached
    sampler). The races of a sample come from a generator of its own, seeded by (seed, step,
    sample): a sample does not depend on its batch, but it does on the kind of device.
    """
    process = model.process
    assert isinstance(process, Absorbing)  # the registry brings no other process here
    length, steps = tokens.shape[1], settings.steps
    tokens, masked = torch.where(write, process.mask_id, tokens), write
    grid = torch.linspace(1.0, 0.0, steps + 1, dtype=torch.float64)
    changed, known = masked.any(1), None  # rows to ask the network about, and what it said
    nfe = 0
    for i in range(steps):
        keys: dict[str, Any] = {"seed": settings.seed, "step": window * steps + i}
        if bool(changed.any()):
            nfe += 1
            sigma = process.schedule.sigma(grid[i]).float().expand(len(tokens)).to(tokens.device)
            latent = model.sample_latent(length=length, sample=sample[changed], **keys)
            fresh = model.features(tokens[changed], sigma[changed], latent)
            known = fresh.new_zeros(*tokens.shape, fresh.shape[-1]) if known is None else known
            known[changed] = fresh
        rows = masked.any(1).nonzero().squeeze(1)
        reveal = torch.zeros_like(masked)
        if len(rows) and known is not None:
            show = float(process.reveal_probability(grid[i + 1], grid[i]))
            noise = random.uniform(1, stream=Stream.TOKEN, sample=sample[rows], **keys)
            seeds = (noise * 2.0**53).long().flatten().tolist()
            drawn = [
                _races(model, known[row][masked[row]], show, seed, settings)
                for row, seed in zip(rows.tolist(), seeds, strict=True)
            ]
            tokens = tokens.masked_scatter(masked, torch.cat(drawn))
            reveal = masked & (tokens != process.mask_id)
            masked = masked & ~reveal
        always = model.config.time_conditioning or model.has_latent
        changed = masked.any(1) & (always | reveal.any(1))
        if callback is not None:
            callback(StepState(i, steps, tokens, reveal, nfe, sample, None, window))
    return tokens, nfe


def _races(
    model: DiffusionLM, features: Tensor, show: float, seed: int, settings: Settings
) -> Tensor:
    """The next state ``[R]`` of one sample's masked positions, from features ``[R, D]``."""
    process = model.process
    assert isinstance(process, Absorbing)
    generator = torch.Generator(features.device).manual_seed(seed)
    drawn = []
    for logits in clean_logits(model, features):
        log_p = torch.log_softmax(logits.float(), -1)
        q = nucleus(temper(log_p, settings.temperature), settings.top_p).exp() * show
        q[:, process.mask_id] = 1.0 - show
        drawn.append(race(q, torch.rand(q.shape, generator=generator, device=q.device)))
    return torch.cat(drawn)
