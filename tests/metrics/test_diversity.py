from __future__ import annotations

import math

import pytest
import torch

from idlm.errors import UserError
from idlm.metrics import DistinctN, Entropy

TWO_ROWS = torch.tensor([[1, 1, 2, 2], [3, 3, 3, 3]])


def test_entropy_per_sequence_is_the_mean_of_row_entropies_in_nats() -> None:
    metric = Entropy()
    metric.update(TWO_ROWS)
    assert float(metric.compute()) == pytest.approx(math.log(2) / 2, abs=1e-12)  # fp64


def test_pooled_entropy_is_that_of_all_counts_together() -> None:
    metric = Entropy("pooled")
    metric.update(TWO_ROWS)
    expected = -(2 * 0.25 * math.log(0.25) + 0.5 * math.log(0.5))
    assert float(metric.compute()) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("mode", ["per_sequence", "pooled"])
def test_entropy_of_halves_merges_into_the_whole(mode: str) -> None:
    rows = torch.randint(0, 9, (5, 20))
    whole, left, right = Entropy(mode), Entropy(mode), Entropy(mode)
    whole.update(rows)
    left.update(rows[:2])
    right.update(rows[2:])
    left.merge_state(right)
    assert float(left.compute()) == pytest.approx(float(whole.compute()), abs=1e-12)


def test_a_row_of_distinct_tokens_has_the_entropy_of_its_length() -> None:
    metric = Entropy()
    metric.update(torch.arange(1024)[None])
    assert float(metric.compute()) == pytest.approx(math.log(1024), abs=1e-12)


def test_distinct_counts_ngrams_once_over_all_rows() -> None:
    metric = DistinctN(2)
    metric.update(torch.tensor([[1, 2, 1, 2], [1, 2, 3, 4]]))
    # 12 21 12 and 12 23 34: four distinct of six
    assert float(metric.compute()) == pytest.approx(4 / 6)


def test_distinct_per_sequence_is_the_mean_over_rows() -> None:
    metric = DistinctN(2, mode="per_sequence")
    metric.update(torch.tensor([[1, 2, 1, 2], [1, 2, 3, 4]]))
    assert float(metric.compute()) == pytest.approx((2 / 3 + 1) / 2)


@pytest.mark.parametrize("mode", ["per_sequence", "pooled"])
def test_distinct_of_halves_merges_into_the_whole(mode: str) -> None:
    rows = torch.randint(0, 4, (6, 12))
    whole, left, right = (DistinctN(3, mode=mode) for _ in range(3))
    whole.update(rows)
    left.update(rows[:2])
    right.update(rows[2:])
    left.merge_state(right)
    assert float(left.compute()) == pytest.approx(float(whole.compute()), abs=1e-12)


def test_a_process_without_rows_merges_and_reset_forgets() -> None:
    rows = torch.tensor([[1, 2, 1, 2]])
    full, empty = DistinctN(2), DistinctN(2)
    full.update(rows)
    full.merge_state(empty)
    assert float(full.compute()) == pytest.approx(2 / 3)
    full.reset()
    full.update(rows[:, 1:])
    assert float(full.compute()) == 1.0
    # what a process sends to the others when it has seen nothing: rows of its own shape
    assert empty.grams[0].shape == (0, 2)


def test_wrong_modes_and_inputs_are_refused() -> None:
    with pytest.raises(UserError, match="per_sequence, pooled"):
        Entropy("mean")
    with pytest.raises(UserError, match="per_sequence, pooled"):
        DistinctN(2, mode="mean")
    with pytest.raises(ValueError, match="n=0 must be 1 or more"):
        DistinctN(0)
    with pytest.raises(ValueError, match="integer rows"):
        Entropy().update(torch.ones(3))
    with pytest.raises(ValueError, match=r"vocab_size=8.*vocab_size=10"):
        Entropy("pooled", vocab_size=8).update(torch.tensor([[9]]))


def test_entropy_per_sequence_has_a_standard_error_and_pooled_has_none() -> None:
    metric, pooled = Entropy(), Entropy("pooled")
    for each in (metric, pooled):
        each.update(TWO_ROWS)
    # values log 2 and 0: sd = log 2 / sqrt 2, divided by sqrt 2
    assert float(metric.standard_error()) == pytest.approx(math.log(2) / 2, abs=1e-12)
    assert torch.isnan(pooled.standard_error())
