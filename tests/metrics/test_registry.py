from __future__ import annotations

import pytest
import torch

from idlm.errors import UserError
from idlm.metrics.registry import ALL_METRICS, DEFAULT_METRICS, TOKEN_METRICS, check_metrics


def test_a_perplexity_never_comes_without_entropy() -> None:
    assert check_metrics(["gen_ppl"]) == ("gen_ppl", "entropy")
    assert check_metrics(["self_bleu_4", "gen_ppl"]) == ("gen_ppl", "entropy", "self_bleu_4")
    assert check_metrics(DEFAULT_METRICS) == DEFAULT_METRICS


@pytest.mark.parametrize(
    ("given", "near"),
    [("gen-ppl", "gen_ppl"), ("self_bleu", "self_bleu_"), ("Mauve", "mauve"), ("rep_4", "seq_rep")],
)
def test_an_unknown_name_is_refused_with_the_near_one(given: str, near: str) -> None:
    with pytest.raises(UserError, match=f"{given}.* is unknown: did you mean {near}"):
        check_metrics([given])


def test_a_name_like_no_other_is_refused_with_all() -> None:
    with pytest.raises(UserError, match=r"'zzzzzz' is unknown: use some of .*self_bleu_4"):
        check_metrics(["zzzzzz"])


@pytest.mark.parametrize("name", TOKEN_METRICS)
def test_every_token_metric_is_made_by_its_name(name: str) -> None:
    metric = TOKEN_METRICS[name].build(9)
    metric.update(torch.tensor([[1, 2, 1, 2, 3, 1, 2], [1, 2, 1, 8, 3, 1, 2]]))
    assert torch.isfinite(metric.compute())
    # the number in the name is the n of the metric
    assert not name[-1].isdigit() or metric.n == int(name[-1])


def test_every_metric_has_a_title_and_a_definition() -> None:
    assert all(metric.title and metric.definition for metric in ALL_METRICS.values())
