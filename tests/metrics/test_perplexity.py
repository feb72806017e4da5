from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from idlm.errors import UserError
from idlm.metrics import GenerativePerplexity
from idlm.metrics.scoring import scored_positions

# The same float32 logits reach the metric and the test in batches of other shapes.
CLOSE = {"rel": 1e-5}


def positions(row: list[int], rule: str, real: int | None = None) -> list[int]:
    """Which token positions of a row count; the tokens from ``real`` on are padding."""
    attention = torch.ones(1, len(row), dtype=torch.int64)
    attention[:, real if real is not None else len(row) :] = 0
    counted = scored_positions(torch.tensor([row]), (0,), rule, attention)
    return (counted[0].nonzero().flatten() + 1).tolist()


def nll_by_hand(model: Any, row: list[int]) -> list[float]:
    """Nats of tokens 1.. of one unpadded row, in float64."""
    with torch.no_grad():
        logits = model(torch.tensor([row])).logits[0].double()
    log_p = logits.log_softmax(-1)
    return [-float(log_p[j - 1, row[j]]) for j in range(1, len(row))]


def test_published_rule_counts_text_after_eos_and_only_the_first_eos() -> None:
    a_eos_b_c = [1, 0, 2, 3]
    assert positions(a_eos_b_c, "published") == [1, 2, 3]
    assert positions([1, 0, 2, 0, 3, 0], "published") == [1, 2, 4]


def test_published_rule_scores_the_first_pad_of_a_text_without_eos() -> None:
    a_b_padded = [1, 2, 0, 0]
    assert positions(a_b_padded, "published", real=2) == [1, 2]


def test_published_rule_takes_an_eos_at_the_start_for_the_first() -> None:
    assert positions([0, 1, 0, 2], "published") == [1, 3]


def test_strict_rule_stops_after_the_first_eos_and_never_counts_padding() -> None:
    assert positions([1, 0, 2, 3], "strict") == [1]
    assert positions([1, 2, 0, 0], "strict", real=2) == [1]
    assert positions([1, 2, 0, 0], "strict", real=4) == [1, 2]
    assert positions([0, 1, 2, 3], "strict") == []


@pytest.mark.parametrize(("rule", "counted"), [("published", [0, 1, 2]), ("strict", [0])])
def test_perplexity_of_a_hand_made_row_is_exp_of_the_mean_counted_nll(
    judge: Any, rule: str, counted: list[int]
) -> None:
    row = [1, 0, 2, 3]
    nll = nll_by_hand(judge, row)
    metric = GenerativePerplexity(judge, retokenize=False, eos=rule)
    metric.update(torch.tensor([row]))
    expected = math.exp(sum(nll[j] for j in counted) / len(counted))
    assert float(metric.compute()) == pytest.approx(expected, **CLOSE)
    assert int(metric.token_count) == len(counted)


def test_perplexity_pools_tokens_and_is_no_mean_over_sequences(judge: Any, tokenizer: Any) -> None:
    # The eos ends the shorter text, so that the published rule scores no padding of its own.
    texts = ["ab<|endoftext|>", "hello world"]
    rows = [tokenizer(text)["input_ids"] for text in texts]
    nll = [nll_by_hand(judge, row) for row in rows]
    metric = GenerativePerplexity((judge, tokenizer))
    metric.update(texts)
    pooled = math.exp((sum(nll[0]) + sum(nll[1])) / (len(nll[0]) + len(nll[1])))
    per_sequence = sum(math.exp(sum(n) / len(n)) for n in nll) / 2
    assert float(metric.compute()) == pytest.approx(pooled, **CLOSE)
    assert abs(pooled / per_sequence - 1) > 1e-3  # or this test could not tell them apart


def test_short_text_in_a_padded_batch_has_one_pad_scored_when_published_and_none_when_strict(
    judge: Any, tokenizer: Any
) -> None:
    texts = ["ab", "hello"]
    with_pad = nll_by_hand(judge, [*tokenizer("ab")["input_ids"], 0])
    long = nll_by_hand(judge, tokenizer("hello")["input_ids"])
    for rule, short in (("published", with_pad), ("strict", with_pad[:1])):
        metric = GenerativePerplexity((judge, tokenizer), eos=rule)
        metric.update(texts)
        assert int(metric.token_count) == len(short) + len(long)
        expected = math.exp(sum(short + long) / len(short + long))
        assert float(metric.compute()) == pytest.approx(expected, **CLOSE)


