"""MAUVE around the authors' package, which a function takes the place of but in one test."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from idlm.errors import UserError
from idlm.metrics import Mauve

CLOSE = {"rtol": 1e-4, "atol": 1e-5}  # float32 in batches of other shapes


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What the package was called with; its score is a tenth of the seed."""
    made: list[dict[str, Any]] = []

    def compute_mauve(**given: Any) -> Any:
        made.append(given)
        return SimpleNamespace(mauve=given["seed"] / 10)

    monkeypatch.setitem(sys.modules, "mauve", SimpleNamespace(compute_mauve=compute_mauve))
    return made


def state_by_hand(model: Any, row: list[int]) -> np.ndarray:
    """The network's last hidden state at the last token of one unpadded row."""
    with torch.no_grad():
        states = model(torch.tensor([row]), output_hidden_states=True).hidden_states
    return states[-1][0, -1].numpy()


def test_features_are_the_last_hidden_state_at_each_texts_last_token(
    judge: Any, tokenizer: Any, calls: list[dict[str, Any]]
) -> None:
    texts = ["hello world", "a", "the fox"]
    metric = Mauve((judge, tokenizer), min_samples=2, batch_size=2)
    metric.update(texts, texts[:2])
    metric.compute()
    expected = np.stack([state_by_hand(judge, tokenizer(t)["input_ids"]) for t in texts])
    np.testing.assert_allclose(calls[0]["q_features"], expected, **CLOSE)
    np.testing.assert_allclose(calls[0]["p_features"], expected[:2], **CLOSE)


def test_an_empty_text_is_a_lone_eos_and_stays_a_sample(
    judge: Any, tokenizer: Any, calls: list[dict[str, Any]]
) -> None:
    metric = Mauve((judge, tokenizer), min_samples=2)
    metric.update(["", "ab"], ["ab", "ba"])
    assert metric.details()["samples"] == 2
    np.testing.assert_allclose(calls[0]["q_features"][0], state_by_hand(judge, [0]), **CLOSE)


def test_both_sides_are_cut_at_one_length_and_the_cut_ones_counted(
    judge: Any, tokenizer: Any, calls: list[dict[str, Any]]
) -> None:
    metric = Mauve((judge, tokenizer), min_samples=2, max_length=3)
    metric.update(["abcdef", "ab"], ["abcxyz", "abcd"])
    found = metric.details()
    assert (found["truncated_samples"], found["truncated_data"], found["max_length"]) == (1, 2, 3)
    np.testing.assert_allclose(calls[0]["q_features"][0], calls[0]["p_features"][1], **CLOSE)


def test_every_seed_is_one_score_and_the_mean_and_spread_are_reported(
    judge: Any, calls: list[dict[str, Any]]
) -> None:
    rows = torch.randint(0, 28, (40, 6))
    metric = Mauve(judge, min_samples=30, seeds=(1, 2, 6), scaling=2.0)
    metric.update(rows, rows[:30])
    found = metric.details()
    assert [call["seed"] for call in calls] == [1, 2, 6]
    assert found["scores"] == [0.1, 0.2, 0.6]
    assert found["mauve"] == pytest.approx(0.3)
    # deviations -0.2, -0.1, 0.3 over two degrees of freedom
    assert found["sd"] == pytest.approx((0.14 / 2) ** 0.5)
    assert {call["num_buckets"] for call in calls} == {3}  # a tenth of the smaller side
    assert {call["mauve_scaling_factor"] for call in calls} == {2.0}
    for key, value in (("clusters", 3), ("samples", 40), ("data", 30), ("min_samples", 30)):
        assert found[key] == value
    assert found["evaluator_dtype"] == "float32"


def test_too_few_texts_are_refused_with_both_sizes(judge: Any, calls: list[dict[str, Any]]) -> None:
    metric = Mauve(judge)
    metric.update(torch.randint(0, 28, (12, 4)), torch.randint(0, 28, (30, 4)))
    with pytest.raises(UserError, match=r"compares 12 generated with 30 real .* fewer than 1000"):
        metric.compute()
    assert calls == []


def test_features_that_are_not_finite_are_refused_and_counted(
    judge: Any, calls: list[dict[str, Any]]
) -> None:
    judge.transformer.wte.weight.data[5] = torch.nan
    metric = Mauve(judge, min_samples=2)
    metric.update(torch.tensor([[1, 5], [1, 2], [3, 4]]), torch.tensor([[1, 2], [3, 4]]))
    with pytest.raises(UserError, match=r"1 of 3 generated texts have features .* not finite"):
        metric.compute()
    assert calls == []


def test_features_of_two_processes_merge(judge: Any, calls: list[dict[str, Any]]) -> None:
    rows, data = torch.randint(0, 28, (6, 5)), torch.randint(0, 28, (4, 5))
    whole, left, right, empty = (Mauve(judge, min_samples=2, seeds=(3,)) for _ in range(4))
    whole.update(rows, data)
    left.update(rows[:4], data[:1])
    right.update(rows[4:], data[1:])
    left.merge_state(right)
    left.merge_state(empty)
    for metric in (whole, left):
        metric.compute()
    for side in ("p_features", "q_features"):
        # merging puts the other process first
        one, other = (x[np.argsort(x[:, 0])] for x in (calls[0][side], calls[1][side]))
        np.testing.assert_allclose(other, one, **CLOSE)


def test_a_missing_package_is_one_sentence_that_says_what_to_install(
    judge: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "mauve", None)
    metric = Mauve(judge, min_samples=2)
    metric.update(torch.ones(2, 3, dtype=torch.int64), torch.ones(2, 3, dtype=torch.int64))
    with pytest.raises(UserError, match=r"pip install 'idlm\[mauve\]'"):
        metric.compute()


def test_wrong_settings_are_refused(judge: Any) -> None:
    for wrong in ({"clusters": 1}, {"clusters": "many"}, {"seeds": ()}, {"scaling": 0.0}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))}="):
            Mauve(judge, **wrong)
    with pytest.raises(ValueError, match="min_samples=1"):
        Mauve(judge, min_samples=1)


def test_the_real_package_gives_one_to_equal_texts_and_little_to_unlike_ones(
    judge_folder: Path,
) -> None:
    pytest.importorskip("mauve")
    rows = torch.randint(1, 28, (60, 12))
    alike, unlike = (
        Mauve(judge_folder, min_samples=50, seeds=(1, 2), device="cpu") for _ in range(2)
    )
    alike.update(rows, rows)
    unlike.update(torch.full_like(rows, 3), rows)
    assert float(alike.compute()) == pytest.approx(1, abs=1e-6)
    assert float(unlike.compute()) < 0.1
