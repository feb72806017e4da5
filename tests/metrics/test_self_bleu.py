from __future__ import annotations

import math
from collections import Counter

import pytest
import torch

from idlm.metrics import SelfBLEU


def score(rows: list[list[int]], n: int) -> float:
    metric = SelfBLEU(n)
    for row in rows:
        metric.update(torch.tensor([row]))
    return float(metric.compute())


def bleu_by_hand(rows: list[list[int]], n: int) -> float:
    """The definition word for word: every sample against every other, with dictionaries."""
    scores = []
    for i, row in enumerate(rows):
        others = rows[:i] + rows[i + 1 :]
        if len(row) < n:
            continue
        logs = []
        for k in range(1, n + 1):
            own = Counter(tuple(row[j : j + k]) for j in range(len(row) - k + 1))
            theirs = [Counter(tuple(o[j : j + k]) for j in range(len(o) - k + 1)) for o in others]
            matches = sum(min(c, max(t[gram] for t in theirs)) for gram, c in own.items())
            if k == 1 and matches == 0:
                logs.append(-math.inf)
            logs.append(math.log((matches or 0.1) / (len(row) - k + 1)))
        nearest = min((len(o) for o in others), key=lambda m: (abs(m - len(row)), m))
        brevity = min(1.0, math.exp(1 - nearest / len(row)))
        scores.append(brevity * math.exp(sum(logs) / n))
    return sum(scores) / len(scores)


def test_equal_samples_have_self_bleu_one() -> None:
    assert score([[1, 2, 3, 4, 5]] * 3, 4) == pytest.approx(1, abs=1e-12)  # fp64


def test_samples_without_a_common_token_have_zero() -> None:
    assert score([[1, 2, 3, 4], [5, 6, 7, 8]], 4) == 0


def test_two_samples_by_hand() -> None:
    # abcd and abce: 3 of 4 tokens, 2 of 3 pairs, both ways
    assert score([[1, 2, 3, 4], [1, 2, 3, 5]], 2) == pytest.approx(math.sqrt(3 / 4 * 2 / 3))
    # and 1 of 2 triples, and no quadruple: 0.1 of 1
    assert score([[1, 2, 3, 4], [1, 2, 3, 5]], 4) == pytest.approx(
        (3 / 4 * 2 / 3 * 1 / 2 * 0.1) ** 0.25
    )


def test_a_token_counts_at_most_as_often_as_in_the_other_that_has_most() -> None:
    # aaaa against a and aab: 2 of 4; aab against aaaa: 2 of 3 (b is nowhere); a against both: 1
    scores = [2 / 4, 2 / 3 * math.exp(min(0, 1 - 4 / 3)), 1 * math.exp(1 - 3 / 1)]
    # nearest lengths: of 4 it is 3, of 3 it is 4, of 1 it is 3
    assert score([[1, 1, 1, 1], [1, 1, 2], [1]], 1) == pytest.approx(sum(scores) / 3, abs=1e-12)


def test_of_two_lengths_equally_near_the_shorter_is_taken() -> None:
    rows = [[1] * 4, [1] * 3, [1] * 5]
    # the sample of 4 has no penalty against 3; 3 against 4, and 5 against 4 which is shorter
    assert score(rows, 1) == pytest.approx((1 + math.exp(1 - 4 / 3) + 4 / 5) / 3, abs=1e-12)


def test_a_sample_shorter_than_n_is_a_reference_and_is_not_scored() -> None:
    long, short = [1, 2, 3, 4], [1, 2]
    assert score([long, short], 3) == pytest.approx(bleu_by_hand([long, short], 3), abs=1e-12)


@pytest.mark.parametrize("n", [1, 2, 4])
def test_one_pass_equals_every_sample_against_every_other(n: int) -> None:
    for states in (3, 9):
        rows = [torch.randint(0, states, (int(m),)).tolist() for m in torch.randint(2, 20, (8,))]
        assert score(rows, n) == pytest.approx(bleu_by_hand(rows, n), abs=1e-12)


def test_fewer_than_two_samples_have_no_self_bleu() -> None:
    assert math.isnan(score([[1, 2, 3, 4]], 2))
    assert math.isnan(score([[1], [2]], 2))  # two, and both too short


def test_halves_merge_into_the_whole_and_reset_forgets() -> None:
    rows = torch.randint(0, 4, (6, 12))
    whole, left, right = SelfBLEU(3), SelfBLEU(3), SelfBLEU(3)
    whole.update(rows)
    left.update(rows[:2])
    right.update(rows[2:])
    left.merge_state(right)
    left.merge_state(SelfBLEU(3))  # a process without samples
    assert float(left.compute()) == pytest.approx(float(whole.compute()), abs=1e-12)
    whole.reset()
    whole.update(rows[:2])
    whole.update(rows[2:])
    assert float(whole.compute()) == pytest.approx(float(left.compute()), abs=1e-12)


def test_two_processes_that_gather_have_the_value_of_one() -> None:
    rows = torch.randint(0, 4, (6, 12))
    whole, other = SelfBLEU(3), SelfBLEU(3)
    whole.update(rows)
    other.update(rows[4:])
    sent = iter([torch.cat(other.tokens), torch.cat(other.lengths)])
    # what torchmetrics does in a process group, with the gathering itself replaced
    first = SelfBLEU(
        3,
        dist_sync_fn=lambda state, group=None: [state, next(sent)],
        distributed_available_fn=lambda: True,
    )
    first.update(rows[:4])
    assert float(first.compute()) == pytest.approx(float(whole.compute()), abs=1e-12)


def test_wrong_inputs_are_refused() -> None:
    with pytest.raises(ValueError, match="n=0 must be 1 or more"):
        SelfBLEU(0)
    with pytest.raises(ValueError, match="integer rows"):
        SelfBLEU().update(torch.ones(2, 3))
