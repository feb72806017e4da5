"""``idlm evaluate --protocol``: the table, refusals, and two real processes on one file."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from idlm.cli import evaluate, evaluate_protocol
from idlm.errors import UserError
from idlm.evaluation.protocol import read_protocol
from idlm.paths import repo_dir
from tests.tiny_models import LENGTH, Folders, make_models


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    return make_models(tmp_path_factory.mktemp("models"))


def plan(folders: Folders, **changes: Any) -> dict[str, Any]:
    return {
        "teacher": "teacher",
        "models": [
            {
                "label": "teacher",
                "checkpoint": str(folders.teacher),
                "steps": [4],
                "temperatures": [1.5, 1.0, 0.5],
            },
            {"label": "student", "checkpoint": str(folders.student), "steps": [4]},
        ],
        "seeds": [0, 1],
        "num_samples": 4,
        "length": LENGTH,
        "evaluator": str(folders.evaluator),
    } | changes


def command(tmp_path: Path, settings: dict[str, Any], *more: str) -> list[str]:
    path = tmp_path / "plan.yaml"
    path.write_text(yaml.safe_dump(settings))
    output = str(tmp_path / "out.json")
    return ["--protocol", str(path), "--output", output, "--device", "cpu", *more]


def test_the_command_measures_prints_the_gains_and_says_where_the_numbers_are(
    tmp_path: Path, folders: Folders, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = tmp_path / "kept"
    evaluate.run(command(tmp_path, plan(folders), "--save-samples", str(kept)))
    printed, said = capsys.readouterr()
    for expected in (
        "At equal steps (a lower GenPPL may be bought with entropy)",
        "At equal entropy: GenPPL over that of teacher's curve (95% interval)",
        "samples",
        f"written: {tmp_path / 'out.json'}",
    ):
        assert expected in printed
    found = json.loads((tmp_path / "out.json").read_text())
    assert len(found["cells"]) == len(list(kept.iterdir())) == 8
    (row,) = found["gains"]["equal_entropy"]
    assert row["verdict"] in printed
    assert row["interval"] == "samples"
    warnings = found["warnings"]
    assert [said.count(f"idlm: warning: {sentence}\n") for sentence in warnings] == [1] * 6
    for checkpoint, sentence in zip((folders.teacher, folders.student), warnings, strict=False):
        assert f"has the tokenizer of {checkpoint}: of one family" in sentence
    few = next(sentence for sentence in warnings if sentence.startswith("student, 4 steps, T=1 "))
    (mean,) = (r for r in found["summary"] if r["label"] == "student")
    assert "8 samples are fewer than 80" in few  # of both seeds
    assert f"GenPPL {mean['gen_ppl_mean']:.2f} ± " in few


def test_ways_of_sampling_and_judges_are_columns_where_they_differ(
    tmp_path: Path, folders: Folders, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = plan(folders, seeds=[0])
    evaluate.run(command(tmp_path, settings))
    assert "sampling dtype" not in capsys.readouterr().out
    for model in settings["models"]:
        model["sampling_dtypes"] = ["float64", "float32"]
    evaluate.run(command(tmp_path, settings))
    printed = capsys.readouterr().out
    assert "sampling dtype" in printed
    assert "│ float32" in printed


def test_the_equals_sign_is_understood_too(
    tmp_path: Path, folders: Folders, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = command(tmp_path, plan(folders, seeds=[0]), "--only", "student")
    evaluate.run([f"{argv[0]}={argv[1]}", *argv[2:]])
    assert "No gain at equal entropy can be told" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--workers", "0"], "--workers is 0: it must be 1 or more"),
        (["--batch-size", "0"], "--batch-size is 0"),
        (
            ["--steps", "4"],
            "unrecognized arguments: --steps 4; did you mean --threads",
        ),
        (["--only", "nobody"], "--only 'nobody' selects nothing"),
    ],
)
def test_bad_usage_is_one_sentence(
    tmp_path: Path, folders: Folders, more: list[str], sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence):
        evaluate.run(command(tmp_path, plan(folders), *more))


@pytest.mark.parametrize("name", ["owt.yaml", "owt_uniform.yaml"])
def test_the_protocols_of_published_models_are_valid_and_say_so_without_network(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = repo_dir() / "eval" / name
    protocol = read_protocol(path)
    assert protocol.evaluator == "gpt2-large"
    assert all("/" in plan.checkpoint for plan in protocol.models)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match="network") as refused:
        evaluate_protocol.run(["--protocol", str(path), "--output", str(tmp_path / "x.json")])
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "x.json").exists()


def test_two_processes_of_a_launch_share_the_cells_and_measure_none_twice(
    tmp_path: Path, folders: Folders
) -> None:
    argv = command(tmp_path, plan(folders, seeds=[0, 1, 2]))
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONPATH": str(repo_dir()),
    }
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    made = subprocess.run(
        [sys.executable, *launcher, "-m", "idlm.cli.main", "evaluate", *argv],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert made.returncode == 0, made.stderr
    found = json.loads((tmp_path / "out.json").read_text())
    cells = [(c["label"], c["temperature"], c["seed"]) for c in found["cells"]]
    assert len(cells) == len(set(cells)) == 12
    assert len(re.findall(r"\[\d+/12\]", made.stdout)) == 12  # by both together
    assert made.stdout.count("written: ") == 1
    assert all(row["seeds"] == [0, 1, 2] for row in found["summary"])
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []
