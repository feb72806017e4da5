"""Tiny denoisers whose prediction depends strongly on the whole state."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from idlm.models import DiffusionConfig, DiffusionLM

Make = Callable[..., DiffusionLM]


@pytest.fixture
def make() -> Make:
    def build(*, seed: int = 0, **changes: Any) -> DiffusionLM:
        torch.manual_seed(seed)
        sizes = {
            "vocab_size": 13,
            "model_length": 16,
            "hidden_dim": 8,
            "cond_dim": 8,
            "n_blocks": 1,
            "n_heads": 2,
            "dropout": 0.5,
        }
        model = DiffusionLM(DiffusionConfig(**{**sizes, **changes}))
        for name, weight in model.named_parameters():
            torch.nn.init.normal_(weight, mean=float("norm" in name), std=0.5)
        torch.nn.init.normal_(model.backbone.vocab_embed.embedding)
        return model.eval()

    return build
