"""Likelihoods of a masked denoiser with a latent vector: p(x0 | x_t) = E_z prod_l p(x0_l | x_t, z).

Two numbers that are easily taken for one another. :func:`importance_bound` scores the joint law of
all masked tokens, which is what one step writes; it is what VADD trains and reports.
:func:`marginal_nelbo` is a bound on -log p(x0), comparable with MDLM's NELBO.
"""

from __future__ import annotations

import math
from typing import NamedTuple, cast

import torch
from torch import Tensor

from idlm.errors import UserError
from idlm.models.dit import Latent
from idlm.models.modeling import DiffusionLM
from idlm.models.recognition import Recognition
from idlm.objectives.base import Draw, LossSum
from idlm.objectives.chunks import in_chunks
from idlm.objectives.divergences import entropy, log_mean_exp
from idlm.processes import Absorbing
from idlm.random import Stream


class Noised(NamedTuple):
    """Data at one time per sequence.

    Attributes:
        x0: clean tokens, int64 ``[B, L]``.
        x_t: states, int64 ``[B, L]``.
        masked: where they are the mask, bool ``[B, L]``.
        sigma: what the network is told of the time, ``[B]``.
        weight: w(t) = -alpha'/(1-alpha), ``[B]``.
    """

    x0: Tensor
    x_t: Tensor
    masked: Tensor
    sigma: Tensor
    weight: Tensor


def corrupt(student: DiffusionLM, tokens: Tensor, draw: Draw) -> Noised:
    """Mask tokens ``[B, L]`` with the times and the noise of :func:`~idlm.objectives.masked_nelbo`.

    Raises:
        UserError: if the student's process is not the absorbing one.
    """
    process = student.process
    if not isinstance(process, Absorbing):
        raise UserError(
            "the likelihood given a latent is defined for the absorbing process, but the model's "
            f"process is {process.name!r}; take a masked model"
        )
    t = draw.times(Stream.TIME)
    x_t = process.corrupt(tokens, t, draw.uniform(tokens.shape[1], stream=Stream.CORRUPT))
    schedule = process.schedule
    return Noised(tokens, x_t, x_t == process.mask_id, schedule.sigma(t), schedule.weight(t))


def log_likelihood(student: DiffusionLM, state: Noised, z: Tensor) -> tuple[Tensor, Tensor]:
    """log p(x0 | x_t, z) for K latents each; the head runs at masked positions only, in chunks.

    Args:
        student: a denoiser with a latent vector of size G.
        state: of B sequences.
        z: ``[B, K, G]``.

    Returns:
        Entropy in nats of the prediction at each masked position, ``[M K]``, without gradient, and
        the log-likelihood of each token, ``[B, K, L]``, zero where it is visible.
    """
    count = z.shape[1]
    x0, x_t, masked, sigma, _ = (part.repeat_interleave(count, 0) for part in state)
    hidden = student.features(x_t, sigma, Latent(z.flatten(0, 1), None))
    process = cast(Absorbing, student.process)

    def score(hidden: Tensor, x0: Tensor) -> tuple[Tensor, Tensor]:
        log_p = process.clean_log_probs(student.head(hidden))
        return log_p.gather(-1, x0.unsqueeze(-1)).squeeze(-1), entropy(log_p)

    chosen, spread = in_chunks(score, hidden[masked], x0[masked], numbers=process.vocab_size)
    per_token = chosen.new_zeros(masked.shape).masked_scatter(masked, chosen)
    return spread, per_token.unflatten(0, (-1, count))


@torch.no_grad()
def importance_bound(
    student: DiffusionLM, recognition: Recognition, tokens: Tensor, draw: Draw, *, samples: int
) -> LossSum:
    """E w(t) [-log p(x0 | x_t)] by importance sampling (methods F.2).

    w(t) times -log mean_k p(x0 | x_t, z_k) p(z_k) / r(z_k | x0, x_t), z_k ~ r: for one sample
    VADD's double ELBO in expectation, never looser for more, and exact in the limit. The paper
    evaluates with 1000 and reports the result as a bound on the likelihood.

    It is none. In continuous time a step reveals one token at most, so that what counts of
    p(x0 | x_t) is its marginals, and the joint law scores better than they do: for two equal bits
    the ideal model has ln 2 / 2 nats per pair, half of the data's entropy.

    Args:
        student: a denoiser with a latent vector, in eval mode.
        recognition: its recognition network, in eval mode.
        tokens: clean tokens, int64 ``[B, L]``.
        draw: names the randomness.
        samples: K, latents per sequence; each is a call of the student.

    Returns:
        The sum in nats.

    Raises:
        UserError: if ``samples`` is below 1, or the student's process is not the absorbing one.
    """
    state = corrupt(student, tokens, draw)
    posterior = recognition(tokens, state.masked)
    noise = posterior_noise(draw, posterior.mean, at_least_one(samples))
    values = [
        log_likelihood(student, state, z)[1].sum(-1) + posterior.log_weight(z)
        for z in posterior.sample(noise).split(1, dim=1)
    ]
    bound = log_mean_exp(torch.cat(values, dim=1), 1)
    return LossSum(-(state.weight * bound).sum(), tokens.numel())


@torch.no_grad()
def marginal_nelbo(student: DiffusionLM, tokens: Tensor, draw: Draw, *, samples: int) -> LossSum:
    """The continuous-time NELBO of a denoiser with a latent vector, comparable with MDLM's.

    w(t) times the sum over masked l of -log mean_k p(x0_l | x_t, z_k) with z_k from the prior. In
    expectation it is above -log p(x0) of the sampler with many steps for every K, and falls
    with K to the NELBO of the marginals E_z p(x0_l | x_t, z).

    Args:
        student: a denoiser with a latent vector, in eval mode.
        tokens: clean tokens, int64 ``[B, L]``.
        draw: names the randomness; times and masks are those of :func:`importance_bound`.
        samples: K, latents per sequence; each is a call of the student.

    Returns:
        The sum in nats; its mean is the bound per token.

    Raises:
        UserError: if ``samples`` is below 1, or the student's process is not the absorbing one.
    """
    state = corrupt(student, tokens, draw)
    shape = (at_least_one(samples), student.config.latent_global)
    latents = draw.normal(*shape, stream=Stream.LATENT_GLOBAL, dtype=student.dtype)
    total = state.weight.new_full(tokens.shape, -math.inf)
    for z in latents.split(1, dim=1):
        total = torch.logaddexp(total, log_likelihood(student, state, z)[1].squeeze(1))
    nll = math.log(samples) - total
    return LossSum((state.weight.unsqueeze(-1) * nll).sum(), tokens.numel())


def at_least_one(samples: int) -> int:
    """The number of latents, checked.

    Raises:
        UserError: if it is below 1.
    """
    if samples < 1:
        raise UserError(f"samples is {samples}; it is a number of latents per sequence, 1 or more")
    return samples


def posterior_noise(draw: Draw, like: Tensor, samples: int) -> Tensor:
    """Standard normal ``[B, K, G]`` for means ``[B, G]``; a larger K keeps the first ones."""
    return draw.normal(samples, like.shape[1], stream=Stream.RECOGNITION, dtype=like.dtype)
