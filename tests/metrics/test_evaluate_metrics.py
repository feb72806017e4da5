"""``--metrics`` of ``idlm evaluate``: names, comparisons with a reference, and what is said."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from idlm.cli import evaluate
from idlm.errors import UserError
from idlm.metrics import GradientMoment, Repetition, SelfBLEU
from idlm.samples import write_samples

TEXTS = ["hello fox", "the quick", "abcabcabc", "lazy dogs", "hello fox"]
HELD_OUT = "the quick brown fox jumps over the lazy dog and runs away from it all " * 6


@pytest.fixture
def samples(tmp_path: Path, tokenizer: Any) -> str:
    return written(tmp_path / "s.jsonl", TEXTS, tokenizer)


def written(path: Path, texts: list[str], tokenizer: Any, **header: Any) -> str:
    rows = [
        {"text": text, "tokens": tokenizer(text)["input_ids"], "seed": 0, "index": i}
        for i, text in enumerate(texts)
    ]
    return str(write_samples(path, {"checkpoint": "./gone", "steps": 4, **header}, rows))


@pytest.fixture
def reference(tmp_path: Path, judge_folder: Path) -> list[str]:
    """The options that name held-out text."""
    (tmp_path / "held-out.txt").write_text(HELD_OUT)
    options = ["--reference", str(tmp_path / "held-out.txt"), "--tokenizer", str(judge_folder)]
    return [*options, "--evaluator", str(judge_folder)]


def evaluated(tmp_path: Path, *argv: str) -> dict[str, Any]:
    output = tmp_path / "results.json"
    evaluate.run([*argv, "--device", "cpu", "--output", str(output)])
    return json.loads(output.read_text())


def test_metrics_of_tokens_need_no_evaluator_and_come_with_entropy(
    tmp_path: Path,
    samples: str,
    tokenizer: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def refuse(*args: Any, **options: Any) -> None:
        raise AssertionError("an evaluator was loaded")

    monkeypatch.setattr("idlm.metrics.load_evaluator", refuse)
    found = evaluated(
        tmp_path, "--samples", samples, "--metrics", "self_bleu_3", "seq_rep_2", "longest_repeat"
    )
    [row] = found["results"]
    rows = [tokenizer(text)["input_ids"] for text in TEXTS]
    for name, metric in (("self_bleu_3", SelfBLEU(3)), ("seq_rep_2", Repetition(2))):
        for tokens in rows:
            metric.update(torch.tensor([tokens]))
        assert row[name] == pytest.approx(float(metric.compute()))
    assert row["longest_repeat"] == pytest.approx((1 + 0 + 6 + 0 + 1) / 5)
    assert row["entropy"] > 0
    assert "gen_ppl" not in row
    assert set(found["definitions"]) == {"entropy", "self_bleu_3", "seq_rep_2", "longest_repeat"}
    printed = capsys.readouterr().out
    for expected in ("self-BLEU-3", "seq-rep-2", "entropy (nats)", "against all others"):
        assert expected in printed
    assert "GenPPL" not in printed


def test_both_rules_are_two_columns_of_one_run(
    tmp_path: Path, judge_folder: Path, tokenizer: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    file = written(tmp_path / "s.jsonl", ["ab<|endoftext|>cd", "hello"], tokenizer)
    judged = ["--samples", file, "--evaluator", str(judge_folder)]
    [row] = evaluated(tmp_path, *judged, "--eos", "both")["results"]
    printed = capsys.readouterr().out
    assert f"{row['gen_ppl_published']:.2f}" in printed
    assert f"{row['gen_ppl_strict']:.2f}" in printed
    assert "eos rules published and strict" in printed
    assert row["gen_ppl"] == row["gen_ppl_published"] != row["gen_ppl_strict"]
    [strict] = evaluated(tmp_path, *judged, "--eos", "strict")["results"]
    assert strict["gen_ppl"] == row["gen_ppl_strict"]


def test_gradient_moment_of_samples_and_of_other_real_rows(
    tmp_path: Path,
    samples: str,
    reference: list[str],
    judge_folder: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = evaluated(
        tmp_path, "--samples", samples, *reference, "--metrics", "gradient_moment",
        "--half-batch", "1", "--no-retokenize",
    )  # fmt: skip
    generated, real = found["results"]
    details = generated["gradient_moment_details"]
    assert (details["pairs"], details["unused_samples"]) == (2, 1)
    assert (details["samples_per_half"], details["eos"]) == (1.0, "published")
    assert details["against"].startswith("reference: ")
    assert real["gradient_moment_details"]["against"].startswith("other rows of ")
    assert generated["gradient_moment_stderr"] > 0
    assert generated["gradient_moment"] != real["gradient_moment"]
    taken = capsys.readouterr()
    assert "1 of 5 samples fill no batch" in taken.err
    assert "2 pairs of 2 x 1 rows" in taken.out.replace("\n", " ").replace("  ", " ")


def test_gradient_moment_by_text_equals_the_metric_on_the_same_halves(
    tmp_path: Path, judge_folder: Path
) -> None:
    from idlm.evaluation.against import DATA_ORDER, SAMPLE_ORDER, moment_numbers
    from idlm.metrics.report import SampleSet

    data = ["the fox", "a dog", "runs away", "over it"]
    orders = [
        torch.randperm(4, generator=torch.Generator().manual_seed(seed)).tolist()
        for seed in (SAMPLE_ORDER, DATA_ORDER)
    ]
    metric = GradientMoment(judge_folder, device="cpu")
    plain = GradientMoment(judge_folder, device="cpu")
    for start in (0, 2):
        plain.update(
            [TEXTS[i] for i in orders[0][start : start + 2]],
            [data[i] for i in orders[1][start : start + 2]],
        )
    found = moment_numbers(
        SampleSet("s", TEXTS[:4], [[1]] * 4),
        SampleSet("d", data, [[1]] * 4),
        metric,
        half_batch=1,
        retokenize=True,
    )
    assert found["gradient_moment"] == pytest.approx(float(plain.compute()))
    with pytest.raises(UserError, match="needs 8 rows on each side and has 4 against 4"):
        moment_numbers(
            SampleSet("s", TEXTS[:4], [[1]] * 4),
            SampleSet("d", data, [[1]] * 4),
            metric,
            half_batch=4,
            retokenize=True,
        )


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> None:
    """A function in the place of mauve-text: a tenth of the seed."""

    def compute_mauve(**given: Any) -> Any:
        return SimpleNamespace(mauve=given["seed"] / 10)

    monkeypatch.setitem(sys.modules, "mauve", SimpleNamespace(compute_mauve=compute_mauve))


@pytest.mark.usefixtures("package")
def test_mauve_is_printed_with_its_conditions(
    tmp_path: Path, samples: str, reference: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    found = evaluated(
        tmp_path, "--samples", samples, *reference, "--metrics", "mauve",
        "--mauve-min-samples", "5", "--mauve-seeds", "2", "4", "--mauve-clusters", "3",
    )  # fmt: skip
    generated, real = found["results"]
    assert generated["mauve"] == pytest.approx(0.3)
    assert generated["mauve_details"]["clusters"] == 3
    assert generated["mauve_details"]["min_samples"] == 5
    assert real["mauve_details"]["against"].startswith("other rows of ")
    printed = " ".join(capsys.readouterr().out.split())
    assert "0.3000 ± 0.1414" in printed
    assert "5 against 5 texts, 3 clusters, scaling 5, seeds 2, 4" in printed


@pytest.mark.usefixtures("package")
def test_too_few_samples_for_mauve_are_refused_before_anything_is_generated(
    tmp_path: Path, samples: str, reference: list[str]
) -> None:
    with pytest.raises(UserError, match="compares 5 generated with 5 real"):
        evaluated(tmp_path, "--samples", samples, *reference, "--metrics", "mauve")
    # ./gone would be refused as soon as it were opened
    with pytest.raises(UserError, match="compares 16 generated with 16 real"):
        evaluated(tmp_path, "--checkpoint", "./gone", *reference, "--metrics", "mauve")


@pytest.mark.usefixtures("package")
def test_a_file_without_texts_has_metrics_of_tokens_and_no_mauve(
    tmp_path: Path, reference: list[str]
) -> None:
    rows = [{"text": None, "tokens": [1, 2, 3, 1], "seed": 0, "index": i} for i in range(3)]
    header = {"checkpoint": "./gone", "decoded": False}
    file = str(write_samples(tmp_path / "tokens.jsonl", header, rows))
    [row] = evaluated(tmp_path, "--samples", file, "--metrics", "self_bleu_2")["results"]
    assert row["self_bleu_2"] == pytest.approx(1)
    with pytest.raises(UserError, match=r"holds tokens without text.*mauve cannot"):
        evaluated(
            tmp_path, "--samples", file, *reference, "--no-retokenize", "--metrics", "mauve",
            "--mauve-min-samples", "2",
        )  # fmt: skip


def test_a_reference_without_rows_to_spare_has_no_control_and_that_is_said(
    tmp_path: Path, reference: list[str], tokenizer: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    file = written(tmp_path / "long.jsonl", ["abcdefghijklmnop" * 2] * 30, tokenizer)
    found = evaluated(
        tmp_path, "--samples", file, *reference, "--metrics", "gradient_moment",
        "--half-batch", "2",
    )  # fmt: skip
    assert found["results"][0]["gradient_moment"] is not None
    assert found["results"][1]["gradient_moment"] is None
    assert "gradient_moment has no real-against-real value" in capsys.readouterr().err


def test_few_and_failed_samples_and_the_family_are_said_on_stderr_and_kept(
    tmp_path: Path, judge_folder: Path, tokenizer: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    file = written(
        tmp_path / "s.jsonl", ["hello", "a", "fox"], tokenizer, checkpoint=str(judge_folder)
    )
    found = evaluated(tmp_path, "--samples", file, "--evaluator", str(judge_folder))
    taken = capsys.readouterr()
    for expected in (
        "3 samples are fewer than 80: GenPPL",
        "1 of 3 samples have no scored token",
        "is the model that made the samples",
    ):
        assert sum(expected in line for line in taken.err.splitlines()) == 1
        assert sum(expected in sentence for sentence in found["warnings"]) == 1
        assert expected not in taken.out
    [row] = found["results"]
    assert row["gen_ppl_stderr"] > 0
    assert row["entropy_stderr"] > 0


def test_a_sample_that_is_not_finite_is_shown_in_the_table(
    tmp_path: Path, judge: Any, tokenizer: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    judge.transformer.wpe.weight.data[3] = torch.nan
    folder = tmp_path / "broken"
    judge.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    file = written(tmp_path / "s.jsonl", ["abc", "hello"], tokenizer)
    # one by one: in a batch a nan reaches padding, and from there every token
    judged = ["--evaluator", str(folder), "--batch-size", "1"]
    [row] = evaluated(tmp_path, "--samples", file, *judged)["results"]
    taken = capsys.readouterr()
    assert row["gen_ppl"] is None
    assert row["nonfinite_samples"] == 1
    assert "nan (1 of 2)" in taken.out
    assert "1 of 2 samples have a log-probability that is not finite" in taken.err


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["--metrics", "gen-ppl"], "'gen-ppl' is unknown: did you mean gen_ppl"),
        (["--metrics", "mauve"], "--metrics mauve compares with real text: give --reference"),
        (["--half-batch", "2"], "--half-batch is of gradient_moment, .* add it there"),
        (["--mauve-scaling", "3"], "--mauve-scaling is of mauve"),
        (
            ["--metrics", "gradient_moment", "--half-batch", "0"],
            "--half-batch is 0: it must be 1 or more",
        ),
        (["--metrics", "mauve", "--mauve-scaling", "0"], "--mauve-scaling is 0.0: it must be"),
        (["--metrics", "mauve", "--mauve-clusters", "1"], "--mauve-clusters is 1"),
        (["--metrics", "entropy", "--evaluator", "gpt2"], "--evaluator judges .* leave it out"),
    ],
)
def test_bad_usage_is_one_sentence(argv: list[str], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence) as caught:
        evaluate.run(["--samples", "never-read.jsonl", *argv])
    assert "\n" not in str(caught.value)
