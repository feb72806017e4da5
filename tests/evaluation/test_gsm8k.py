"""GSM8K from the published layouts to the command's JSON, with a tiny model that writes fives."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch

from idlm.cli import evaluate
from idlm.data.problems import Problem, read_problems
from idlm.errors import UserError
from idlm.evaluation import gsm8k
from idlm.evaluation.gsm8k import Protocol, answer_problems, completion_text, encode_prompts
from idlm.metrics import ExactMatch
from idlm.metrics.exact_match import Verdict
from idlm.models import DiffusionConfig, DiffusionLM, export_folder, load_tokenizer
from tests.tiny_models import SENTENCES

LENGTH = 48
QUESTIONS = ["How many eggs are 2 and 3?", "A cow has 4 legs. And 9?"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose every token is a 5."""
    from transformers import AutoTokenizer

    from idlm.data import train_bpe

    root = tmp_path_factory.mktemp("models")
    tokenizer = AutoTokenizer.from_pretrained(train_bpe(SENTENCES, 300, root / "tokenizer"))
    torch.manual_seed(0)
    sizes = {"model_length": LENGTH, "hidden_dim": 8, "cond_dim": 4, "n_blocks": 1, "n_heads": 2}
    model = DiffusionLM(DiffusionConfig(vocab_size=len(tokenizer) + 1, dropout=0.0, **sizes))
    (five,) = tokenizer.encode("5")
    with torch.no_grad():
        model.backbone.output_layer.linear.bias[five] = 50.0
    return export_folder(model, root / "fives", tokenizer=tokenizer)


def prompt_size(folder: Path, question: str) -> int:
    return 1 + len(load_tokenizer(folder).encode(question + "\n"))


def write(path: Path, records: list[dict[str, str]]) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def gold(folder: Path, question: str, *, short: int = 0) -> dict[str, str]:
    """The problem whose answer is as many fives as there is room for."""
    size = LENGTH - prompt_size(folder, question) - short
    return {"question": question, "answer": f"It is <<5=5>>five.\n#### {int('5' * size):,}"}


def test_the_published_jsonl_is_read(tmp_path: Path) -> None:
    records = [
        {"question": "How?", "answer": "16 - 3 = <<16-3=13>>13\n#### 13"},
        {"question": "Why?", "answer": "#### 1,080"},
    ]
    file = write(tmp_path / "test.jsonl", records)
    assert read_problems(file) == [
        Problem(0, "How?", Fraction(13)),
        Problem(1, "Why?", Fraction(1080)),
    ]
    assert [problem.index for problem in read_problems(file, limit=1)] == [0]


def test_a_folder_of_the_hubs_parquet_files_is_read(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    for split, number in (("train", 1), ("test", 2)):
        table = pyarrow.table({"question": ["How?"], "answer": [f"so\n#### {number}"]})
        (tmp_path / "main").mkdir(exist_ok=True)
        pyarrow.parquet.write_table(table, tmp_path / "main" / f"{split}-00000-of-00001.parquet")
    assert read_problems(str(tmp_path)) == [Problem(0, "How?", Fraction(2))]
    assert read_problems(str(tmp_path), split="train")[0].answer == 1


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("{}", "line 1 is not of the layout"),
        ("[]", "line 1 is not of the layout"),
        ('{"question": "q", "answer": 3}', "line 1 is not of the layout"),
        ('{"question": "q", "answer": "3"}', "line 1: its answer has no number behind ####"),
        ("{", "line 1 is not JSON"),
        ("", "holds no problem"),
    ],
)
def test_what_is_no_problem_is_refused(tmp_path: Path, line: str, sentence: str) -> None:
    (tmp_path / "p.jsonl").write_text(line + "\n")
    with pytest.raises(UserError, match=sentence):
        read_problems(str(tmp_path / "p.jsonl"))


def test_a_missing_file_is_not_looked_for_on_the_hub() -> None:
    with pytest.raises(UserError, match=r"there is no file 'gone.jsonl'; give the test.jsonl"):
        read_problems("gone.jsonl")


