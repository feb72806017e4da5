"""What several files here look at the sampler with."""

from __future__ import annotations

import torch

from idlm.models import DiffusionLM


def count_calls(model: DiffusionLM) -> list[int]:
    """Filled with the batch size of every call of the network, hooked on the network itself."""
    calls: list[int] = []
    model.backbone.register_forward_hook(lambda _, args, out: calls.append(out.shape[0]))
    return calls


def loud(model: DiffusionLM) -> DiffusionLM:
    """The model as a generator that hears its latent; a fresh one would not."""
    generator = model.with_latent(latent_global=2, latent_position=2)
    assert generator.backbone.latent is not None
    for weight in generator.backbone.latent.parameters():
        torch.nn.init.normal_(weight)
    return generator
