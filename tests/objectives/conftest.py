"""A denoiser that is a table of logits: what an objective does to it can be worked out by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from idlm.models import Latent
from idlm.processes import Absorbing, Process, Uniform


class Table(nn.Module):
    """Logits for every state of a short sequence; stands where a ``DiffusionLM`` is expected.

    Args:
        logits: ``[S, L, V]`` with one row per state, S = V**L, or S = 1 for a table that ignores
            the state. Its gradient is the gradient with respect to the network's logits.
        process: the absorbing process if not given.
    """

    def __init__(self, logits: Tensor, process: Process | None = None) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits.double().clone())
        self.process = process or Absorbing(logits.shape[-1])
        self.times: list[Tensor | None] = []
        self.latents: list[Any] = []

    def rows(self, states: Tensor) -> Tensor:
        """Number of the table's row for each state ``[B, L]``, ``[B]``."""
        size, length, vocab = self.logits.shape
        if size == 1:
            return torch.zeros(states.shape[0], dtype=torch.int64)
        return (states * vocab ** torch.arange(length)).sum(-1)

    def sample_latent(self, sample: Tensor, length: int, *, seed: int, step: int) -> Latent:
        latent = Latent(sample.double().unsqueeze(-1) + 1000 * step + seed, None)
        self.latents.append(latent)
        return latent

    def features(
        self, states: Tensor, timesteps: Tensor | None = None, latent: Latent | None = None
    ) -> Tensor:
        """Row and position, ``[B, L, 2]``, which is all that the head needs."""
        self.times.append(timesteps)
        self.latents.append(latent)
        position = torch.arange(states.shape[1]).expand(states.shape)
        return torch.stack([self.rows(states).unsqueeze(-1).expand(states.shape), position], -1)

    def head(self, features: Tensor) -> Tensor:
        return self.logits[features[..., 0], features[..., 1]]

    def table(self, states: Tensor) -> Tensor:
        """Full logits ``[B, L, V]``, for the plain computation of a test."""
        return self.logits[self.rows(states)]


MakeTable = Callable[..., Table]


@pytest.fixture
def table() -> MakeTable:
    """Build a table with random logits, or with given probabilities of the tokens."""

    def build(
        vocab: int = 3, length: int = 1, *, seed: int = 0, probs: Any = None, context: bool = True
    ) -> Table:
        if probs is not None:
            p = torch.as_tensor(probs, dtype=torch.float64)
            mask = torch.full((1,), 2.0, dtype=torch.float64)  # SUBS has to take it away
            return Table(torch.cat([p.log(), mask]).expand(1, length, len(p) + 1))
        generator = torch.Generator().manual_seed(seed)
        rows = vocab**length if context else 1
        return Table(2 * torch.randn(rows, length, vocab, generator=generator, dtype=torch.float64))

    return build


@pytest.fixture
def uniform_table() -> MakeTable:
    """The same for the uniform process: random logits, or given probabilities ``[S, V]``, L = 1."""

    def build(vocab: int = 3, length: int = 1, *, seed: int = 0, probs: Any = None) -> Table:
        if probs is not None:
            p = torch.as_tensor(probs, dtype=torch.float64)
            return Table(p.log().unsqueeze(1), Uniform(p.shape[-1]))
        generator = torch.Generator().manual_seed(seed)
        shape = (vocab**length, length, vocab)
        logits = 2 * torch.randn(shape, generator=generator, dtype=torch.float64)
        return Table(logits, Uniform(vocab))

    return build
