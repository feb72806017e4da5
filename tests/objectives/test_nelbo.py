"""The NELBO of any process equals the leaner forms."""

from __future__ import annotations

import pytest
import torch

from idlm.models import DiffusionConfig, DiffusionLM
from idlm.objectives import Draw, masked_nelbo, token_nelbo, uniform_nelbo

LEAN = {"absorbing": masked_nelbo, "uniform": uniform_nelbo}


@pytest.mark.parametrize("process", LEAN)
def test_the_nelbo_of_any_process_equals_the_lean_one_in_value_and_gradient(process: str) -> None:
    config = DiffusionConfig(
        vocab_size=7,
        model_length=5,
        hidden_dim=8,
        cond_dim=4,
        n_blocks=1,
        n_heads=2,
        dropout=0.0,
        process=process,
    )
    model = DiffusionLM(config).double()
    torch.nn.init.normal_(model.backbone.output_layer.linear.weight)
    tokens = torch.randint(0, 6, (4, 5))
    draw = Draw(torch.arange(4), batch_size=4, seed=1, step=2)
    found = []
    for loss in (token_nelbo, LEAN[process]):
        model.zero_grad()
        result = loss(model, tokens, draw)
        result.total.backward()
        gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        found.append((result.total.detach(), gradients))
        assert result.tokens == 20
    (plain, first), (lean, second) = found
    assert plain > 1.0
    # float64, but times and logits pass through float32
    torch.testing.assert_close(lean, plain, rtol=1e-6, atol=1e-9)
    assert len(first) == len(second) > 0
    for a, b in zip(first, second, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
