"""``idlm evaluate --likelihood``: several corpora with their conditions, in table and JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import idlm
from idlm.cli import evaluate
from idlm.data import tokenize_and_pack
from idlm.data.packing import PackingReport
from idlm.errors import UserError
from idlm.metrics import NelboPerplexity
from idlm.models import load_tokenizer
from tests.tiny_models import LENGTH, SENTENCES, Folders


def measured(tmp_path: Path, *argv: str) -> list[dict[str, Any]]:
    output = tmp_path / "out.json"
    evaluate.run(["--likelihood", *argv, "--device", "cpu", "--output", str(output)])
    found: list[dict[str, Any]] = json.loads(output.read_text())["results"]
    return found


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A text of one document, and a file of many short ones."""
    folder = tmp_path_factory.mktemp("texts")
    (folder / "one.txt").write_text(" ".join(SENTENCES))
    lines = [json.dumps({"body": text}) for text in SENTENCES]
    (folder / "many.jsonl").write_text("\n".join(lines))
    return str(folder / "one.txt"), str(folder / "many.jsonl")


def test_each_corpus_has_its_value_error_counts_and_conditions(
    folders: Folders, texts: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, _ = texts
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(f"source: local\npath: {one}\nvalidation_fraction: 0.5\nspecial_ends: true\n")
    argv = ["--checkpoint", str(folders.teacher), "--corpus", one, str(recipe), "--rows", "6"]
    results = measured(tmp_path, *argv, "--draws", "3")
    assert [row["corpus"] for row in results] == [one, str(recipe)]
    assert [row["split"] for row in results] == ["the whole text", "validation"]
    tokenizer, report = load_tokenizer(folders.teacher), PackingReport()
    rows = tokenize_and_pack([" ".join(SENTENCES)], tokenizer, LENGTH, report=report)
    first, second = results
    assert second["special_ends"] is True
    assert second["rows_available"] < first["rows_available"]
    assert (first["rows"], first["rows_available"]) == (6, len(rows))
    assert (first["tokens"], first["dropped_tokens"]) == (6 * LENGTH, report.dropped_tokens)
    assert (first["documents"], first["special_ends"]) == (1, False)
    # the same rows in the metric itself: evenly spread, one stratum each
    metric = NelboPerplexity(idlm.load(folders.teacher, device="cpu"), draws=3, strata=6)
    chosen = torch.tensor([rows[i * len(rows) // 6].tolist() for i in range(6)])
    metric.update(chosen)
    assert first["nats_per_token"] == pytest.approx(metric.details()["nats_per_token"])
    for name in ("nats_per_token_stderr", "perplexity", "tokenizer_sha256", "wrapping", "content"):
        assert first[name], name
    printed = " ".join(capsys.readouterr().out.split())
    for expected in ("±", "upper bound", "Monte-Carlo", "detokenised: none", "6 of"):
        assert expected in printed


def test_json_lines_are_documents_of_the_field_that_is_named(
    folders: Folders, texts: tuple[str, str], tmp_path: Path
) -> None:
    argv = ["--checkpoint", str(folders.teacher), "--corpus", texts[1], "--text-field", "body"]
    (row,) = measured(tmp_path, *argv, "--draws", "2", "--length", "16", "--special-ends")
    assert row["documents"] == len(SENTENCES)
    assert row["length"] == 16
    assert row["wrapping"].endswith("bos and eos at the ends of each")
    assert row["tokens"] == row["rows"] * 16


def test_the_interval_chosen_is_stated_and_both_agree_but_for_the_ends(
    folders: Folders, texts: tuple[str, str], tmp_path: Path
) -> None:
    argv = ["--checkpoint", str(folders.teacher), "--corpus", texts[0], "--draws", "32"]
    (published,) = measured(tmp_path, *argv, "--rows", "8")
    (whole,) = measured(tmp_path, *argv, "--rows", "8", "--interval", "whole")
    assert "leaves out its two ends" in published["statement"]
    assert "unbiased estimate of an upper bound" in whole["statement"]
    error = published["nats_per_token_stderr"] + whole["nats_per_token_stderr"]
    # the ends are below a hundredth of the value: the two differ by noise and by them
    assert abs(whole["nats_per_token"] - published["nats_per_token"]) < (
        5 * error + 0.01 * published["nats_per_token"]
    )


def test_of_a_generator_the_table_says_what_the_value_is_worth(
    folders: Folders, texts: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = [
        "--checkpoint",
        str(folders.student),
        "--corpus",
        texts[0],
        "--rows",
        "2",
        "--draws",
        "2",
    ]
    (row,) = measured(tmp_path, *argv)
    assert row["generator"] is True
    assert "says little about its samples" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        ([], "the following arguments are required: --checkpoint"),
        (["--checkpoint", "x", "--draws", "1"], "draws is 1; a standard error needs 2"),
        (["--checkpoint", "x", "--rows", "0"], "--rows is 0: it must be 1 or more"),
        (["--checkpoint", "x", "--strata", "0"], "strata is 0; it must be 1 or more"),
        (["--checkpoint", "x", "--interval", "all"], "invalid choice: 'all'"),
        (["--checkpoint", "x", "--output", "/"], "--output / is a folder; name a file"),
    ],
)
def test_bad_usage_is_one_sentence(argv: list[str], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence) as caught:
        evaluate.run(["--likelihood", *argv])
    assert "\n" not in str(caught.value)


def test_a_corpus_that_is_not_there_is_told_before_anything_is_scored(
    folders: Folders, texts: tuple[str, str]
) -> None:
    argv = ["--likelihood", "--checkpoint", str(folders.teacher), "--device", "cpu"]
    with pytest.raises(UserError, match=r"--corpus ./gone.txt: there is no file"):
        evaluate.run([*argv, "--corpus", texts[0], "./gone.txt"])
    with pytest.raises(UserError, match=f"--length is 64 and the context of .* is {LENGTH}"):
        evaluate.run([*argv, "--corpus", texts[0], "--length", "64"])
    short = Path(texts[0]).with_name("short.txt")
    short.write_text("a word")
    with pytest.raises(UserError, match="is empty: its 1 documents hold"):
        evaluate.run([*argv, "--corpus", str(short)])
