"""The ancestral sampler of the absorbing process (MDLM; methods A.7), without full tables.

The published step draws, at every masked position, from p_theta(x0 | z_t) scaled by
(alpha_s - alpha_t)/(1 - alpha_t) with the rest on the mask. That is the same as drawing first
*which* positions reveal, a Bernoulli each, and then a token there only. So one step costs one
backbone call plus the head on the revealed positions, and none at all when nothing reveals.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from idlm import random
from idlm.models.dit import Latent
from idlm.models.modeling import DiffusionLM
from idlm.processes import Absorbing
from idlm.random import Stream
from idlm.sampling.categorical import draw, nucleus


@dataclass(frozen=True)
class StepState:
    """What a step callback sees, after the step.

    Attributes:
        step: number of the step, from 0.
        steps: how many there are.
        tokens: states ``[B, L]``; the mask id where a position is still masked.
        revealed: positions revealed in this step, bool ``[B, L]``.
        nfe: network calls so far.
    """

    step: int
    steps: int
    tokens: Tensor
    revealed: Tensor
    nfe: int


Callback = Callable[[StepState], None]


def sample_ancestral(
    model: DiffusionLM,
    sample: Tensor,
    length: int,
    steps: int,
    *,
    seed: int,
    temperature: float = 1.0,
    top_p: float = 1.0,
    callback: Callback | None = None,
) -> tuple[Tensor, int]:
    """Generate from pure noise on the grid t = 1, 1 - 1/N, ..., 0.

    The last step ends at alpha = 1 and reveals what is left; the published samplers end at
    t = 1e-5 and spend one more call on the one masked token in 100,000 (methods A.7). Every
    random number depends on (seed, step, sample) alone, so a sample does not depend on its batch.

    Args:
        model: denoiser or generator of the absorbing process, in eval mode.
        sample: running numbers of the samples, int64 ``[B]``, on the model's device.
        length: tokens per sample L.
        steps: N, network calls at most.
        seed: of the whole call.
        temperature: divides the logits of the clean-token prediction.
        top_p: nucleus of the clean-token prediction.
        callback: called after every step.

    Returns:
        Tokens int64 ``[B, L]`` without masks, and the number of network calls made.
    """
    process = model.process
    assert isinstance(process, Absorbing)  # generate() has checked it
    device = sample.device
    tokens = process.prior((sample.shape[0], length), like=sample)
    grid = torch.linspace(1.0, 0.0, steps + 1, dtype=torch.float64, device=device)
    nfe = 0
    for i in range(steps):
        t, s = grid[i], grid[i + 1]
        keys: dict[str, Any] = {"sample": sample, "seed": seed, "step": i}
        masked = tokens == process.mask_id
        chance = process.reveal_probability(s, t)
        reveal = masked & (random.uniform(length, stream=Stream.REVEAL, **keys) < chance)
        rows = reveal.any(1)
        if bool(rows.any()):
            nfe += 1
            active = sample[rows]
            sigma = process.schedule.sigma(t).float().expand(active.shape[0])
            latent: Latent | None = model.sample_latent(active, length, seed=seed, step=i)
            hidden = model.features(tokens[rows], sigma, latent)
            log_p = process.clean_log_probs(model.head(hidden[reveal[rows]]).double())
            if temperature != 1.0:
                # after SUBS: a logit divided by a tiny temperature would outgrow the mask's -1e6,
                # and a huge temperature would flatten it
                log_p[..., process.mask_id] = -torch.inf
                log_p = torch.log_softmax(log_p / temperature, dim=-1)
            log_p = nucleus(log_p, top_p)
            noise = random.uniform(length, stream=Stream.TOKEN, **keys)
            tokens = tokens.masked_scatter(reveal, draw(log_p, noise[reveal]))
        if callback is not None:
            callback(StepState(i, steps, tokens, reveal, nfe))
    return tokens, nfe
