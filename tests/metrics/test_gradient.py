from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from idlm.errors import UserError
from idlm.metrics import GradientMoment

CLOSE = {"rel": 1e-4}  # float32 gradients summed in another order, with cancellation


def gradient_by_hand(model: Any, rows: Tensor) -> Tensor:
    """Flat gradient of the mean NLL over tokens 1.. of all rows, by plain backward."""
    model.zero_grad()
    logits = model(rows).logits[:, :-1]
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten()).backward()
    flat = torch.cat([p.grad.flatten() for p in model.parameters()]).double()
    model.zero_grad()
    return flat


def moment_by_hand(model: Any, samples: Tensor, data: Tensor) -> float:
    half = len(samples) // 2
    s1, s2 = (gradient_by_hand(model, part) for part in samples.split(half))
    d1, d2 = (gradient_by_hand(model, part) for part in data.split(half))
    return float((s1 - d1) @ (s2 - d2))


@pytest.mark.parametrize("batch_size", [1, 8])
def test_moment_equals_autograd_by_hand_whatever_the_micro_batch(
    judge: Any, batch_size: int
) -> None:
    samples, data = torch.randint(0, 28, (4, 10)), torch.randint(0, 9, (4, 10))
    metric = GradientMoment(judge, batch_size=batch_size)
    metric.update(samples, data)
    assert float(metric.compute()) == pytest.approx(moment_by_hand(judge, samples, data), **CLOSE)
    s1, s2 = (gradient_by_hand(judge, part) for part in samples.split(2))
    assert float(metric.uncentred()[0]) == pytest.approx(float(s1 @ s2), **CLOSE)


def test_moment_is_the_mean_over_pairs_with_their_standard_error(judge: Any) -> None:
    pairs = [(torch.randint(0, 28, (2, 8)), torch.randint(0, 9, (2, 8))) for _ in range(3)]
    values = torch.tensor([moment_by_hand(judge, *pair) for pair in pairs], dtype=torch.float64)
    metric = GradientMoment(judge)
    for pair in pairs:
        metric.update(*pair)
    details = metric.details()
    assert details["gradient_moment"] == pytest.approx(float(values.mean()), **CLOSE)
    assert details["standard_error"] == pytest.approx(float(values.std() / 3**0.5), **CLOSE)
    assert details["pairs"] == 3


def test_moments_of_two_processes_merge(judge: Any) -> None:
    pairs = [(torch.randint(0, 28, (2, 8)), torch.randint(0, 9, (2, 8))) for _ in range(3)]
    whole, left, right = (GradientMoment(judge) for _ in range(3))
    for metric, own in ((whole, pairs), (left, pairs[:1]), (right, pairs[1:])):
        for pair in own:
            metric.update(*pair)
    left.merge_state(right)
    assert float(left.compute()) == pytest.approx(float(whole.compute()), **CLOSE)


def test_equal_samples_and_data_have_moment_zero(judge: Any) -> None:
    rows = torch.randint(0, 28, (4, 10))
    metric = GradientMoment(judge)
    metric.update(rows, rows)
    scale = float(metric.uncentred()[1])
    assert abs(float(metric.compute())) < 1e-9 * max(1.0, abs(scale))


def test_an_eos_rule_leaves_out_what_it_does_not_count(judge: Any) -> None:
    row, cut = torch.tensor([[1, 2, 0, 3, 4]] * 2), torch.tensor([[1, 2, 0]] * 2)
    strict, plain = GradientMoment(judge, eos="strict"), GradientMoment(judge)
    strict.update(row, row)
    plain.update(cut, cut)
    for a, b in zip(strict.uncentred(), plain.uncentred(), strict=True):
        assert float(a) == pytest.approx(float(b), **CLOSE)


def test_texts_are_stripped_and_their_padding_counts_once(judge_folder: Path) -> None:
    texts = GradientMoment(judge_folder, max_length=6, device="cpu")
    texts.update([" abc ", "abc"], ["abc", "abc"])
    rows = torch.tensor([[1, 2, 3, 0]] * 2)  # one pad is scored, as published
    tokens = GradientMoment(judge_folder, device="cpu")
    tokens.update(rows, rows)
    for a, b in zip(texts.uncentred(), tokens.uncentred(), strict=True):
        assert float(a) == pytest.approx(float(b), **CLOSE)


def test_gradients_of_the_evaluator_and_its_mode_are_left_alone(judge: Any) -> None:
    judge.train()
    rows = torch.randint(0, 28, (2, 8))
    metric = GradientMoment(judge)
    with torch.inference_mode():
        metric.update(rows, rows.clone())
    assert all(p.grad is None for p in judge.parameters())
    assert judge.training


def test_wrong_inputs_are_refused_with_what_to_do(judge: Any) -> None:
    even, odd = torch.ones(2, 8, dtype=torch.int64), torch.ones(3, 8, dtype=torch.int64)
    with pytest.raises(ValueError, match="data has 3 rows: give an even number"):
        GradientMoment(judge).update(even, odd)
    with pytest.raises(ValueError, match="takes 32"):
        GradientMoment(judge).update(torch.ones(2, 33, dtype=torch.int64), even)
    with pytest.raises(UserError, match="no trainable parameter"):
        GradientMoment(judge.requires_grad_(False))
