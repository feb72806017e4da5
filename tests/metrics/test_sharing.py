"""A metric over real processes: the very states of one, in the order of the batches."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torchmetrics import CatMetric, Metric, SumMetric

from idlm.errors import UserError
from idlm.metrics.sharing import kept_apart, update_shared
from idlm.sampling.sharded import join
from tests.launched import launch

# sums of these depend on their order in the last digit
VALUES = [0.1 * 3**n for n in range(7)]


def batch(number: int) -> tuple[torch.Tensor]:
    return (torch.tensor([VALUES[number]], dtype=torch.float64),)


def in_order(metric: Metric, count: int, processes: int) -> list[tuple[Any, int]]:
    """The result in each process, and how many rows each was told of."""

    def work(rank: int) -> tuple[Any, int]:
        told: list[int] = []
        with join(processes, "cpu") as group:
            own = kept_apart(metric)
            own.set_dtype(torch.float64)
            update_shared(own, count, batch, processes=group, advance=told.append)
            return own.compute().tolist(), sum(told)

    return launch(processes, work)


@pytest.mark.parametrize("count", [1, 7])
def test_sums_and_lists_are_those_of_one_process(count: int) -> None:
    for kind in (SumMetric, CatMetric):
        [alone] = in_order(kind(), count, 1)
        assert in_order(kind(), count, 2) == [alone, alone]
        assert alone[1] == count
    assert in_order(SumMetric(), count, 1)[0][0] == sum(VALUES[:count])


def test_a_metric_that_is_kept_apart_asks_nobody() -> None:
    """The other process never asks, so that one which waited for it would wait for ever."""

    def work(rank: int) -> float | None:
        with join(2, "cpu"):
            metric = kept_apart(SumMetric())
            metric.update(rank + 1.0)
            return float(metric.compute()) if rank == 0 else None

    assert launch(2, work, timeout=30) == [1.0, None]


def test_a_value_error_of_a_batch_becomes_a_sentence_where_one_is_given() -> None:
    class Broken(SumMetric):
        def update(self, value: Any) -> None:
            raise ValueError("the batch is odd")

    with pytest.raises(UserError, match=r"^sum of x: the batch is odd$"):
        update_shared(Broken(), 1, batch, subject="sum of x")
    with pytest.raises(ValueError, match="the batch is odd") as plain:
        update_shared(Broken(), 1, batch)
    assert not isinstance(plain.value, UserError)


def test_the_features_of_mauve_are_shared_batch_by_batch(tmp_path: Any) -> None:
    from idlm.metrics import Mauve
    from tests.tiny_models import SENTENCES, make_models

    metric = Mauve(str(make_models(tmp_path).evaluator), batch_size=2, device="cpu")
    texts = [SENTENCES[n % len(SENTENCES)] * (n + 1) for n in range(5)]

    def sides(number: int) -> tuple[list[str], list[str]]:
        return (texts[2 * number : 2 * number + 2], [])

    update_shared(metric, 3, sides)
    alone = torch.cat(metric.sample_features)

    def work(rank: int) -> torch.Tensor:
        with join(2, "cpu") as group:
            update_shared(kept_apart(metric), 3, sides, processes=group)
            return torch.cat(metric.sample_features)

    for found in launch(2, work):
        assert torch.equal(found, alone)
    assert alone.shape[0] == 5