def test_the_prompt_is_clamped_and_the_completion_judged(folder: Path) -> None:
    import idlm

    model, tokenizer = idlm.load(folder), load_tokenizer(folder)
    rooms = [LENGTH - prompt_size(folder, question) for question in QUESTIONS]
    problems = [
        Problem(i, question, Fraction(int("5" * room)))
        for i, (question, room) in enumerate(zip(QUESTIONS, rooms, strict=True))
    ]
    found = answer_problems(model, tokenizer, problems, Protocol(steps=4), ExactMatch("last"))
    assert [row["completion"] for row in found["answers"]] == ["5" * room for room in rooms]
    assert (found["exact_match"], found["nfe"]) == (1.0, 4)
    prompts = encode_prompts(problems, tokenizer, Protocol(), LENGTH)
    for question, prompt in zip(QUESTIONS, prompts, strict=True):
        assert prompt is not None
        assert prompt[0] == tokenizer.bos_token_id
        assert tokenizer.decode(prompt[1:]) == question + "\n"


def test_a_problem_that_fills_the_row_counts_as_not_answered(folder: Path) -> None:
    import idlm

    model, tokenizer = idlm.load(folder), load_tokenizer(folder)
    room = LENGTH - prompt_size(folder, QUESTIONS[0])
    problems = [
        Problem(0, "why " * 100, Fraction(5)),
        Problem(1, QUESTIONS[0], Fraction(int("5" * room))),
    ]
    found = answer_problems(model, tokenizer, problems, Protocol(steps=2), ExactMatch("last"))
    assert (found["problems"], found["correct"], found["too_long"]) == (2, 1, 1)
    assert found["answers"][0]["completion"] is None
    assert found["answers"][0]["detail"] == "the prompt fills the row"
    with pytest.raises(UserError, match=f"no question fits into length {LENGTH}"):
        answer_problems(model, tokenizer, problems[:1], Protocol(steps=2), ExactMatch("last"))


def test_a_completion_ends_at_its_first_eos(folder: Path) -> None:
    tokenizer = load_tokenizer(folder)
    (five,) = tokenizer.encode("5")
    row = [five, five, tokenizer.eos_token_id, five]
    assert completion_text(row, tokenizer) == "55"
    assert completion_text([five, len(tokenizer)], tokenizer) == "5[MASK]"


