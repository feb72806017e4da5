"""Samplers of the uniform process (UDLM and Duo, arXiv 2506.10892; methods B.5), no full tables.

Every step redraws every open position from the plug-in posterior q(z_s | z_t, x := p_theta). With
K states and z = z_t it is a mixture of three parts, with weights ::

    a draw from p_theta     alpha_s - alpha_t
    a uniform draw          (1 - alpha_t/alpha_s) (1 - alpha_s)
    z stays                 alpha_t/alpha_s - alpha_t + K alpha_t p_theta(z)

that sum to 1 - alpha_t + K alpha_t p_theta(z). So a coin chooses the part, and only the first part
needs a categorical draw. The network enters the third weight alone, and can but raise it: a coin
that says "stays" where p_theta(z) is 0 says so whatever the network, and the head runs at the other
positions only. A row that has none is left out of the call, a step without any makes no call.

The posterior takes a prediction from the other positions' states, p(x | z_t elsewhere), to the
exact law of z_s at one position. That prediction, not the mean of x given all of z_t, is the
minimum of the NELBO that these networks are trained by.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from idlm import random
from idlm.models.modeling import DiffusionLM
from idlm.processes import Uniform
from idlm.random import Stream
from idlm.sampling.base import (
    ENTRIES,
    GREEDY,
    Callback,
    Settings,
    StepState,
    calling,
    features_at,
)
from idlm.sampling.categorical import draw, nucleus, temper

# Where the published grid ends: the time of the greedy tail's call.
_END = 1e-5


class Mixture(NamedTuple):
    """The plug-in posterior of one step as a mixture; weights need not sum to one.

    Attributes:
        clean: weight of a draw from p_theta.
        noise: weight of a uniform draw.
        stay: weight of the present token z if p_theta(z) is 0.
        slope: what ``stay`` gains per unit of p_theta(z).
    """

    clean: float
    noise: float
    stay: float
    slope: float

    @property
    def most(self) -> float:
        """The largest chance, over all predictions, that a position is drawn anew."""
        new = self.clean + self.noise
        return new / (new + self.stay)

    def choose(self, coin: Tensor, p_z: Tensor) -> tuple[Tensor, Tensor]:
        """Whether a position is drawn from p_theta, and whether uniformly; it stays otherwise.

        Args:
            coin: float64 uniforms in ``[0, 1)``, ``[R]``.
            p_z: p_theta of the present token, float64 ``[R]``.
        """
        new = self.clean + self.noise
        place = coin * (new + self.stay + self.slope * p_z)
        return place < self.clean, (place >= self.clean) & (place < new)

    def table(self, p: Tensor, z: Tensor) -> Tensor:
        """The posterior's probabilities ``[R, V]`` for p_theta ``[R, V]`` and tokens ``[R]``."""
        here = z.unsqueeze(-1)
        stay = self.stay + self.slope * p.gather(-1, here)
        joint = (self.clean * p + self.noise / p.shape[-1]).scatter_add(-1, here, stay)
        return joint / (self.clean + self.noise + stay)


