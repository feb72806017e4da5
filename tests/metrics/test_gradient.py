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


def test_micro_batches_of_a_bfloat16_evaluator_are_added_in_float32(judge: Any) -> None:
    half = judge.to(torch.bfloat16)
    samples, data = torch.randint(0, 28, (64, 10)), torch.randint(0, 9, (2, 10))
    metric = GradientMoment(half, batch_size=1, dtype="bfloat16")
    metric.update(samples, data)
    flat = []
    for rows in samples.split(32):
        total = 0.0
        for row in rows.split(1):
            logits = half(row).logits[0, :-1].float()
            loss = torch.nn.functional.cross_entropy(logits, row[0, 1:], reduction="sum") / (32 * 9)
            parts = torch.autograd.grad(loss, list(half.parameters()))
            total = total + torch.cat([part.flatten() for part in parts]).double()
        flat.append(total)
    # only the last bits of float32 sums differ; sums in bfloat16 are off by a part in a hundred
    assert float(metric.uncentred()[0]) == pytest.approx(float(flat[0] @ flat[1]), rel=1e-4)


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


def test_texts_padded_no_further_than_counts_equal_rows_padded_to_the_end(
    judge_folder: Path, tokenizer: Any
) -> None:
    texts = ["abc", "hello", "xy", "ab<|endoftext|>c"]
    rows = torch.zeros(4, 30, dtype=torch.int64)
    for row, text in zip(rows, texts, strict=True):
        ids = tokenizer(text)["input_ids"]
        row[: len(ids)] = torch.tensor(ids)
    lean = GradientMoment(judge_folder, max_length=30, device="cpu")
    lean.update(texts, texts[::-1])
    full = GradientMoment(judge_folder, eos="published", device="cpu")
    full.update(rows, rows.flip(0))
    assert float(lean.compute()) == pytest.approx(float(full.compute()), **CLOSE)
    for a, b in zip(lean.uncentred(), full.uncentred(), strict=True):
        assert float(a) == pytest.approx(float(b), **CLOSE)


def test_real_text_against_real_text_is_zero_within_its_error_and_generated_is_not(
    judge: Any,
) -> None:
    def batch(low: int, high: int) -> Tensor:
        return torch.randint(low, high, (8, 12))

    control, apart = GradientMoment(judge), GradientMoment(judge)
    for _ in range(12):
        control.update(batch(1, 15), batch(1, 15))
        apart.update(batch(14, 28), batch(1, 15))
    real, generated = control.details(), apart.details()
    assert abs(real["gradient_moment"]) < 4 * real["standard_error"]
    assert generated["gradient_moment"] > 6 * generated["standard_error"]
    assert (real["samples_per_half"], real["data_per_half"]) == (4.0, 4.0)


def test_gradients_that_are_not_finite_are_counted_and_the_moment_is_nan(judge: Any) -> None:
    rows = torch.randint(0, 28, (2, 8))
    metric = GradientMoment(judge)
    metric.update(rows, rows.flip(0))
    judge.transformer.wpe.weight.data[3] = torch.nan
    metric.update(rows, rows.flip(0))
    assert torch.isnan(metric.compute())
    assert (metric.details()["nonfinite_pairs"], metric.details()["pairs"]) == (1, 2)
