"""The numbers of a sample set when a sample has none."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
import torch

from idlm.evaluation.resampling import redraw
from idlm.evaluation.scoring import score
from idlm.metrics import Evaluator, GenerativePerplexity, load_evaluator
from tests.tiny_models import Folders


@pytest.fixture
def judge(folders: Folders) -> Evaluator:
    return load_evaluator(str(folders.evaluator), device="cpu")


def broken_at(judge: Evaluator, position: int) -> Evaluator:
    """An evaluator that knows nothing of texts which reach a position."""
    judge.model.transformer.wpe.weight.data[position:] = math.nan
    return judge


TEXTS = ["short", "a much longer text " * 3, "brief"]
TOKENS = torch.tensor([[1, 2, 3], [1, 1, 2], [4, 4, 4]])


def test_a_sample_that_is_not_finite_is_null_and_the_samples_after_it_keep_their_nats(
    judge: Evaluator,
) -> None:
    whole = score(TOKENS, TEXTS, judge)
    found = score(TOKENS, TEXTS, broken_at(judge, 12))
    own = found["per_sample"]
    assert own["nats"][1] is None
    assert [own["nats"][0], own["nats"][2]] == [whole["per_sample"]["nats"][i] for i in (0, 2)]
    assert own["tokens"] == whole["per_sample"]["tokens"]
    assert found["gen_ppl"] is None
    assert found["gen_ppl_stderr"] is None
    assert found["evaluation"]["nonfinite_samples"] == 1
    assert found["entropy"] == whole["entropy"]
    json.dumps(found, allow_nan=False)


def test_the_pooled_perplexity_is_that_of_the_samples_one_by_one(judge: Evaluator) -> None:
    found = score(TOKENS, TEXTS, judge)
    own = found["per_sample"]
    pooled = math.exp(sum(own["nats"]) / sum(own["tokens"]))
    assert found["gen_ppl"] == pytest.approx(pooled, rel=1e-12)
    assert found["evaluation"]["sample_count"] == 3


def test_resampling_passes_over_the_perplexity_of_a_sample_that_has_none() -> None:
    own: dict[str, Any] = {"nats": [20.0, None, 20.0], "tokens": [10, 99, 10]}
    cell = {
        "entropy": 1.0,
        "gen_ppl": math.exp(2),
        "per_sample": own | {"entropy": [1.0, 1.0, 1.0]},
    }
    drawn = redraw([cell], 200, np.random.default_rng(0))
    # a repetition that drew nothing else has no tokens, and is that of an empty set
    some = drawn.log_ppls != 0.0
    assert 180 < some.sum() < 200
    assert drawn.log_ppls[some] == pytest.approx(2.0)


def test_a_sample_without_a_scored_token_does_not_count_in_the_standard_error(
    judge: Evaluator,
) -> None:
    nothing = [*TEXTS, ""]
    found = score(torch.cat([TOKENS, TOKENS[:1]]), nothing, judge)
    metric = GenerativePerplexity(judge, batch_size=1)
    metric.update(nothing)
    assert found["per_sample"]["tokens"][-1] == 0
    own = metric.by_rule()["published"]
    assert found["gen_ppl_stderr"] == pytest.approx(own["standard_error"], rel=1e-6)
    assert found["gen_ppl_stderr"] == score(TOKENS, TEXTS, judge)["gen_ppl_stderr"]
