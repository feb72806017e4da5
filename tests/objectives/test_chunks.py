"""Chunks change nothing but the memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from idlm.models import DiffusionConfig, DiffusionLM
from idlm.objectives import DMMD, Draw, IDLMDuo, Networks, chunks, uniform_nelbo
from idlm.objectives.chunks import over_positions

V, B, L = 11, 3, 13


def networks() -> Networks:
    config = DiffusionConfig(
        vocab_size=V,
        model_length=L,
        hidden_dim=8,
        cond_dim=4,
        n_blocks=1,
        n_heads=2,
        dropout=0.0,
        process="uniform",
        time_conditioning=True,
    )
    models = [DiffusionLM(config).double() for _ in range(3)]
    torch.manual_seed(1)
    for model in models:
        for weight in model.parameters():
            nn.init.normal_(weight, std=0.5)
    return Networks(*models)


LOSSES: dict[str, Any] = {
    "teacher": lambda n, *args: uniform_nelbo(n.student, *args),
    "dmmd student": DMMD().student_loss,
    "dmmd fake": DMMD().auxiliary_loss,
    "duo student": IDLMDuo().student_loss,
    "duo fake": IDLMDuo().auxiliary_loss,
}


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("positions", [1, 4])
def test_a_chunked_loss_is_the_whole_one_in_value_and_gradient(
    name: str, positions: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens, draw = torch.randint(0, V, (B, L)), Draw(torch.arange(B), B, 0, 0)

    def run() -> tuple[Tensor, list[Tensor]]:
        trio = networks()
        total = LOSSES[name](trio, tokens, draw).total
        total.backward()
        return total, [p.grad for model in trio for p in model.parameters() if p.grad is not None]

    whole, expected = run()
    monkeypatch.setattr(chunks, "NUMBERS", positions * B * V)
    total, gradients = run()
    torch.testing.assert_close(total, whole)  # fp64
    assert len(gradients) == len(expected) > 0
    for ours, theirs in zip(gradients, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("name", ["teacher", "dmmd student", "dmmd fake"])
def test_the_graph_keeps_no_table_of_the_vocabulary(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is saved for the backward pass and has V columns is a weight of the network."""
    monkeypatch.setattr(chunks, "NUMBERS", 2 * B * V)
    trio, sizes = networks(), []

    def keep(tensor: Tensor) -> Tensor:
        if tensor.shape[-1:] == (V,):
            sizes.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        tokens, draw = torch.randint(0, V, (B, L)), Draw(torch.arange(B), B, 0, 0)
        LOSSES[name](trio, tokens, draw)
    assert max([0, *sizes]) <= max(2 * B, 8) * V  # a chunk, or the head of 8 features


def test_no_chunk_is_larger_than_it_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "NUMBERS", 2 * B * V + 5)
    lengths = []

    def double(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        lengths.append(x.shape[1])
        return 2 * x, x + y

    x, y = torch.randn(B, L), torch.randn(B, L)
    first, second = over_positions(double, x, y, vocab_size=V)
    assert torch.equal(first, 2 * x)
    assert torch.equal(second, x + y)
    assert lengths == [2] * 6 + [1]
    lengths.clear()
    over_positions(double, x, y, vocab_size=10 * V)  # one position of all sequences at least
    assert lengths == [1] * L
