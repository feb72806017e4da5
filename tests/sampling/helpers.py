"""What several files here look at the sampler with."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import idlm
from idlm.models import DiffusionLM
from tests.sampling.exact import State, count


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


def once_per_state(model: DiffusionLM, states: int) -> None:
    """Run the network once for each state of a batch: of tens of thousands of rows few differ.

    Args:
        model: changed in place; all rows of a call share their time.
        states: values a position can have.
    """
    features = model.features

    def shared(tokens: Tensor, sigma: Tensor, latent: Any) -> Tensor:
        code = (tokens * states ** torch.arange(tokens.shape[1])).sum(1)
        row = code.unique(return_inverse=True)[1]
        found = torch.empty(int(row.max()) + 1, tokens.shape[1], dtype=torch.int64)
        found[row] = tokens
        return features(found, sigma[: len(found)], latent)[row]

    model.features = shared


def observed(
    model: DiffusionLM, samples: int, length: int | None, steps: int, **request: Any
) -> list[dict[State, int]]:
    """How often each state was seen after each step, of all samples in one batch."""
    seen: list[dict[State, int]] = []
    idlm.generate(
        model,
        samples,
        length,
        steps,
        batch_size=samples,
        callback=lambda state: seen.append(count(state.tokens)),
        **request,
    )
    return seen
