from __future__ import annotations

import pytest
import torch

from idlm.metrics import DistinctN, LongestRepeat, Repetition
from idlm.metrics.repetition import longest_repeat


def test_seq_rep_is_the_share_of_ngrams_that_repeat_an_earlier_one() -> None:
    metric = Repetition(2)
    metric.update(torch.tensor([[1, 2, 1, 2], [1, 2, 3, 4]]))
    # 12 21 12: two distinct of three; 12 23 34: all distinct
    assert float(metric.compute()) == pytest.approx((1 / 3 + 0) / 2, abs=1e-12)  # fp64


def test_seq_rep_of_one_token_over_and_over_is_near_one() -> None:
    metric = Repetition(4)
    metric.update(torch.zeros(1, 100, dtype=torch.int64))
    assert float(metric.compute()) == pytest.approx(1 - 1 / 97, abs=1e-12)


def test_seq_rep_is_one_minus_distinct_per_sequence() -> None:
    rows = torch.randint(0, 3, (5, 30))
    repetition, distinct = Repetition(3), DistinctN(3, mode="per_sequence")
    repetition.update(rows)
    distinct.update(rows)
    assert float(repetition.compute()) == pytest.approx(1 - float(distinct.compute()), abs=1e-12)


def test_seq_rep_has_a_standard_error_over_sequences() -> None:
    metric = Repetition(2)
    metric.update(torch.tensor([[1, 2, 1, 2], [1, 2, 3, 4]]))
    # values 1/3 and 0: sd = (1/3) / sqrt 2, divided by sqrt 2
    assert float(metric.standard_error()) == pytest.approx(1 / 6, abs=1e-12)
    alone = Repetition(2)
    alone.update(torch.tensor([[1, 2, 1, 2]]))
    assert torch.isnan(alone.standard_error())


@pytest.mark.parametrize(
    ("row", "length"),
    [
        ([1, 2, 3, 4], 0),
        ([7], 0),
        ([1, 1], 1),
        ([5, 5, 5, 5, 5], 4),  # the two may overlap
        ([1, 2, 3, 9, 1, 2, 3, 8], 3),
        ([1, 2, 3, 4, 5, 6, 9, 1, 2, 3, 4, 5, 6], 6),
        ([1, 2, 1, 2, 1], 3),
    ],
)
def test_the_longest_repeat_of_a_row_is_found(row: list[int], length: int) -> None:
    assert longest_repeat(torch.tensor(row)) == length


def test_the_longest_repeat_equals_trying_every_length() -> None:
    for row in torch.randint(0, 3, (20, 40)):
        tried = max(
            n
            for n in range(40)
            if n == 0 or len({tuple(g) for g in row.unfold(0, n, 1).tolist()}) < 40 - n + 1
        )
        assert longest_repeat(row) == tried


def test_rows_shorter_than_n_do_not_count_and_none_gives_nan() -> None:
    metric = Repetition(4)
    metric.update(torch.ones(3, 2, dtype=torch.int64))
    assert torch.isnan(metric.compute())
    assert int(metric.sample_count) == 0


@pytest.mark.parametrize("kind", [Repetition, LongestRepeat])
def test_halves_merge_into_the_whole(kind: type[Repetition] | type[LongestRepeat]) -> None:
    rows = torch.randint(0, 3, (6, 30))
    whole, left, right = kind(), kind(), kind()
    whole.update(rows)
    left.update(rows[:2])
    right.update(rows[2:])
    left.merge_state(right)
    assert float(left.compute()) == pytest.approx(float(whole.compute()), abs=1e-12)
    assert float(left.standard_error()) == pytest.approx(float(whole.standard_error()), abs=1e-12)


def test_wrong_inputs_are_refused() -> None:
    with pytest.raises(ValueError, match="n=0 must be 1 or more"):
        Repetition(0)
    with pytest.raises(ValueError, match="integer rows"):
        LongestRepeat().update(torch.ones(2, 3))
