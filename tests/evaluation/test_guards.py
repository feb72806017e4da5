"""What is said aloud beside numbers, on two tokenizers of letters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from idlm.data import train_bpe
from idlm.evaluation.guards import FEW_SAMPLES, cell_warnings, family_warnings, result_warnings
from idlm.metrics import Evaluator, load_evaluator

RESULT: dict[str, Any] = {
    "source": "s.jsonl",
    "num_samples": FEW_SAMPLES,
    "gen_ppl": 31.234,
    "gen_ppl_stderr": 1.5,
    "entropy": 5.0,
    "entropy_stderr": 0.02,
    "eos": "published",
    "evaluator_dtype": "float16",
}


def test_enough_samples_of_which_none_failed_need_no_warning() -> None:
    assert result_warnings(RESULT) == []


def test_few_samples_are_said_with_the_standard_errors() -> None:
    (said,) = result_warnings({**RESULT, "num_samples": FEW_SAMPLES - 1})
    assert said.startswith("s.jsonl: 79 samples are fewer than 80")
    # a table that has them says so itself
    assert result_warnings({**RESULT, "num_samples": FEW_SAMPLES - 1}, few=False) == []
    assert "GenPPL 31.23 ± 1.50, entropy 5.0000 ± 0.0200 nats" in said


def test_one_sample_has_no_standard_error_and_the_warning_says_so() -> None:
    alone = {**RESULT, "num_samples": 1, "gen_ppl_stderr": None}
    del alone["entropy_stderr"]
    (said,) = result_warnings(alone)
    assert "GenPPL 31.23 ± unknown, entropy 5.0000 ± unknown nats" in said


def test_failed_samples_are_counted_aloud() -> None:
    said = result_warnings({**RESULT, "unscored_samples": 3, "nonfinite_samples": 2})
    assert any("3 of 80 samples have no scored token" in sentence for sentence in said)
    assert any("2 of 80 samples have a log-probability that is not finite" in s for s in said)


def test_what_a_comparison_left_out_is_said() -> None:
    moment = {"nonfinite_pairs": 1, "pairs": 4, "unused_samples": 6}
    mauve = {"empty_samples": 2, "samples": 999, "data": 1000}
    said = result_warnings({**RESULT, "gradient_moment_details": moment, "mauve_details": mauve})
    assert any("1 of 4 pairs of batches have gradients that are not finite" in s for s in said)
    assert any("6 of 80 samples fill no batch" in s for s in said)
    assert any("2 empty samples are in MAUVE" in s for s in said)
    assert any("MAUVE of 999 against 1000 texts, fewer than 1000, is biased" in s for s in said)
    enough = {"empty_samples": 0, "samples": 1000, "data": 1000}
    assert result_warnings({**RESULT, "mauve_details": enough}) == []
    (missing,) = result_warnings({**RESULT, "mauve": None})
    assert "mauve has no real-against-real value" in missing


def test_cells_of_one_setting_are_one_set_whose_failures_add_up() -> None:
    said = {"evaluator": "judge", "eos": "strict", "evaluator_dtype": "float16"}
    cell = {
        "label": "student", "steps": 4, "temperature": 0.5, "top_p": 0.9, "num_samples": 40,
        "gen_ppl": 30.0, "gen_ppl_stderr": 3.0, "entropy": 5.0, "entropy_stderr": 0.4,
    }  # fmt: skip
    whole = {**cell, "evaluation": said}
    assert cell_warnings([whole, whole]) == []
    (few,) = cell_warnings([whole, {**whole, "num_samples": 39, "entropy_stderr": 0.3}])
    assert few.startswith("student, 4 steps, T=0.5, top-p 0.9 under judge: 79 samples are fewer")
    assert "GenPPL 30.00 ± 2.12, entropy 5.0000 ± 0.2500 nats" in few  # errors of a mean of two
    broken = {**cell, "gen_ppl": None, "evaluation": {**said, "nonfinite_samples": 3}}
    (sentence,) = cell_warnings([broken, {**broken, "seed": 1}])
    assert "6 of 80 samples have a log-probability that is not finite" in sentence
    text = {**cell, "corpus": "wiki", "evaluation": {**said, "unscored_samples": 2}}
    (few, unscored) = cell_warnings([], [text])
    assert unscored.startswith("held-out text of wiki: 2 of 40 samples have no scored token")


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Folders of two tokenizers whose ids mean different things."""
    root = tmp_path_factory.mktemp("tokenizers")
    texts = (["the quick brown fox"] * 5, ["zebras jump over lazy dogs"] * 5)
    made = [train_bpe(text, 270, root / str(i)) for i, text in enumerate(texts)]
    return str(made[0]), str(made[1])


def judged_by(folder: str) -> Evaluator:
    from transformers import AutoTokenizer

    return Evaluator(torch.nn.Linear(1, 1), "judge", AutoTokenizer.from_pretrained(folder))


def test_an_evaluator_with_the_samples_tokenizer_is_of_their_family(
    tokenizers: tuple[str, str],
) -> None:
    (said,) = family_warnings(
        tokenizers[0], judged_by(tokenizers[0]), tokenizer=None, retokenized=True
    )
    assert f"evaluator judge has the tokenizer of {tokenizers[0]}: of one family" in said


def test_another_tokenizer_is_said_and_worse_if_ids_are_read_as_they_are(
    tokenizers: tuple[str, str],
) -> None:
    judge = judged_by(tokenizers[1])
    (said,) = family_warnings(tokenizers[0], judge, tokenizer=None, retokenized=True)
    assert "has another tokenizer" in said
    assert "counts the evaluator's tokens" in said
    (said,) = family_warnings(tokenizers[0], judge, tokenizer=None, retokenized=False)
    assert "read its token ids as its own: leave out --no-retokenize" in said


def test_a_tokenizer_given_in_place_of_the_checkpoints_own_is_said(
    tokenizers: tuple[str, str],
) -> None:
    said = family_warnings(
        tokenizers[0], judged_by(tokenizers[0]), tokenizer=tokenizers[1], retokenized=True
    )
    assert said[0].startswith(f"--tokenizer {tokenizers[1]} is not that of {tokenizers[0]}")
    assert len(said) == 2
    same = family_warnings(
        tokenizers[0], judged_by(tokenizers[0]), tokenizer=tokenizers[0], retokenized=True
    )
    assert len(same) == 1


def test_an_evaluator_that_made_the_samples_is_said(tokenizers: tuple[str, str]) -> None:
    judge = judged_by(tokenizers[0])
    judge.folder = Path(tokenizers[0])
    (said,) = family_warnings(tokenizers[0], judge, tokenizer=None, retokenized=True)
    assert "is the model that made the samples" in said


def test_the_bundled_evaluator_shares_tokenizer_and_corpus_with_the_bundled_student() -> None:
    judge = load_evaluator("python-docs-evaluator", device="cpu")
    (said,) = family_warnings("python-docs-student-16step", judge, tokenizer=None, retokenized=True)
    assert "has the tokenizer and corpus of python-docs-student-16step" in said


def test_an_unknown_family_is_said_and_not_passed_over(tokenizers: tuple[str, str]) -> None:
    judge = judged_by(tokenizers[0])
    (said,) = family_warnings(None, judge, tokenizer=None, retokenized=True)
    assert "name no checkpoint" in said
    (said,) = family_warnings("./gone", judge, tokenizer=None, retokenized=True)
    assert "the tokenizer of ./gone cannot be opened" in said