def test_every_sample_is_scored_when_the_count_is_no_multiple_of_the_batch(judge: Any) -> None:
    rows = torch.randint(1, 28, (7, 12))
    nll = [n for row in rows.tolist() for n in nll_by_hand(judge, row)]
    metric = GenerativePerplexity(judge, retokenize=False, batch_size=3)
    metric.update(rows)
    assert int(metric.sample_count) == 7
    assert int(metric.token_count) == 7 * 11
    assert float(metric.nll_sum) == pytest.approx(sum(nll), **CLOSE)


def test_states_of_two_processes_add_up_to_the_whole(judge: Any) -> None:
    rows = torch.randint(0, 28, (6, 10))
    whole, left, right = (GenerativePerplexity(judge, retokenize=False) for _ in range(3))
    whole.update(rows)
    left.update(rows[:4])
    right.update(rows[4:])
    left.merge_state(right)
    assert float(left.compute()) == pytest.approx(float(whole.compute()), **CLOSE)
    assert left.conditions()["sample_count"] == 6
    assert whole.nll_sum.dtype == torch.float64


def test_a_sample_of_fewer_than_two_tokens_scores_nothing_and_is_reported(
    judge: Any, tokenizer: Any
) -> None:
    metric = GenerativePerplexity((judge, tokenizer))
    metric.update(["hello", "a", ""])
    alone = GenerativePerplexity((judge, tokenizer))
    alone.update(["hello"])
    assert float(metric.compute()) == float(alone.compute())
    assert metric.conditions()["sample_count"] == 3
    assert metric.conditions()["unscored_samples"] == 2


def test_nothing_scored_gives_nan_and_not_one(judge: Any, tokenizer: Any) -> None:
    metric = GenerativePerplexity((judge, tokenizer))
    metric.update([""])
    assert math.isnan(float(metric.compute()))


def test_long_texts_are_cut_to_max_length_and_counted(judge: Any, tokenizer: Any) -> None:
    metric = GenerativePerplexity((judge, tokenizer), max_length=5)
    metric.update(["hello world", "hello"])
    assert int(metric.token_count) == 8
    assert metric.conditions()["truncated_samples"] == 1
    assert metric.conditions()["max_length"] == 5


def test_rows_longer_than_the_context_are_scored_in_pieces_of_it(judge: Any) -> None:
    row = torch.randint(1, 28, (1, 40))
    nll = nll_by_hand(judge, row[0, :32].tolist()) + nll_by_hand(judge, row[0, 32:].tolist())
    metric = GenerativePerplexity(judge, retokenize=False)
    metric.update(row)
    assert int(metric.token_count) == 31 + 7
    assert float(metric.nll_sum) == pytest.approx(sum(nll), **CLOSE)


def test_token_batches_are_decoded_by_their_own_tokenizer(judge: Any, tokenizer: Any) -> None:
    from_tokens = GenerativePerplexity((judge, tokenizer), tokenizer=tokenizer)
    from_texts = GenerativePerplexity((judge, tokenizer))
    from_tokens.update(torch.tensor([tokenizer("hello world")["input_ids"]]))
    from_texts.update(["hello world"])
    assert float(from_tokens.compute()) == float(from_texts.compute())


def test_a_folder_and_the_model_in_memory_agree_and_the_folder_has_a_revision(
    judge: Any, judge_folder: Path
) -> None:
    rows = torch.randint(0, 28, (3, 9))
    values = []
    for evaluator in (judge, judge_folder):
        metric = GenerativePerplexity(evaluator, retokenize=False, device="cpu")
        metric.update(rows)
        values.append(float(metric.compute()))
    assert values[0] == pytest.approx(values[1], **CLOSE)
    found = metric.conditions()
    assert found["evaluator"] == str(judge_folder)
    assert found["evaluator_revision"].startswith("sha256:")
    assert found["evaluator_dtype"] == "float32"
    assert (found["pooling"], found["eos"], found["retokenized"]) == ("tokens", "published", False)


def test_a_model_in_training_is_scored_without_dropout_and_left_in_training(judge: Any) -> None:
    rows = torch.randint(0, 28, (3, 9))
    quiet = GenerativePerplexity(judge, retokenize=False)
    quiet.update(rows)
    judge.train()
    metric = GenerativePerplexity(judge, retokenize=False)
    metric.update(rows)
    assert float(metric.compute()) == float(quiet.compute())
    assert judge.training


def test_the_evaluator_is_no_part_of_the_metric_state(judge: Any) -> None:
    metric = GenerativePerplexity(judge, retokenize=False)
    assert not list(metric.parameters())
    assert not metric.state_dict()


