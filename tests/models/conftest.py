"""Denoisers of a few thousand weights, none of them zero."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from idlm.models import DiffusionConfig, DiffusionLM

Make = Callable[..., DiffusionLM]
SIZES = {
    "vocab_size": 13,
    "model_length": 12,
    "hidden_dim": 16,
    "cond_dim": 8,
    "n_blocks": 2,
    "n_heads": 2,
    "dropout": 0.0,
}


@pytest.fixture
def make() -> Make:
    """Build a denoiser in eval mode; every weight random, so that each of them matters."""

    def build(*, std: float = 0.2, seed: int = 0, **changes: Any) -> DiffusionLM:
        torch.manual_seed(seed)
        model = DiffusionLM(DiffusionConfig(**{**SIZES, **changes}))
        for name, weight in model.named_parameters():
            if ".latent." not in name:
                torch.nn.init.normal_(weight, mean=float("norm" in name), std=std)
        return model.eval()

    return build


@pytest.fixture
def tokens() -> torch.Tensor:
    """Two states of length 12 in which the mask, 12, occurs."""
    generator = torch.Generator().manual_seed(7)
    states = torch.randint(0, 12, (2, 12), generator=generator)
    states[torch.rand(2, 12, generator=generator) < 0.5] = 12
    return states
