"""Orders of unmasking: how many a step, which ones, and that only certainty and seed decide."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from itertools import combinations, pairwise

import pytest
import torch
from torch import Tensor

import idlm
from idlm.models import DiffusionLM
from idlm.sampling import StepState
from idlm.sampling.orders import CERTAINTY, due, rank, surest
from tests.sampling.helpers import loud

Make = Callable[..., DiffusionLM]
RANKED = tuple(CERTAINTY)


def revealed(model: DiffusionLM, n: int, steps: int, **settings: object) -> Tensor:
    """Positions revealed per step and sample, int64 ``[steps, N]``."""
    states: list[StepState] = []
    idlm.generate(model, n, None, steps, seed=0, callback=states.append, **settings)
    return torch.stack([state.revealed.sum(1) for state in states])


@pytest.mark.parametrize("order", RANKED)
def test_equal_steps_reveal_equal_numbers(make: Make, order: str) -> None:
    counts = revealed(make(model_length=1024), 1, 16, order=order)
    assert counts.squeeze(1).tolist() == [64] * 16


@pytest.mark.parametrize("order", RANKED)
def test_the_numbers_follow_the_schedule_and_add_up(make: Make, order: str) -> None:
    counts = revealed(make(schedule="cosine"), 3, 5, order=order, prompt=[[1], [1, 2], [3] * 9])
    start, eps = math.cos(0.5 * math.pi), 0.001
    for column, total in enumerate((15, 14, 7)):
        expected = [0]
        for i in range(1, 6):
            alpha = eps + (1 - eps) * math.cos(0.5 * math.pi * (1 - i / 5))
            alpha_1 = eps + (1 - eps) * start
            expected.append(round(total * (alpha - alpha_1) / (1 - alpha_1)))
        steps = [b - a for a, b in pairwise(expected)]
        assert counts[:, column].tolist() == steps
        assert sum(steps) == total


def test_the_share_of_a_step_does_not_depend_on_rounding_errors() -> None:
    total = torch.arange(2000)
    steps = 10
    ends = [due(total, 0.0, i / steps) for i in range(steps + 1)]
    for i in range(steps):
        assert torch.equal(due(total, i / steps, (i + 1) / steps), ends[i + 1] - ends[i])
    assert torch.equal(ends[-1], total)


@pytest.mark.parametrize("order", RANKED)
def test_with_more_steps_than_tokens_the_idle_steps_make_no_call(make: Make, order: str) -> None:
    model = make()
    calls: list[int] = []
    model.backbone.register_forward_hook(lambda *_: calls.append(1))
    out = idlm.generate(model, 4, 16, 100, seed=0, order=order, prompt=[1] * 6)
    assert len(calls) == out.nfe == 10
    assert out.tokens_per_call == 1.0


def test_the_measures_of_certainty_on_a_worked_example() -> None:
    p = torch.tensor([[0.5, 0.3, 0.2], [0.45, 0.1, 0.45], [1.0, 0.0, 0.0]], dtype=torch.float64)
    entropy = [sum(x * math.log(x) for x in row if x) for row in p.tolist()]
    expected = {"confidence": [0.5, 0.45, 1.0], "entropy": entropy, "margin": [0.2, 0.0, 1.0]}
    for order, values in expected.items():
        assert CERTAINTY[order](p).tolist() == pytest.approx(values, abs=1e-12)


def test_the_surest_masked_positions_come_first() -> None:
    certainty = torch.tensor([[0.9, 0.1, 0.5, 0.7], [0.9, 0.1, 0.5, 0.7]])
    masked = torch.tensor([[False, True, True, True], [True, True, True, True]])
    chosen = surest(certainty, masked, torch.tensor([2, 1]), torch.rand(2, 4))
    assert chosen.tolist() == [[False, False, True, True], [True, False, False, False]]


def test_equals_come_in_the_order_of_the_noise_every_subset_as_often_as_another() -> None:
    n = 20_000
    certainty = torch.tensor([1.0, 3.0, 1.0, 1.0, 1.0]).expand(n, 5)  # one is surer than four
    masked = torch.ones(n, 5, dtype=torch.bool)
    chosen = surest(certainty, masked, torch.full((n,), 3), torch.rand(n, 5, dtype=torch.float64))
    assert bool(chosen[:, 1].all())
    rows = [tuple(row) for row in chosen.nonzero()[:, 1].reshape(n, 3).tolist()]
    counts = Counter(rows)
    subsets = [tuple(sorted((1, *pair))) for pair in combinations((0, 2, 3, 4), 2)]
    assert set(counts) == set(subsets)
    chi_square = sum((counts[s] - n / 6) ** 2 / (n / 6) for s in subsets)
    assert chi_square < 20.5  # 5 degrees of freedom, level 1e-3


@pytest.mark.parametrize("order", RANKED)
def test_where_all_predictions_are_equal_noise_decides_and_not_rounding(
    make: Make, order: str
) -> None:
    """All masked, no latent: the network says the same everywhere, up to its last digits."""
    states: list[StepState] = []
    idlm.generate(make(), 200, 16, 16, seed=0, order=order, callback=states.append)
    first = states[0].revealed.sum(0)
    assert int(first.sum()) == 200
    assert int((first > 0).sum()) == 16  # 12.5 expected at each of 16 positions


def test_a_step_of_certainty_is_wider_than_the_rounding_of_the_network() -> None:
    p = torch.tensor([[0.7, 0.3]], dtype=torch.float64)
    shaken = p + torch.tensor([[1e-6, -1e-6]])
    for order in RANKED:
        assert torch.equal(rank(order, p, torch.float32), rank(order, shaken, torch.float32))
        clear = rank(order, p + torch.tensor([[1e-2, -1e-2]]), torch.float32)
        assert float(clear) > float(rank(order, p, torch.float32))


@pytest.mark.parametrize("order", RANKED)
def test_the_ranking_ignores_temperature_and_nucleus(make: Make, order: str) -> None:
    model = make().double()
    patterns = []
    for settings in ({}, {"temperature": 3.0, "top_p": 0.5}):
        states: list[StepState] = []
        # the text up to the first ranked step is given, so that both see the same state
        idlm.generate(
            model,
            5,
            16,
            2,
            seed=0,
            order=order,
            prompt=[1, 2, 3],
            callback=states.append,
            **settings,
        )
        patterns.append(states[0].revealed)
    assert torch.equal(*patterns)


@pytest.mark.parametrize("order", RANKED)
def test_a_sample_in_any_order_depends_on_seed_and_number_alone(make: Make, order: str) -> None:
    model = loud(make()).double()  # ranks compare positions: the last digits of fp32 may decide
    whole = idlm.generate(model, 6, 16, 5, seed=4, order=order).tokens
    for batch_size in (1, 4):
        other = idlm.generate(model, 6, 16, 5, seed=4, order=order, batch_size=batch_size)
        assert torch.equal(other.tokens, whole)
    assert whole.unique(dim=0).shape[0] == 6
