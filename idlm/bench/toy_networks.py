"""Small networks for toys, and noise for them that costs next to nothing.

A transformer spends most of its time on two tokens in the overhead of its operations. These
networks are ordinary :class:`~idlm.models.DiffusionLM` models, with the same head, latent, process
and samplers, around a multilayer perceptron that reads all positions at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from idlm.models import DiffusionConfig, DiffusionLM
from idlm.models.dit import DiT, Embedded, Latent, take_positions
from idlm.models.recognition import Posterior
from idlm.objectives.base import Draw
from idlm.objectives.dmmd import DMMD
from idlm.objectives.idlm import IDLM
from idlm.objectives.vadd import VADD
from idlm.random import Stream

_TIME_WAVES = 4


class TinyLM(DiffusionLM):
    """A :class:`~idlm.models.DiffusionLM` with a perceptron for its backbone.

    ``n_blocks`` counts residual blocks, ``cond_dim`` is the width of the features of a position;
    ``n_heads`` means nothing. The latent's parts enter the first hidden state.

    Attributes:
        latent_shared: whether the latent is noise, see :class:`Perceptron`.
    """

    latent_shared: ClassVar[bool] = True

    def __init__(self, config: DiffusionConfig) -> None:
        super().__init__(config)
        # what DiffusionLM asks of a backbone, this one has
        self.backbone = cast(DiT, Perceptron(config, latent_shared=self.latent_shared))

    def embedder(self) -> Callable[[Tensor], Tensor]:
        """Softmax alone, ``[B, l, V]``: a position's rows of the table depend on where it is."""
        return partial(torch.softmax, dim=-1)

    def sample_latent(self, sample: Tensor, length: int, *, seed: int, step: int) -> Latent | None:
        """As the base class, with the numbers of :class:`FastDraw`."""
        if not self.has_latent:
            return None
        draw = FastDraw(sample, len(sample), seed, step)
        g, p = self.config.latent_global, self.config.latent_position
        return Latent(
            draw.normal(g, stream=Stream.LATENT_GLOBAL) if g else None,
            draw.normal(length, p, stream=Stream.LATENT_POSITION) if p else None,
        )

    def features(
        self,
        input_ids: Tensor | Embedded,
        timesteps: Tensor | None = None,
        latent: Latent | None = None,
        at: Tensor | None = None,
    ) -> Tensor:
        """As the base class; the perceptron makes all positions at once in any case."""
        every = super().features(input_ids, timesteps, latent)
        return every if at is None else take_positions(every, at)


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
    """States of all positions, time and latent to features of each position.

    Args:
        config: sizes.
        latent_shared: whether the latent is noise for positions to agree by, which is silent where
            nothing is left to agree with; otherwise it always enters in full.
    """

    positions: Tensor

    def __init__(self, config: DiffusionConfig, *, latent_shared: bool = True) -> None:
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
        self.latent_shared = latent_shared
        self.blocks = nn.ModuleList()  # no attention to choose a kernel for
        self.gradient_checkpointing = False
        self.register_buffer("positions", torch.arange(length) * self.vocab_size, persistent=False)

    def forward(self, tokens: Tensor | Embedded, sigma: Tensor, latent: Latent | None) -> Tensor:
        """Features ``[B, L, D]``; arguments as :meth:`idlm.models.dit.DiT.forward`."""
        if isinstance(tokens, Embedded):
            x = tokens.states.flatten(1) @ self.embedding
        elif tokens.is_floating_point():
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

    def _share(self, tokens: Tensor | Embedded, sigma: Tensor) -> Tensor:
        """How much of the latent enters, from 0 to 1, ``[B]``.

        It is there to make tokens agree that are written together. A last masked position has
        nothing to agree with: the teacher's prediction is right there, and noise in the way.
        """
        if not self.latent_shared:
            return torch.ones_like(sigma)
        if self.mask_id is None:
            return 1.0 - torch.exp(-sigma)
        assert isinstance(tokens, Tensor)  # no method relaxes masked states
        others = (tokens == self.mask_id).sum(1) - 1
        return others.clamp(min=0) / (self.length - 1)


class TinyFake(TinyLM):
    """A fake model: its latent is no noise, but what it is told."""

    latent_shared = False


def _hearing(made: nn.Module | None) -> nn.Module:
    """A fake model to which what enters as a latent does so in full."""
    made = cast(TinyLM, made)
    fake = TinyFake(made.config)
    fake.load_state_dict(made.state_dict())
    return fake.train(made.training)


class TinyIDLM(IDLM):
    """IDLM whose fake model is told of the input at a last masked position, too."""

    def make_auxiliary(self, teacher: DiffusionLM, student: DiffusionLM) -> nn.Module | None:
        """As IDLM's; what enters as a latent does so in full."""
        return _hearing(super().make_auxiliary(teacher, student))


class TinyDMMD(DMMD):
    """D-MMD whose fake model is told of the input at a last masked position, too."""

    def make_auxiliary(self, teacher: DiffusionLM, student: DiffusionLM) -> nn.Module | None:
        """As D-MMD's; what enters as a latent does so in full."""
        return _hearing(super().make_auxiliary(teacher, student))


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
    """Numbers from torch's generator, in a twentieth of Philox's time on batches this small.

    They are keyed by seed, step, stream, number of the first row and number of rows: a stream gives
    the same numbers whenever it is asked, parts of a batch are independent of each other and of the
    whole. A row's numbers depend on the rows it is asked with, unlike those of
    :class:`~idlm.objectives.base.Draw`: a run is repeated only with its batch size, on one process.
    """

    def uniform(self, *shape: int, stream: Stream) -> Tensor:
        generator = self._generator(stream)
        return torch.rand(len(self.sample), *shape, dtype=torch.float64, generator=generator)

    def normal(
        self, *shape: int, stream: Stream, dtype: torch.dtype | None = None, first: int = 0
    ) -> Tensor:
        # a part that begins elsewhere has numbers of its own, not those of the whole
        generator = self._generator(stream, *([first] if first else []))
        return torch.randn(
            len(self.sample), *shape, dtype=dtype or torch.float32, generator=generator
        )

    def permutation(self, count: int) -> Tensor:
        """As the base class; parts with strata of their own have permutations of their own."""
        if self.own_strata:
            return torch.randperm(count, generator=self._generator(Stream.PERMUTE))
        key = _mixed(self.seed, self.step, Stream.PERMUTE, 0, count)
        return torch.randperm(count, generator=torch.Generator().manual_seed(key))

    def _generator(self, stream: Stream, *more: int) -> torch.Generator:
        rows = len(self.sample)
        first = int(self.sample[0]) if rows else 0
        return torch.Generator().manual_seed(
            _mixed(self.seed, self.step, stream, first, rows, *more)
        )


def _mixed(*parts: int) -> int:
    """32 bits that all bits of all parts change; torch reads no more of a seed."""
    key = 0
    for part in parts:  # a step of splitmix64 for each
        key = ((key ^ part) * 0xBF58476D1CE4E5B9 + 0x9E3779B97F4A7C15) % (1 << 64)
        key ^= key >> 31
    return key >> 32
