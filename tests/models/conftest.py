"""Denoisers of a few thousand weights, none of them zero."""

from __future__ import annotations

import pytest
import torch

from tests.tiny_models import Make, random_denoiser


@pytest.fixture
def make() -> Make:
    return random_denoiser


@pytest.fixture
def tokens() -> torch.Tensor:
    """Two states of length 12 in which the mask, 12, occurs."""
    generator = torch.Generator().manual_seed(7)
    states = torch.randint(0, 12, (2, 12), generator=generator)
    states[torch.rand(2, 12, generator=generator) < 0.5] = 12
    return states
