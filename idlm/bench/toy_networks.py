"""Small networks for toys, and noise for them that costs next to nothing.

A transformer spends most of its time on two tokens in the overhead of its operations. These
networks are ordinary :class:`~idlm.models.DiffusionLM` models, with the same head, latent, process
and samplers, around a multilayer perceptron that reads all positions at once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from idlm.models import DiffusionConfig, DiffusionLM
from idlm.models.dit import DiT, Latent
from idlm.models.recognition import Posterior
from idlm.objectives.base import Draw
from idlm.objectives.vadd import VADD
from idlm.random import Stream
from idlm.schedules import stratified_times

_TIME_WAVES = 4


class TinyLM(DiffusionLM):
    """A :class:`~idlm.models.DiffusionLM` with a perceptron for its backbone.

    ``n_blocks`` counts residual blocks, ``cond_dim`` is the width of the features of a position;
    ``n_heads`` means nothing. The latent's parts enter the first hidden state.
    """

    def __init__(self, config: DiffusionConfig) -> None:
        super().__init__(config)
        # what DiffusionLM asks of a backbone, this one has
        self.backbone = cast(DiT, Perceptron(config))

    def sample_latent(self, sample: Tensor, length: int, *, seed: int, step: int) -> Latent | None:
        """As the base class, but a function of the batch: of its first sample and its size."""
        if not self.has_latent:
            return None
        first = int(sample[0]) if len(sample) else 0
        generator = _generator(seed, step, first)
        g, p = self.config.latent_global, self.config.latent_position
        return Latent(
            torch.randn(len(sample), g, generator=generator) if g else None,
            torch.randn(len(sample), length, p, generator=generator) if p else None,
        )


def tiny(tokens: int, length: int, process: str, *, hidden: int = 64) -> TinyLM:
    """A new network for sequences of ``length`` out of ``tokens`` tokens, the mask not counted."""
    masked = process == "absorbing"
    config = DiffusionConfig(
        vocab_size=tokens + masked,
        model_length=length,
        hidden_dim=hidden,
        cond_dim=64,
        n_blocks=2,
        n_heads=1,
        dropout=0.0,
        time_conditioning=not masked,
        process=process,
    )
    return TinyLM(config)


class _Output(nn.Module):
    """The head; zero at first, so that training starts from uniform predictions."""

    def __init__(self, config: DiffusionConfig) -> None:
        super().__init__()
        self.linear = nn.Linear(config.cond_dim, config.vocab_size)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)


class _LatentMap(nn.Module):
    """Both parts of the latent into one hidden state, silent until :meth:`wake` or training."""

    def __init__(self, config: DiffusionConfig) -> None:
        super().__init__()
        size = config.latent_global + config.latent_position * config.model_length
        self.embed = nn.Linear(size, config.hidden_dim)
        self.out = nn.Linear(config.hidden_dim, config.hidden_dim, bias=False)
        nn.init.zeros_(self.out.weight)

    def wake(self, scale: float) -> None:
        """Give the last layer first weights N(0, scale^2 / inputs)."""
        nn.init.normal_(self.out.weight, std=scale / math.sqrt(self.out.in_features))

    def forward(self, latent: Latent) -> Tensor:
        parts = [part.flatten(1) for part in latent if part is not None]
        return self.out(F.silu(self.embed(torch.cat(parts, 1).to(self.out.weight.dtype))))


class Perceptron(nn.Module):
    """States of all positions, time and latent to features of each position."""

    positions: Tensor

    def __init__(self, config: DiffusionConfig) -> None:
        super().__init__()
        length, dim = config.model_length, config.hidden_dim
        self.length, self.vocab_size = length, config.vocab_size
        self.mask_id = config.vocab_size - 1 if config.process == "absorbing" else None
        self.embedding = nn.Parameter(torch.randn(length * self.vocab_size, dim) / length**0.5)
        timed = config.time_conditioning
        self.time = nn.Linear(2 * _TIME_WAVES, dim) if timed else None
        self.residual = nn.ModuleList(
            nn.Sequential(
                nn.LayerNorm(dim), nn.Linear(dim, 2 * dim), nn.SiLU(), nn.Linear(2 * dim, dim)
            )
            for _ in range(config.n_blocks)
        )
        self.features = nn.Linear(dim, length * config.cond_dim)
        self.output_layer = _Output(config)
        has_latent = config.latent_global or config.latent_position
        self.latent = _LatentMap(config) if has_latent else None
        self.blocks = nn.ModuleList()  # no attention to choose a kernel for
        self.gradient_checkpointing = False
        self.register_buffer("positions", torch.arange(length) * self.vocab_size, persistent=False)

    def forward(self, tokens: Tensor, sigma: Tensor, latent: Latent | None) -> Tensor:
        """Features ``[B, L, D]``; arguments as :meth:`idlm.models.dit.DiT.forward`."""
        if tokens.is_floating_point():
            relaxed = torch.softmax(tokens.to(self.embedding.dtype), -1).flatten(1)
            x = relaxed @ self.embedding
        else:
            x = F.embedding(tokens + self.positions, self.embedding).sum(1)
        if self.time is not None:
            # cosines of the survival probability: sigma itself reaches 7, where nothing changes
            survival = torch.exp(-sigma).unsqueeze(-1).to(x.dtype)
            angle = 0.5 * math.pi * survival * torch.arange(1, _TIME_WAVES + 1)
            x = x + self.time(torch.cat([torch.cos(angle), torch.sin(angle)], -1))
        if latent is not None and self.latent is not None:
            x = x + self._share(tokens, sigma).unsqueeze(-1).to(x.dtype) * self.latent(latent)
        for block in self.residual:
            x = x + block(x)
        return F.silu(self.features(x)).unflatten(1, (self.length, -1))

    def _share(self, tokens: Tensor, sigma: Tensor) -> Tensor:
        """How much of the latent enters, from 0 to 1, ``[B]``.

        It is there to make tokens agree that are written together. A last masked position has
        nothing to agree with: the teacher's prediction is right there, and noise in the way.
        """
        if self.mask_id is None:
            return 1.0 - torch.exp(-sigma)
        others = (tokens == self.mask_id).sum(1) - 1
        return others.clamp(min=0) / (self.length - 1)


class TinyVADD(VADD):
    """VADD with a recognition network as small as :class:`TinyLM`."""

    def make_auxiliary(self, teacher: DiffusionLM, student: DiffusionLM) -> nn.Module:
        """A perceptron that reads the tokens and which of them are masked."""
        return TinyRecognition(student.config)


class TinyRecognition(nn.Module):
    """r(z | x0, x_t) of VADD, in place of :class:`idlm.models.recognition.Recognition`."""

    def __init__(self, config: DiffusionConfig) -> None:
        super().__init__()
        self.vocab_size = config.vocab_size
        inputs = 2 * self.vocab_size * config.model_length
        dim, size = 128, config.latent_global
        self.net = nn.Sequential(
            nn.Linear(inputs, dim),
            nn.SiLU(),
            nn.Linear(dim, dim),
            nn.SiLU(),
            nn.Linear(dim, 2 * size),
        )

    def forward(self, x0: Tensor, masked: Tensor) -> Posterior:
        """Arguments as :meth:`idlm.models.recognition.Recognition.forward`."""
        seen = F.one_hot(x0 + self.vocab_size * masked, 2 * self.vocab_size)
        out = self.net(seen.flatten(1).float()) * masked.any(1, keepdim=True)
        return Posterior(*out.chunk(2, -1))


@dataclass(frozen=True)
class FastDraw(Draw):
    """Numbers from torch's generator, seeded by the run's seed and the step.

    A hundred times faster than Philox on batches this small. The numbers depend on the batch and on
    the order in which they are asked for, which a run in one process on one batch size can afford.
    """

    @cached_property
    def _generator(self) -> torch.Generator:
        return _generator(self.seed, self.step, 0)

    def uniform(self, *shape: int, stream: Stream) -> Tensor:
        return torch.rand(len(self.sample), *shape, dtype=torch.float64, generator=self._generator)

    def normal(self, *shape: int, stream: Stream, dtype: torch.dtype | None = None) -> Tensor:
        return torch.randn(
            len(self.sample), *shape, dtype=dtype or torch.float32, generator=self._generator
        )

    def latent(self, model: DiffusionLM, length: int) -> Latent | None:
        if not model.has_latent:
            return None
        g, p = model.config.latent_global, model.config.latent_position
        return Latent(
            self.normal(g, stream=Stream.LATENT_GLOBAL) if g else None,
            self.normal(length, p, stream=Stream.LATENT_POSITION) if p else None,
        )

    def times(self, stream: Stream, *, permuted: bool = False) -> Tensor:
        size = len(self.sample)
        stratum = torch.arange(size)
        if permuted:
            stratum = torch.randperm(size, generator=self._generator)
        return stratified_times(stratum, size, self.uniform(stream=stream)).float()


def _generator(seed: int, step: int, first: int) -> torch.Generator:
    """Seeded by all three; torch mixes what it is given."""
    key = (seed * 0x9E3779B97F4A7C15 + step * 0xBF58476D1CE4E5B9 + first) % (1 << 63)
    return torch.Generator().manual_seed(key)
