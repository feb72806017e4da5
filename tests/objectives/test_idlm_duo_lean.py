"""IDLM-Duo in chunks of positions is IDLM-Duo from whole tables, and keeps none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from idlm.bench.speed_plain import plain_duo_auxiliary_loss, plain_duo_student_loss
from idlm.models import DiffusionConfig, DiffusionLM
from idlm.objectives import Draw, IDLMDuo, LossSum, Networks, chunks

V, B, L = 13, 4, 9
TOKENS = torch.arange(B * L).reshape(B, L) % V
DRAW = Draw(torch.arange(B), B, 3, 1)
LOSSES: dict[str, Callable[..., LossSum]] = {
    "student": plain_duo_student_loss,
    "auxiliary": plain_duo_auxiliary_loss,
}


def model(seed: int, dtype: torch.dtype, latent: tuple[int, int] = (0, 0)) -> DiffusionLM:
    config = DiffusionConfig(
        vocab_size=V,
        model_length=L,
        hidden_dim=8,
        cond_dim=4,
        n_blocks=2,
        n_heads=2,
        dropout=0.0,
        process="uniform",
        time_conditioning=True,
        latent_global=latent[0],
        latent_position=latent[1],
    )
    made = DiffusionLM(config).to(dtype)
    generator = torch.Generator().manual_seed(seed)
    for weight in made.parameters():
        nn.init.normal_(weight, std=0.4, generator=generator)
    return made


def networks(dtype: torch.dtype) -> Networks:
    return Networks(model(1, dtype).requires_grad_(False), model(2, dtype, (3, 2)), model(3, dtype))


def lean(objective: IDLMDuo, name: str) -> Callable[..., LossSum]:
    return {"student": objective.student_loss, "auxiliary": objective.auxiliary_loss}[name]


def outcome(loss: Callable[[], LossSum], trio: Networks) -> tuple[LossSum, dict[str, Tensor]]:
    for network in trio:
        network.zero_grad()
    found = loss()
    found.total.backward()
    return found, {
        f"{name}.{key}": weight.grad.clone()
        for name, network in trio._asdict().items()
        for key, weight in network.named_parameters()
        if weight.grad is not None
    }


# relative to the largest entry
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}
SETTINGS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "smooth inputs": {"gamma_min": -2.0, "gamma_max": 2.0, "tau": 0.3},
    "tied": {"time_draws": "tied", "tau": 0.3},
    "detached": {"detach_state": True, "tau": 0.3},
}


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("positions", [1, 4, 100])
@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("name", LOSSES)
def test_the_lean_losses_are_the_plain_ones_in_value_and_gradient(
    name: str, settings: str, positions: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    objective, trio = IDLMDuo(**SETTINGS[settings]), networks(dtype)
    monkeypatch.setattr(chunks, "NUMBERS", positions * B * V)
    theirs = outcome(lambda: LOSSES[name](objective, trio, TOKENS, DRAW), trio)
    ours = outcome(lambda: lean(objective, name)(trio, TOKENS, DRAW), trio)
    scale = TOLERANCE[dtype]
    assert ours[0].total.item() == pytest.approx(theirs[0].total.item(), rel=scale)
    assert ours[0].tokens == theirs[0].tokens
    assert ours[1].keys() == theirs[1].keys()
    # the table that embeds relaxed states is trained with the rest, in one network alone
    assert {key.split(".")[0] for key in ours[1]} == {name}
    assert f"{name}.backbone.vocab_embed.embedding" in ours[1]
    largest = max(float(g.abs().max()) for g in theirs[1].values())
    assert largest > 1e-3
    for key, gradient in theirs[1].items():
        torch.testing.assert_close(
            ours[1][key], gradient, rtol=scale, atol=scale * largest, msg=key
        )


@pytest.mark.parametrize("name", LOSSES)
def test_gradient_checkpointing_and_chunks_leave_the_loss_as_it_is(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    objective, trio = IDLMDuo(tau=0.3), networks(torch.float64)
    theirs = outcome(lambda: LOSSES[name](objective, trio, TOKENS, DRAW), trio)
    monkeypatch.setattr(chunks, "NUMBERS", 2 * B * V)
    for key, network in trio._asdict().items():
        network.set_gradient_checkpointing(True)
        network.train(key == name)  # as the training loop does
    ours = outcome(lambda: lean(objective, name)(trio, TOKENS, DRAW), trio)
    torch.testing.assert_close(ours[1], theirs[1])  # fp64


@pytest.mark.parametrize("name", LOSSES)
def test_bf16_autocast_leaves_mixtures_heads_and_losses_in_fp32(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    objective, trio = IDLMDuo(tau=0.3), networks(torch.float32)
    monkeypatch.setattr(chunks, "NUMBERS", 2 * B * V)
    exact = lean(objective, name)(trio, TOKENS, DRAW).total.item()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        plain = LOSSES[name](objective, trio, TOKENS, DRAW).total.item()
        ours = outcome(lambda: lean(objective, name)(trio, TOKENS, DRAW), trio)
    # the same bf16 in the blocks, and so the same features
    assert ours[0].total.item() == pytest.approx(plain, rel=1e-5)
    assert ours[0].total.item() != exact
    assert all(gradient.dtype == torch.float32 for gradient in ours[1].values())


def test_without_gradient_the_losses_are_the_same() -> None:
    objective, trio = IDLMDuo(tau=0.3), networks(torch.float64)
    for name in LOSSES:
        with_gradient = lean(objective, name)(trio, TOKENS, DRAW)
        with torch.inference_mode():
            without = lean(objective, name)(trio, TOKENS, DRAW)
        assert without.total.item() == pytest.approx(with_gradient.total.item(), rel=1e-12)
        for key, value in with_gradient.logs.items():
            assert without.logs[key].item() == pytest.approx(value.item(), rel=1e-12)