def test_the_command_reports_share_error_reasons_and_conditions(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    records = [gold(folder, QUESTIONS[0]), gold(folder, QUESTIONS[1], short=1)]
    file, output = write(tmp_path / "test.jsonl", records), tmp_path / "out.json"
    argv = ["--gsm8k", file, "--checkpoint", str(folder), "--steps", "2", "4", "--answer", "last"]
    evaluate.run([*argv, "--device", "cpu", "--output", str(output)])
    results = json.loads(output.read_text())["results"]
    assert [row["steps"] for row in results] == [2, 4]
    for row in results:
        assert (row["exact_match"], row["correct"], row["wrong"]) == (0.5, 1, 1)
        assert row["exact_match_stderr"] == pytest.approx(0.5)
        assert row["sampling_dtype"] == "float64"
        assert [answer["verdict"] for answer in row["answers"]] == ["correct", "wrong"]
        for name in ("revision", "template", "temperature", "seed", "nfe", "answer_rule"):
            assert row[name] is not None
    captured = capsys.readouterr()
    assert "50.00% ± 50.00%" in captured.out
    assert "2 problems: the standard error of a share is up to 35.4%" in captured.err


def test_a_run_that_fails_leaves_what_was_answered_in_the_file(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gsm8k, "PART", 1)
    original, calls = gsm8k.generate, []

    def generate(model: Any, **options: Any) -> Any:
        calls.append(options["first_index"])
        if len(calls) == 4:
            raise RuntimeError("out of memory")
        return original(model, **options)

    monkeypatch.setattr(gsm8k, "generate", generate)
    records = [gold(folder, QUESTIONS[0]), gold(folder, QUESTIONS[1])]
    file, output = write(tmp_path / "test.jsonl", records), tmp_path / "out.json"
    argv = ["--gsm8k", file, "--checkpoint", str(folder), "--steps", "2", "4", "--answer", "last"]
    with pytest.raises(RuntimeError, match="out of memory"):
        evaluate.run([*argv, "--device", "cpu", "--output", str(output)])
    left = json.loads(output.read_text())
    assert calls == [0, 1, 0, 1]
    assert [(row["steps"], row["correct"]) for row in left["results"]] == [(2, 2)]
    assert left["unfinished"]["steps"] == 4
    assert [answer["verdict"] for answer in left["unfinished"]["answers"]] == ["correct"]


def test_parts_change_no_answer_and_the_finished_file_has_nothing_unfinished(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import idlm

    model, tokenizer = idlm.load(folder), load_tokenizer(folder)
    with torch.no_grad():
        model.backbone.output_layer.linear.bias.zero_()  # so that completions are random
    problems = [Problem(i, QUESTIONS[i % 2], Fraction(5)) for i in range(3)]
    problems.insert(1, Problem(3, "why " * 100, Fraction(5)))
    asked = (model, tokenizer, problems, Protocol(steps=2), ExactMatch("last"))
    whole = answer_problems(*asked)
    monkeypatch.setattr(gsm8k, "PART", 1)
    parts = answer_problems(*asked)
    assert {k: v for k, v in parts.items() if k != "seconds"} == {
        k: v for k, v in whole.items() if k != "seconds"
    }
    assert len({row["completion"] for row in whole["answers"]}) == 4
    output = tmp_path / "out.json"
    file = write(tmp_path / "test.jsonl", [gold(folder, question) for question in QUESTIONS])
    argv = ["--gsm8k", file, "--checkpoint", str(folder), "--steps", "2", "--answer", "last"]
    evaluate.run([*argv, "--device", "cpu", "--output", str(output)])
    assert "unfinished" not in json.loads(output.read_text())


def test_a_detail_that_utf8_has_no_bytes_for_is_written_escaped(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    odd = Verdict("error", None, "program", "ValueError: \ud800")
    monkeypatch.setattr(ExactMatch, "judge", lambda *given: odd)
    file, output = write(tmp_path / "test.jsonl", [gold(folder, QUESTIONS[0])]), tmp_path / "o.json"
    argv = ["--gsm8k", file, "--checkpoint", str(folder), "--steps", "2", "--answer", "last"]
    evaluate.run([*argv, "--device", "cpu", "--output", str(output)])
    (row,) = json.loads(output.read_text())["results"]
    assert row["answers"][0]["detail"] == r"ValueError: \ud800"


def test_programs_that_fail_are_counted_by_reason(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write(tmp_path / "test.jsonl", [gold(folder, QUESTIONS[0])])
    output = tmp_path / "out.json"
    argv = ["--gsm8k", file, "--checkpoint", str(folder), "--steps", "2", "--weak-sandbox"]
    evaluate.run([*argv, "--device", "cpu", "--output", str(output)])
    (row,) = json.loads(output.read_text())["results"]
    # a number on a line is Python, but it is nobody's value
    assert row["failed_by_reason"] == {"no_answer": 1}
    assert row["exact_match_stderr"] is None
    assert "no_answer 1" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["--gsm8k", "f"], "the following arguments are required: --checkpoint"),
        (["--gsm8k", "f", "--checkpoint", "x", "--problems", "0"], "--problems is 0: it must be 1"),
        (["--gsm8k", "f", "--checkpoint", "x", "--answer", "a"], "invalid choice: 'a'"),
        (["--gsm8k", "f", "--checkpoint", "x", "--template", "?"], "it needs {question}"),
        (["--gsm8k", "f", "--checkpoint", "x", "--program-seconds", "0"], "time limit is 0.0"),
        (["--gsm8k=gone.jsonl", "--checkpoint", "x"], "there is no file 'gone.jsonl'"),
    ],
)
def test_bad_usage_is_one_sentence(argv: list[str], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence) as caught:
        evaluate.run([*argv, *(["--weak-sandbox"] if "--checkpoint" in argv else [])])
    assert "\n" not in str(caught.value)


def test_a_tokenizer_without_bos_needs_to_be_told(folder: Path) -> None:
    tokenizer = load_tokenizer(folder)
    tokenizer.bos_token = None
    problem = Problem(0, QUESTIONS[0], Fraction(5))
    with pytest.raises(UserError, match="no bos token to begin a prompt with; give --no-bos"):
        encode_prompts([problem], tokenizer, Protocol(), LENGTH)
    (prompt,) = encode_prompts([problem], tokenizer, Protocol(bos=False), LENGTH)
    assert prompt is not None
    assert tokenizer.decode(prompt) == QUESTIONS[0] + "\n"
