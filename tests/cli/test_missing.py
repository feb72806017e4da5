"""Modules that a configuration names: the user's own, and those that are not installed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from lightning.fabric.loggers import tensorboard
from lightning.pytorch.loggers import wandb

from idlm.cli import export, generate, main
from idlm.cli.missing import LOGGERS, beside_the_user, missing
from idlm.paths import repo_dir
from tests.tiny_models import LENGTH, make_models
from tests.training.helpers import write_corpus

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

CONFIG = repo_dir() / "configs" / "tiny.yaml"
METHOD = """
from idlm.objectives import DMMD


class MyDMMD(DMMD):
    def __init__(self, target_steps: int = 4) -> None:
        super().__init__(target_steps=target_steps)
"""


@pytest.mark.parametrize("logger", ["WandbLogger", "TensorBoardLogger"])
def test_a_logger_that_is_not_installed_is_one_sentence_that_says_how(
    logger: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # whether they are here or not, Lightning is to find that they are missing
    found = type(wandb._WANDB_AVAILABLE)
    monkeypatch.setattr(wandb, "_WANDB_AVAILABLE", found("wandb>=99999"))
    for name in ("_TENSORBOARD_AVAILABLE", "_TENSORBOARDX_AVAILABLE"):
        monkeypatch.setattr(tensorboard, name, False)
    with pytest.raises(SystemExit) as stop:
        main.main(["fit", "--config", str(CONFIG), "--trainer.logger", logger])
    assert stop.value.code == 2
    err = capsys.readouterr().err.splitlines()[-1]
    assert err.startswith("idlm: error: the configuration names a class that needs the package")
    package = logger.removesuffix("Logger").lower()
    assert f"{package!r}, which is not installed: pip install 'idlm[loggers]'" in err


def test_the_packages_of_the_extra_are_those_of_the_project() -> None:
    project = tomllib.loads((repo_dir() / "pyproject.toml").read_text())["project"]
    named = [text.partition(">")[0] for text in project["optional-dependencies"]["loggers"]]
    assert sorted(named) == sorted(LOGGERS)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ModuleNotFoundError("No module named 'a.b'", name="a.b"), "needs the module 'a', which"),
        (ModuleNotFoundError("Requirement 'mlflow>=1.0.0' not met."), "needs the module 'mlflow'"),
        (ModuleNotFoundError("something is\nnot there"), "is missing: something is not there"),
    ],
)
def test_any_module_that_is_not_there_is_named(error: Exception, words: str) -> None:
    wrapped = ValueError("does not validate")
    wrapped.__cause__ = error
    assert words in str(missing(wrapped))
    assert missing(ValueError("x")) is None


def test_the_folder_of_the_user_comes_last_and_goes_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    with beside_the_user():
        assert sys.path == [*before, str(tmp_path)]
    assert sys.path == before


def test_a_python_that_is_told_to_stay_out_of_the_folder_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    python = SimpleNamespace(flags=SimpleNamespace(safe_path=True), path=["/lib"])
    monkeypatch.setattr("idlm.cli.missing.sys", python)
    with beside_the_user():
        assert python.path == ["/lib"]


@pytest.mark.slow
def test_a_method_beside_the_user_is_trained_and_its_checkpoint_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = make_models(tmp_path / "models")
    (tmp_path / "mymethod.py").write_text(METHOD)
    # what pip installs: a script elsewhere, so that Python adds another folder to its path
    script = tmp_path / "bin" / "idlm"
    script.parent.mkdir()
    script.write_text("from idlm.cli.main import main\n\nif __name__ == '__main__':\n    main()\n")
    command = [
        *(sys.executable, str(script)),
        *("fit", "--config", str(CONFIG), "--model.init_args.objective", "mymethod.MyDMMD"),
        *("--model.init_args.objective.init_args.target_steps", "2"),
        *("--model.init_args.teacher", str(models.teacher)),
        *("--model.init_args.max_student_updates", "1"),
        *("--data.init_args.corpus", str(write_corpus(tmp_path / "corpus.txt"))),
        *("--data.init_args.length", str(LENGTH), "--trainer.limit_val_batches", "0"),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(repo_dir())}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    (tmp_path / "models" / "teacher" / "tokenizer.json").rename(tmp_path / "moved.json")
    monkeypatch.chdir(tmp_path)
    export.run(["--checkpoint", "runs/tiny/checkpoints/last.ckpt", "--output", "out"])
    card = Path("out/README.md").read_text()
    assert "Distilled with MyDMMD (" in card
    assert "target_steps=2" in card
    assert "| student_updates | 1 |" in card
    assert f"| length | {LENGTH} |" in card
    given = ["--num-samples", "1", "--length", "8", "--steps", "2", "--output", "samples.jsonl"]
    generate.run(["--checkpoint", "out", "--prompt", "return the", *given])
    _, row = Path("samples.jsonl").read_text().splitlines()
    assert json.loads(row)["text"].startswith("return the")
