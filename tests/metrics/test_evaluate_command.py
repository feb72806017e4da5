"""``idlm evaluate`` from the command line to the JSON, with the tiny judge of conftest.py."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from idlm.cli import evaluate
from idlm.errors import UserError
from idlm.metrics import GenerativePerplexity
from idlm.samples import read_samples, write_samples

CHECKPOINT = {"checkpoint": "student", "steps": 4, "temperature": 1.0, "sampling_dtype": "float64"}


def samples_file(path: Path, texts: list[str], tokenizer: Any, **header: Any) -> str:
    rows = [
        {"text": text, "tokens": tokenizer(text)["input_ids"], "seed": 0, "index": i}
        for i, text in enumerate(texts)
    ]
    return str(write_samples(path, {**CHECKPOINT, **header}, rows))


def evaluated(tmp_path: Path, *argv: str) -> dict[str, Any]:
    output = tmp_path / "results.json"
    evaluate.run([*argv, "--device", "cpu", "--output", str(output)])
    return json.loads(output.read_text())


def test_two_seeds_give_two_rows_and_their_mean_with_all_conditions(
    tmp_path: Path, judge_folder: Path, tokenizer: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = [["aabb", "abcd", "hello"], ["zzzz", "the quick"]]
    files = [
        samples_file(tmp_path / f"{seed}.jsonl", text, tokenizer, seed=seed, nfe=4)
        for seed, text in enumerate(texts)
    ]
    found = evaluated(tmp_path, "--samples", *files, "--evaluator", str(judge_folder))
    assert [row["num_samples"] for row in found["results"]] == [3, 2]
    for row, text in zip(found["results"], texts, strict=True):
        metric = GenerativePerplexity(judge_folder, device="cpu")
        metric.update(text)
        assert row["gen_ppl"] == pytest.approx(float(metric.compute()))
        for key in ("steps", "nfe", "sampling_dtype", "evaluator", "evaluator_revision", "eos"):
            assert row[key] is not None
    first = [math.log(2), math.log(4), math.log(5) - 2 / 5 * math.log(2)]
    assert found["results"][0]["entropy"] == pytest.approx(sum(first) / 3)
    (group,) = found["summary"]
    values = [row["gen_ppl"] for row in found["results"]]
    assert group["gen_ppl_mean"] == pytest.approx(sum(values) / 2)
    assert group["gen_ppl_sd"] == pytest.approx(abs(values[0] - values[1]) / math.sqrt(2))
    assert group["seeds"] == [0, 1]
    printed = capsys.readouterr().out
    for expected in ("GenPPL", "entropy (nats)", "float64", "sha256:", "published", "±"):
        assert expected in printed


@pytest.mark.parametrize(
    "condition",
    [
        {"steps": 8},
        {"order": "confidence"},
        {"stride": 4},
        {"stop": "eos"},
        {"given": "prompt"},
        {"raw": True},
        {"network_dtype": "bfloat16"},
        {"compiled": True},
    ],
    ids=lambda condition: next(iter(condition)),
)
def test_files_made_under_different_conditions_are_not_averaged(
    condition: dict[str, Any], tmp_path: Path, judge_folder: Path, tokenizer: Any
) -> None:
    files = [
        samples_file(tmp_path / f"{number}.jsonl", ["hello"], tokenizer, seed=number, **changed)
        for number, changed in enumerate(({}, condition))
    ]
    found = evaluated(tmp_path, "--samples", *files, "--evaluator", str(judge_folder))
    assert found["summary"] == []


@pytest.mark.parametrize("seeds", [(0, 0), (0, 1, 0), (None, 1)])
def test_sets_that_their_seeds_do_not_tell_apart_are_no_repetitions(
    seeds: tuple[int | None, ...],
    tmp_path: Path,
    judge_folder: Path,
    tokenizer: Any,
    capsys: pytest.CaptureFixture[str],
) -> None:
    files = [
        samples_file(tmp_path / f"{number}.jsonl", ["hello"], tokenizer, seed=seed)
        for number, seed in enumerate(seeds)
    ]
    found = evaluated(tmp_path, "--samples", *files, "--evaluator", str(judge_folder))
    assert found["summary"] == []
    (said,) = (sentence for sentence in found["warnings"] if "no repetitions" in sentence)
    assert ", ".join(map(str, seeds)) in said
    assert all(file in said for file in files)
    assert said in capsys.readouterr().err


def test_one_file_given_twice_is_no_repetition(
    tmp_path: Path, judge_folder: Path, tokenizer: Any
) -> None:
    file = samples_file(tmp_path / "a.jsonl", ["hello"], tokenizer, seed=3)
    found = evaluated(tmp_path, "--samples", file, file, "--evaluator", str(judge_folder))
    assert found["summary"] == []
    assert any(f"no mean: {file}" in sentence for sentence in found["warnings"])


def test_kept_samples_of_other_conditions_never_share_a_file(
    tmp_path: Path, judge_folder: Path, tokenizer: Any
) -> None:
    from idlm import models

    config = models.DiffusionConfig(
        vocab_size=29, model_length=12, hidden_dim=8, cond_dim=4, n_blocks=1, n_heads=2
    )
    folders = []
    for parent in ("one", "two"):
        folders.append(str(tmp_path / parent / "student"))
        models.export_folder(models.DiffusionLM(config), folders[-1], tokenizer=tokenizer)
    kept = tmp_path / "kept"
    shared = [
        *("--steps", "2", "--num-samples", "2", "--evaluator", str(judge_folder)),
        *("--save-samples", str(kept)),
    ]
    evaluated(tmp_path, "--checkpoint", *folders, *shared)
    headers = [read_samples(path)[0]["checkpoint"] for path in kept.iterdir()]
    assert sorted(headers) == folders
    evaluated(tmp_path, "--checkpoint", folders[0], "--top-p", "0.5", *shared)
    assert sorted(read_samples(path)[0]["top_p"] for path in kept.iterdir()) == [0.5, 1.0, 1.0]
    evaluated(tmp_path, "--checkpoint", *folders, *shared)  # the same samples replace themselves
    assert len(list(kept.iterdir())) == 3


def test_reference_text_is_measured_in_rows_as_long_and_as_many_as_the_samples(
    tmp_path: Path, judge_folder: Path, tokenizer: Any
) -> None:
    file = samples_file(tmp_path / "s.jsonl", ["abcdefgh", "aaaaaaaa"], tokenizer)
    (tmp_path / "held-out.txt").write_text("the quick brown fox jumps over the lazy dog " * 5)
    found = evaluated(
        tmp_path, "--samples", file, "--evaluator", str(judge_folder),
        "--reference", str(tmp_path / "held-out.txt"), "--tokenizer", str(judge_folder),
    )  # fmt: skip
    reference = found["results"][1]
    assert reference["source"].startswith("reference: ")
    assert (reference["length"], reference["num_samples"]) == (8, 2)
    assert reference["gen_ppl"] > 0
    assert 0 < reference["entropy"] <= math.log(8)


def test_own_tokens_are_scored_when_retokenising_is_off(
    tmp_path: Path, judge_folder: Path, tokenizer: Any
) -> None:
    file = samples_file(tmp_path / "s.jsonl", ["hello", "hi"], tokenizer)
    found = evaluated(
        tmp_path, "--samples", file, "--evaluator", str(judge_folder), "--no-retokenize"
    )
    row = found["results"][0]
    assert row["retokenized"] is False
    assert row["gen_ppl_token_count"] == 4 + 1


def test_samples_without_a_scored_token_are_reported_and_have_no_perplexity(
    tmp_path: Path, judge_folder: Path, tokenizer: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    file = samples_file(tmp_path / "s.jsonl", ["a"], tokenizer)
    found = evaluated(tmp_path, "--samples", file, "--evaluator", str(judge_folder))
    assert found["results"][0]["gen_ppl"] is None
    assert found["results"][0]["unscored_samples"] == 1
    assert "none scored" in capsys.readouterr().out


def test_a_checkpoint_is_sampled_at_every_step_count_and_seed(
    tmp_path: Path, judge_folder: Path, tokenizer: Any
) -> None:
    models = pytest.importorskip("idlm.models")
    config = models.DiffusionConfig(
        vocab_size=29, model_length=12, hidden_dim=8, cond_dim=4, n_blocks=1, n_heads=2
    )
    folder = models.export_folder(
        models.DiffusionLM(config), tmp_path / "student", tokenizer=tokenizer
    )
    found = evaluated(
        tmp_path, "--checkpoint", str(folder), "--steps", "2", "4", "--seed", "0", "1",
        "--num-samples", "3", "--evaluator", str(judge_folder),
        "--save-samples", str(tmp_path / "kept"),
    )  # fmt: skip
    assert [(r["steps"], r["seed"]) for r in found["results"]] == [(2, 0), (2, 1), (4, 0), (4, 1)]
    assert all(r["nfe"] <= r["steps"] and r["num_samples"] == 3 for r in found["results"])
    assert [group["steps"] for group in found["summary"]] == [2, 4]
    kept = sorted((tmp_path / "kept").iterdir())
    assert len(kept) == 4
    header, rows = read_samples(kept[0])
    assert header["sampling_dtype"] == "float64"
    assert len(rows) == 3


def test_of_a_lightning_file_the_average_or_the_raw_weights_are_sampled(
    tmp_path: Path, judge_folder: Path
) -> None:
    from idlm.training import TeacherModule

    sizes = {"model_length": 12, "hidden_dim": 8, "cond_dim": 4, "n_blocks": 1, "n_heads": 2}
    module = TeacherModule(str(judge_folder), **sizes)
    module.configure_model()
    # all that the raw network ever writes is its token 3
    torch.nn.init.constant_(module.trained_network().backbone.output_layer.linear.bias[3:4], 50.0)
    checkpoint = {"state_dict": module.state_dict(), "hyper_parameters": dict(module.hparams)}
    module.on_save_checkpoint(checkpoint)
    torch.save(checkpoint, tmp_path / "last.ckpt")
    options = ["--tokenizer", str(judge_folder), "--evaluator", str(judge_folder)]
    for raw in (False, True):
        [row] = evaluated(
            tmp_path, "--checkpoint", str(tmp_path / "last.ckpt"), *options, *["--raw"] * raw
        )["results"]
        assert row["raw"] is raw
        assert row["revision"].startswith("sha256:")
        assert (row["entropy"] == 0.0) is raw


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        ([], "give either --samples FILE... .* or --checkpoint"),
        (["--samples", "a", "--checkpoint", "b"], "give either --samples"),
        (["--samples", "none.jsonl"], "cannot be read"),
        (["--samples", "a", "--raw"], "--raw chooses weights of --checkpoint, and there is none"),
        (["--samples", "a", "--eos", "first"], "invalid choice: 'first'"),
        (["--samples", "a", "--batch-size", "0"], "--batch-size is 0: it must be 1 or more"),
        (["--samples", "a", "--batch-size", "x"], "invalid int value: 'x'"),
        (["--samples", "a", "--output", "/"], "--output / is a folder; name a file"),
        (["--sample", "a"], "unrecognized arguments"),
    ],
)
def test_bad_usage_is_one_sentence(argv: list[str], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence) as caught:
        evaluate.run(argv)
    assert "\n" not in str(caught.value)


def test_a_reference_without_a_known_tokenizer_says_which_option_to_give(
    tmp_path: Path, judge_folder: Path, tokenizer: Any
) -> None:
    file = samples_file(tmp_path / "s.jsonl", ["hello"], tokenizer, checkpoint="./gone")
    with pytest.raises(UserError, match="give --tokenizer FOLDER"):
        evaluated(
            tmp_path, "--samples", file, "--evaluator", str(judge_folder),
            "--reference", "python_docs",
        )  # fmt: skip