def sample_uniform(
    model: DiffusionLM,
    tokens: Tensor,
    write: Tensor,
    sample: Tensor,
    settings: Settings,
    *,
    window: int = 0,
    callback: Callback | None = None,
) -> tuple[Tensor, int]:
    """Write the open positions, from uniform noise at t = 1.

    A :class:`~idlm.sampling.base.Sampler`. Both tails take N ancestral steps.

    * ``ancestral``: on the grid t = 1, 1 - 1/N, ..., 0, whose last update has alpha_s = 1. Duo's
      code ends its N steps at t = 1e-5 and spends one more call on that update, which redraws a
      token only if p_theta gives it less than about 1e-5 / K.
    * ``greedy``: on the published grid from 1 to 1e-5, then one more call and the argmax of
      p_theta at every open position (Duo's "^g", methods B.5).

    Temperature and nucleus change p_theta, which is then plugged in, as in Duo's code; IDLM's fork
    filters the posterior instead, where the nucleus also drops most of the noise that a step is to
    leave. The state that a callback sees counts every open position as revealed in every step; its
    probabilities are the posterior, in the greedy tail p_theta.
    """
    process = model.process
    assert isinstance(process, Uniform)  # the registry brings no other process here
    length, steps, rounds = tokens.shape[1], settings.steps, settings.rounds
    keys: dict[str, Any] = {"seed": settings.seed, "step": window * rounds}
    noise = random.uniform(length, stream=Stream.CORRUPT, sample=sample, **keys)
    tokens = torch.where(write, process.prior(tokens.shape, tokens, noise), tokens)
    # on the host: the same numbers on every device, and no kernel launched for them
    end = _END if settings.tail == GREEDY else 0.0
    grid = torch.linspace(1.0, end, steps + 1, dtype=torch.float64)
    alphas = process.schedule.alpha(grid).tolist()
    nfe = 0
    for i in range(rounds):
        keys = {"seed": settings.seed, "step": window * rounds + i}
        coin = random.uniform(length, stream=Stream.REVEAL, sample=sample, **keys)
        mixture, asked = None, write
        if i < steps:
            mixture = Mixture(*process.parts(alphas[i + 1], alphas[i]))
            if not settings.probabilities:
                asked = write & (coin < mixture.most)
        rows = calling(model, asked.any(1))
        shown = None
        if len(rows):
            nfe += 1
            keys["sample"] = sample[rows]
            sigma = process.schedule.sigma(grid[i]).float().expand(len(rows)).to(tokens.device)
            latent = model.sample_latent(length=length, **keys)
            hidden, row, place = features_at(model, tokens[rows], sigma, latent, asked[rows])
            places = row, place
            state = tokens[rows][places]
            if mixture is None:
                drawn, shown = _best(model, hidden, state, settings)
            else:
                noise = random.uniform(length, stream=Stream.TOKEN, **keys)[places]
                coins = torch.stack([coin[rows][places], noise])
                drawn, shown = _redraw(model, hidden, state, coins, mixture, settings)
            tokens = tokens.masked_scatter(asked, drawn)
        if callback is not None:
            callback(StepState(i, rounds, tokens, write, nfe, sample, shown, window))
    return tokens, nfe


def _predictions(
    model: DiffusionLM, features: Tensor, state: Tensor, settings: Settings
) -> Iterator[tuple[slice, Tensor]]:
    """log p_theta after temperature and nucleus, float64 ``[r, V]``, some positions at a time."""
    size = max(1, ENTRIES // model.process.vocab_size)
    for start in range(0, len(state), size):
        part = slice(start, start + size)
        log_p = model.process.log_probs(model.head(features[part]).double(), state[part])
        yield part, nucleus(temper(log_p, settings.temperature), settings.top_p)


def _redraw(
    model: DiffusionLM,
    features: Tensor,
    state: Tensor,
    noise: Tensor,
    mixture: Mixture,
    settings: Settings,
) -> tuple[Tensor, Tensor | None]:
    """z_s ``[R]`` at features ``[R, D]`` and states z_t ``[R]``, and its law, if asked for.

    The noise ``[2, R]`` is a coin for the part of the mixture and one for the token within it.
    """
    drawn, kept = [], []
    for part, log_p in _predictions(model, features, state, settings):
        z, (coin, u) = state[part], noise[:, part]
        p_z = log_p.gather(-1, z.unsqueeze(-1)).squeeze(-1).exp()
        clean, uniform = mixture.choose(coin, p_z)
        token = torch.where(uniform, model.process.prior(z.shape, z, u), z)
        token[clean] = draw(log_p[clean], u[clean])
        drawn.append(token)
        if settings.probabilities:
            kept.append(mixture.table(log_p.exp(), z))
    return torch.cat(drawn), torch.cat(kept) if kept else None


def _best(
    model: DiffusionLM, features: Tensor, state: Tensor, settings: Settings
) -> tuple[Tensor, Tensor | None]:
    """The likeliest tokens ``[R]`` at features ``[R, D]``, and p_theta, if asked for."""
    drawn, kept = [], []
    for _, log_p in _predictions(model, features, state, settings):
        drawn.append(log_p.argmax(-1))
        if settings.probabilities:
            kept.append(log_p.exp())
    return torch.cat(drawn), torch.cat(kept) if kept else None