@pytest.mark.parametrize("name", ["./no-such-folder", "/nowhere/model", "a/b/c"])
def test_an_unknown_folder_is_one_sentence(name: str) -> None:
    with pytest.raises(UserError, match=r"is not a folder: give one with config\.json") as caught:
        GenerativePerplexity(name)
    assert repr(name) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unreachable_hub_is_one_sentence_that_says_how_to_give_a_folder() -> None:
    # tests/conftest.py keeps huggingface_hub offline
    ways = r"could not be fetched .* give the path of a folder .*, or 'python-docs-evaluator'"
    with pytest.raises(UserError, match=ways) as e:
        GenerativePerplexity("nobody/no-such-evaluator")
    assert "\n" not in str(e.value)


def test_a_folder_without_a_causal_language_model_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "no-such-type"}')
    with pytest.raises(UserError, match="could not be loaded as a causal language model"):
        GenerativePerplexity(tmp_path)


def test_missing_weights_are_refused_and_not_drawn_at_random(judge: Any, tmp_path: Path) -> None:
    weights = judge.state_dict()
    judge.save_pretrained(
        tmp_path, state_dict={k: v for k, v in weights.items() if ".h.1." not in k}
    )
    with pytest.raises(UserError, match=r"lacks \d+ of the weights"):
        GenerativePerplexity(tmp_path)


def test_wrong_inputs_are_refused_with_what_to_do(judge: Any, tokenizer: Any) -> None:
    with pytest.raises(UserError, match="published, strict"):
        GenerativePerplexity(judge, eos="first")
    with pytest.raises(UserError, match=r"came without a tokenizer: give \(model, tokenizer\)"):
        GenerativePerplexity(judge).update(["text"])
    with pytest.raises(ValueError, match="give tokenizer="):
        GenerativePerplexity((judge, tokenizer)).update(torch.ones(1, 4, dtype=torch.int64))
    with pytest.raises(ValueError, match="scores token rows"):
        GenerativePerplexity(judge, retokenize=False).update(["text"])
    with pytest.raises(UserError, match="knows 0 to 27"):
        GenerativePerplexity(judge, retokenize=False).update(torch.full((1, 4), 28))


def test_one_pass_gives_both_rules_as_two_metrics_would(judge: Any, tokenizer: Any) -> None:
    texts = ["ab<|endoftext|>cd", "hello", "a", "<|endoftext|>x"]
    found = {}
    for rule in ("published", "strict"):
        metric = GenerativePerplexity((judge, tokenizer), eos=rule)
        metric.update(texts)
        found[rule] = metric.by_rule()
        assert found[rule][rule]["gen_ppl"] == float(metric.compute())
        assert found[rule][rule]["token_count"] == int(metric.token_count)
    assert found["published"] == found["strict"]
    assert found["strict"]["strict"]["gen_ppl"] != found["strict"]["published"]["gen_ppl"]
    # strict: b and the eos of the first, four of the second, nothing of the others
    assert found["strict"]["strict"]["token_count"] == 2 + 4
    assert found["strict"]["strict"]["unscored_samples"] == 2
    assert found["strict"]["published"]["unscored_samples"] == 1


def test_standard_error_is_that_of_a_ratio_of_sums_over_samples(judge: Any) -> None:
    rows = [[1, 2, 3, 4], [5, 6, 7], [8, 9]]
    metric = GenerativePerplexity(judge, retokenize=False)
    nats, tokens = [], []
    for row in rows:
        metric.update(torch.tensor([row]))
        nats.append(sum(nll_by_hand(judge, row)))
        tokens.append(len(row) - 1)
    mean = sum(nats) / sum(tokens)
    squares = sum((a - mean * b) ** 2 for a, b in zip(nats, tokens, strict=True))
    expected = math.exp(mean) * math.sqrt(squares * 3 / 2) / sum(tokens)
    found = metric.by_rule()["published"]["standard_error"]
    assert found == pytest.approx(expected, rel=1e-4)  # differences of float32 sums
    alone = GenerativePerplexity(judge, retokenize=False)
    alone.update(torch.tensor([rows[0]]))
    assert math.isnan(alone.by_rule()["published"]["standard_error"])


def test_a_sample_that_is_not_finite_makes_the_perplexity_nan_and_is_counted(judge: Any) -> None:
    judge.transformer.wpe.weight.data[3] = torch.nan
    metric = GenerativePerplexity(judge, retokenize=False)
    # the nan is at the fourth token's place, which predicts a fifth
    metric.update(torch.tensor([[1, 2, 3]]))
    assert math.isfinite(float(metric.compute()))
    metric.update(torch.tensor([[1, 2, 3, 4, 5]]))
    assert math.isnan(float(metric.compute()))
    assert metric.conditions()["nonfinite_samples"] == 1
    assert metric.conditions()["sample_count"] == 2
