"""The teacher's NELBO against closed forms and against the loss on full tables."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from idlm.models import DiffusionConfig, DiffusionLM
from idlm.objectives import Draw, masked_nelbo
from idlm.random import Stream

SIZES: dict[str, Any] = {
    "vocab_size": 6,
    "model_length": 64,
    "hidden_dim": 4,
    "cond_dim": 4,
    "n_blocks": 1,
    "n_heads": 2,
    "dropout": 0.0,
}


def random_model(**changes: Any) -> DiffusionLM:
    model = DiffusionLM(DiffusionConfig(**{**SIZES, **changes}))
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.5)
    return model


@pytest.mark.parametrize("schedule", ["log-linear", "cosine"])
def test_nelbo_of_a_uniform_denoiser_is_the_log_of_the_vocabulary(schedule: str) -> None:
    """E[loss] = (1 - eps) log(V - 1), whatever the schedule: a fresh network is uniform."""
    model = DiffusionLM(DiffusionConfig(**SIZES, schedule=schedule))
    tokens = torch.randint(0, 5, (2048, 64))
    with torch.no_grad():
        loss = masked_nelbo(model, tokens, Draw(torch.arange(2048), 2048, 0, 0))
    # 131,072 tokens; the variance of the weight at masked positions is about log(1000) = 6.9,
    # so one standard deviation is 0.7 per cent; strata make it smaller
    assert loss.mean.item() == pytest.approx((1 - 1e-3) * math.log(5), rel=0.03)
    assert loss.tokens == 2048 * 64
    assert float(loss.logs["masked_nll"]) == pytest.approx(math.log(5), rel=1e-5)


@pytest.mark.parametrize("conditioned", [False, True])
@pytest.mark.parametrize("schedule", ["log-linear", "cosine"])
def test_the_lean_loss_equals_the_one_on_full_tables(schedule: str, conditioned: bool) -> None:
    """Same value and same gradient as SUBS on [B, L, V] and the process's own integrand."""
    model = random_model(schedule=schedule, time_conditioning=conditioned).double()
    tokens = torch.randint(0, 5, (8, 64))
    draw = Draw(torch.arange(3, 11), 8, 1, 2)
    lean = masked_nelbo(model, tokens, draw).total
    lean.backward()
    gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()

    process = model.process
    t = draw.times(Stream.TIME)
    z = process.corrupt(tokens, t, draw.uniform(64, stream=Stream.CORRUPT))
    logits = model(z, timesteps=process.schedule.sigma(t)).logits
    plain = process.nll_per_token(process.log_probs(logits, z), tokens, z, t).sum()
    plain.backward()
    assert plain.item() > 10
    # fp64 but for the times and weights, which are fp32 and may be cast before or after 1/t
    torch.testing.assert_close(lean, plain, rtol=2e-6, atol=0)
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        assert parameter.grad is not None
        torch.testing.assert_close(gradient, parameter.grad, rtol=1e-5, atol=1e-4)


def test_micro_batches_add_up_to_the_whole_batch(table: Callable[..., Any]) -> None:
    model = table(4, 3)
    tokens = torch.randint(0, 3, (10, 3))
    whole = masked_nelbo(model, tokens, Draw(torch.arange(10), 10, 5, 6))
    parts = [
        masked_nelbo(model, tokens[a:b], Draw(torch.arange(a, b), 10, 5, 6))
        for a, b in ((0, 3), (3, 10))
    ]
    assert sum(part.tokens for part in parts) == whole.tokens == 30
    torch.testing.assert_close(sum(part.total for part in parts), whole.total)


def test_steps_and_samples_bring_new_noise_and_names_repeat_it(table: Callable[..., Any]) -> None:
    model, tokens = table(4, 3), torch.zeros(10, 3, dtype=torch.int64)

    def total(first: int = 0, seed: int = 0, step: int = 0) -> float:
        draw = Draw(first + torch.arange(10), 10, seed, step)
        return masked_nelbo(model, tokens, draw).total.item()

    assert total() == total()
    assert len({total(), total(first=10), total(seed=1), total(step=1)}) == 4


def test_nothing_masked_is_a_loss_of_zero_and_logs_no_mean(table: Callable[..., Any]) -> None:
    model = table(3, 1)
    # among many draws of one token at the smallest times, most mask nothing
    draws = [Draw(torch.tensor([0]), 1000, 0, step) for step in range(20)]
    losses = [masked_nelbo(model, torch.zeros(1, 1, dtype=torch.int64), d) for d in draws]
    empty = [loss for loss in losses if loss.total.item() == 0.0]
    assert len(empty) > 10
    for loss in empty:
        # averages leave NaN out, where a 0 would pull them down
        assert all(bool(torch.isnan(value)) for value in loss.logs.values())
        loss.total.backward()
    assert float(model.logits.grad.abs().max()) == 0.0
