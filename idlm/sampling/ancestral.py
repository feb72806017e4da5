"""The ancestral sampler of the absorbing process (MDLM; methods A.7), without full tables.

The published step draws, at every masked position, from p_theta(x0 | z_t) scaled by
(alpha_s - alpha_t)/(1 - alpha_t) with the rest on the mask. That is the same as drawing first
*which* positions reveal, a Bernoulli each, and then a token there only. So one step costs one
backbone call, whose last block works for the revealed positions alone, plus the head on these, and
nothing when nothing reveals: the published cached sampler skips a call when no token changed and
the network ignores time, which between two calls of this one never happens.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from idlm import random
from idlm.models.modeling import DiffusionLM
from idlm.processes import Absorbing
from idlm.random import Stream
from idlm.sampling.base import (
    ENTRIES,
    RANDOM,
    Callback,
    Settings,
    StepState,
    calling,
    features_at,
    features_of,
)
from idlm.sampling.categorical import draw, nucleus, temper
from idlm.sampling.orders import due, rank, surest


def sample_ancestral(
    model: DiffusionLM,
    tokens: Tensor,
    write: Tensor,
    sample: Tensor,
    settings: Settings,
    *,
    window: int = 0,
    callback: Callback | None = None,
) -> tuple[Tensor, int]:
    """Write the open positions on the grid t = 1, 1 - 1/N, ..., 0.

    A :class:`~idlm.sampling.base.Sampler`. The last step ends at alpha = 1 and reveals what is
    left; the published samplers end at t = 1e-5 and spend one more call on the one masked token in
    100,000 (methods A.7). In an order other than ``random`` a step reveals a fixed number of
    positions, chosen by the prediction at temperature 1 on all masked positions.

    Which positions a random order reveals in which step depends on no token. So it is drawn first,
    for all steps, and the device is waited for once: the steps themselves have known shapes and
    queue up behind each other. Ranked orders wait once in each step.
    """
    process = _absorbing(model)
    steps, host = settings.steps, torch.device("cpu")
    tokens, masked = torch.where(write, process.mask_id, tokens), write
    # on the host: the same numbers on every device, and no kernel launched for them
    grid = torch.linspace(1.0, 0.0, steps + 1, dtype=torch.float64)
    sigmas = process.schedule.sigma(grid).float().to(tokens.device)
    if settings.order == RANDOM:
        when = _reveal_steps(process, write, sample, settings, grid, window)
        planned = when.to(host)
    else:
        when = torch.full_like(tokens, steps)
        total = write.sum(1).to(host)
        # half of the way is 0.5: a hair less would round three positions' share down
        visible = [round(float(process.reveal_probability(s, grid[0])), 12) for s in grid]
    nfe = 0
    for i in range(steps):
        if settings.order == RANDOM:
            chosen = planned == i
            count = chosen.sum(1)
        else:
            count = due(total, visible[i], visible[i + 1])
        going = calling(model, count)
        probabilities = _nothing(process, tokens) if settings.probabilities else None
        if len(going):
            nfe += 1
            rows = going.to(tokens.device, non_blocking=True)
            keys: dict[str, Any] = {"seed": settings.seed, "step": window * steps + i}
            keys["sample"] = sample[rows]
            latent = model.sample_latent(length=tokens.shape[1], **keys)
            inputs = model, tokens[rows], sigmas[i].expand(len(rows)), latent
            if settings.order == RANDOM:
                hidden, row, place = features_at(*inputs, chosen[going])
            else:
                hidden = features_of(*inputs)
                coin = random.uniform(tokens.shape[1], stream=Stream.REVEAL, **keys)
                certainty = _certainty(model, hidden, masked[rows], settings.order)
                number = count[going].to(tokens.device, non_blocking=True)
                reveal = surest(certainty, masked[rows], number, coin)
                row, place = reveal.nonzero(as_tuple=True)
                when = when.index_put((rows[row], place), when.new_tensor(i))
                hidden = hidden[row, place]
            noise = random.uniform(tokens.shape[1], stream=Stream.TOKEN, **keys)
            drawn, probabilities = _draw(model, hidden, noise[row, place], settings)
            tokens = tokens.index_put((rows[row], place), drawn)
            masked = masked & (when != i)
        if callback is not None:
            callback(StepState(i, steps, tokens, when == i, nfe, sample, probabilities, window))
    return tokens, nfe


def _reveal_steps(
    process: Absorbing,
    write: Tensor,
    sample: Tensor,
    settings: Settings,
    grid: Tensor,
    window: int,
) -> Tensor:
    """Number of the step that reveals each open position, int64 ``[B, L]``; N where none does.

    A coin of its own for each position in each step, so that a window's draws are the same
    whatever was drawn for another.
    """
    steps, length = settings.steps, write.shape[1]
    when = torch.full(write.shape, steps, device=write.device)
    for i in range(steps):
        keys: dict[str, Any] = {"seed": settings.seed, "step": window * steps + i}
        coin = random.uniform(length, stream=Stream.REVEAL, sample=sample, **keys)
        chance = float(process.reveal_probability(grid[i + 1], grid[i]))
        when = torch.where(write & (when == steps) & (coin < chance), i, when)
    return when


def _nothing(process: Absorbing, like: Tensor) -> Tensor:
    return torch.empty(0, process.vocab_size, dtype=torch.float64, device=like.device)


def _absorbing(model: DiffusionLM) -> Absorbing:
    assert isinstance(model.process, Absorbing)  # the registry brings no other process here
    return model.process


def clean_logits(model: DiffusionLM, features: Tensor) -> Iterator[Tensor]:
    """Logits of x0 at features ``[R, D]``, those of the mask -inf, some rows at a time, ``[r, V]``.

    A prediction at a masked position is their softmax, by SUBS.
    """
    process = _absorbing(model)
    for part in features.split(max(1, ENTRIES // process.vocab_size)):
        logits = model.head(part)
        logits = logits if logits.dtype == torch.float64 else logits.float()
        logits[:, process.mask_id] = -torch.inf
        yield logits


def _certainty(model: DiffusionLM, hidden: Tensor, masked: Tensor, order: str) -> Tensor:
    """How sure the prediction is at each masked position, float64 ``[B, L]``, in whole steps."""
    laws = (torch.softmax(logits.double(), -1) for logits in clean_logits(model, hidden[masked]))
    found = [rank(order, law, model.dtype) for law in laws]
    certainty = torch.zeros(masked.shape, dtype=torch.float64, device=masked.device)
    return certainty.masked_scatter(masked, torch.cat(found))


def _draw(
    model: DiffusionLM, features: Tensor, noise: Tensor, settings: Settings
) -> tuple[Tensor, Tensor | None]:
    """Tokens ``[R]`` at features ``[R, D]``, and what they were drawn from, if asked for."""
    changed = settings.temperature != 1.0 or settings.top_p < 1.0
    drawn, kept, start = [], [], 0
    for weights in clean_logits(model, features):
        if changed or settings.probabilities:  # a draw alone needs no normalised weights
            log_p = torch.log_softmax(weights.double(), -1)
            weights = nucleus(temper(log_p, settings.temperature), settings.top_p)
        end = start + len(weights)
        drawn.append(draw(weights, noise[start:end]))
        start = end
        if settings.probabilities:
            kept.append(weights.exp())
    return torch.cat(drawn), torch.cat(kept) if kept else None
