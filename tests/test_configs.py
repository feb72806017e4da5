"""Every file in configs/ is run; the ones for OpenWebText also without a network."""

from __future__ import annotations

import csv
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import idlm
from idlm import objectives
from idlm.cli.main import main
from idlm.models import DiffusionConfig, DiffusionLM, export_folder, load_tokenizer
from idlm.paths import repo_dir
from tests.tiny_models import LENGTH, Folders, make_models
from tests.training.helpers import write_corpus

FILES = sorted((repo_dir() / "configs").glob("*.yaml"))
OWT = repo_dir() / "configs" / "owt_16step.yaml"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    return make_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("text") / "corpus.txt")


def uniform_teacher(models: Folders) -> Path:
    """A teacher of the uniform process with the same tokenizer, beside the others."""
    folder = models.teacher.parent / "uniform"
    if not folder.exists():
        torch.manual_seed(0)
        sizes = {"hidden_dim": 16, "cond_dim": 8, "n_blocks": 1, "n_heads": 2, "dropout": 0.0}
        tokenizer = load_tokenizer(models.teacher)
        model = DiffusionLM(
            DiffusionConfig(
                vocab_size=len(tokenizer),
                model_length=LENGTH,
                process="uniform",
                time_conditioning=True,
                **sizes,
            )
        )
        export_folder(model, folder, tokenizer=tokenizer)
    return folder


def small(config: dict[str, Any], models: Folders) -> dict[str, Any]:
    """Constructor arguments that make one update of the config's module cheap and offline."""
    asked = config["model"]["init_args"]
    match config["model"]["class_path"]:
        case "idlm.training.DistillationModule":
            given = asked["objective"]
            name = given if isinstance(given, str) else given["class_path"]
            objective = getattr(objectives, name.removeprefix("idlm.objectives."))
            fake = objective.trains == "alternating"
            masked = "absorbing" in objective.processes
            return {
                "teacher": models.teacher if masked else uniform_teacher(models),
                "max_student_updates": 1,
                "latent_global": min(4, asked.get("latent_global", 4)),
                **({"fake_per_student": 1} if fake else {}),
            }
        case "idlm.training.TeacherModule":
            sizes = {"hidden_dim": 16, "cond_dim": 8, "n_blocks": 1, "n_heads": 2}
            start = {"init": models.teacher} if asked.get("init") else sizes
            return {"tokenizer": models.teacher, "max_updates": 1, "model_length": LENGTH, **start}
        case "idlm.training.EvaluatorModule":
            return {
                "tokenizer": models.teacher,
                "max_updates": 1,
                "n_layer": 1,
                "n_head": 2,
                "n_embd": 16,
                "n_positions": LENGTH,
            }
        case other:
            raise AssertionError(f"teach this test how to make {other} small")


def overrides(file: Path, models: Folders, corpus: Path) -> list[str]:
    config = yaml.safe_load(file.read_text())
    model = {**small(config, models), "micro_batch_size": 2}
    data = {"corpus": corpus, "length": LENGTH, "global_batch_size": 4, "eval_batch_size": 4}
    if config["model"]["init_args"].get("student"):
        model["student"] = models.teacher
    if config["data"]["init_args"].get("tokenizer"):
        data["tokenizer"] = models.teacher
    if config["data"]["init_args"].get("max_eval_rows") != 0:
        data["max_eval_rows"] = 4
    return [
        f"--config={file}",
        *(f"--model.init_args.{k}={v}" for k, v in model.items()),
        *(f"--data.init_args.{k}={v}" for k, v in data.items()),
        "--trainer.accelerator=cpu",
        "--trainer.devices=1",
        "--trainer.strategy=auto",
    ]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_config_takes_one_step_on_a_tiny_model(
    file: Path, models: Folders, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    main(["fit", *overrides(file, models, corpus)])
    config = yaml.safe_load(file.read_text())
    folder = tmp_path / config["trainer"]["default_root_dir"]
    # what was really run lies beside the logs
    [resolved] = folder.rglob("config.yaml")
    assert yaml.safe_load(resolved.read_text())["data"]["init_args"]["global_batch_size"] == 4
    if "Evaluator" not in config["model"]["class_path"]:
        exported = tmp_path / (config["model"]["init_args"].get("export_dir") or folder / "export")
        # 300 tokens, and the mask where there is one
        made = idlm.load(exported)
        assert made.config.vocab_size == 300 + (made.process.name == "absorbing")


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_config_prints_itself_complete(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["fit", f"--config={file}", "--print_config"])
    assert stop.value.code == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    written = yaml.safe_load(file.read_text())
    assert printed["model"]["class_path"] == written["model"]["class_path"]
    for part in ("model", "data"):
        given = {k: v for k, v in written[part]["init_args"].items() if k != "objective"}
        assert given.items() <= printed[part]["init_args"].items()
    assert printed["trainer"]["max_epochs"] == -1


def test_every_config_is_described_in_the_readme() -> None:
    text = (repo_dir() / "configs" / "README.md").read_text()
    assert [file.name for file in FILES if f"`{file.name}`" not in text] == []


def test_owt_16step_is_the_papers_recipe() -> None:
    config = yaml.safe_load(OWT.read_text())
    model, data = config["model"]["init_args"], config["data"]["init_args"]
    assert model["teacher"] == "kuleshov-group/mdlm-owt"
    assert model["objective"]["class_path"] == "idlm.objectives.IDLM"
    assert (model["lr"], model["fake_lr"], model["betas"]) == (1e-6, 1e-6, [0.9, 0.999])
    assert (model["weight_decay"], model["warmup"], model["decay"]) == (0, 2500, "constant")
    assert (model["ema_decay"], model["micro_batch_size"]) == (0.9999, 8)
    assert (data["corpus"], data["length"]) == ("openwebtext", 1024)
    assert data["global_batch_size"] == 512
    assert config["trainer"]["strategy"].startswith("ddp")
    assert config["trainer"]["precision"] == "bf16-mixed"


@pytest.mark.parametrize("name", ["owt_16step", "owt_16step_dmmd", "owt_teacher"])
def test_without_a_network_one_sentence_says_what_is_missing_and_what_to_type(
    name: str, capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main(["fit", f"--config={repo_dir() / 'configs' / name}.yaml"])
    assert stop.value.code == 2
    key, value = (
        ("tokenizer", "gpt2") if name == "owt_teacher" else ("teacher", "kuleshov-group/mdlm-owt")
    )
    [line] = capfd.readouterr().err.splitlines()
    assert f"could not reach checkpoint {value!r}" in line
    assert f"--model.init_args.{key} FOLDER" in line
    assert "--data.init_args.corpus FILE_OR_FOLDER" in line
    assert list(tmp_path.iterdir()) == []


def test_an_unreachable_hub_ends_the_installed_command_with_exit_code_2(tmp_path: Path) -> None:
    # nothing listens on port 9: a network that refuses, not the offline switch of the libraries
    environment = {k: v for k, v in os.environ.items() if k != "HF_HUB_OFFLINE"}
    environment |= {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path / "empty")}
    result = subprocess.run(
        [sys.executable, "-m", "idlm.cli.main", "fit", f"--config={OWT}"],
        capture_output=True,
        text=True,
        env=environment,
        cwd=repo_dir(),
        check=False,
        timeout=300,
    )
    assert result.returncode == 2, result.stderr
    [line] = result.stderr.splitlines()
    assert line.startswith("idlm: error: could not reach checkpoint 'kuleshov-group/mdlm-owt'")
    assert result.stdout == ""


def test_a_corpus_out_of_reach_ends_with_one_sentence_too(
    models: Folders,
    capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main(
            [
                "fit",
                f"--config={OWT}",
                f"--model.init_args.teacher={models.teacher}",
                "--trainer.accelerator=cpu",
                "--trainer.strategy=auto",
                f"--data.init_args.length={LENGTH}",
            ]
        )
    assert stop.value.code == 2
    [line] = capfd.readouterr().err.splitlines()
    assert "Skylion007/openwebtext" in line
    assert "--data.init_args.corpus" in line


def test_owt_16step_runs_for_real_with_teacher_and_corpus_of_ones_own(
    models: Folders,
    corpus: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    main(
        [
            "fit",
            f"--config={OWT}",
            f"--model.init_args.teacher={models.teacher}",
            f"--data.init_args.corpus={corpus}",
            "--trainer.accelerator=cpu",
            "--trainer.strategy=auto",
            f"--data.init_args.length={LENGTH}",
            "--data.init_args.global_batch_size=8",
            "--data.init_args.max_eval_rows=8",
            "--model.init_args.max_student_updates=2",
            "--trainer.enable_progress_bar=false",
        ]
    )
    assert capfd.readouterr().err == ""
    student = idlm.load("runs/owt_16step/export")
    assert student.has_latent
    kept = sorted(path.name for path in Path("runs/owt_16step/checkpoints").iterdir())
    assert kept == ["best-step=4.ckpt", "last.ckpt"]
    last = torch.load("runs/owt_16step/checkpoints/last.ckpt", weights_only=True)
    assert (last["student_updates"], last["fake_updates"]) == (2, 2)


@pytest.mark.parametrize(
    ("argument", "sentence"),
    [
        ("--model.init_args.micro_batch_size=0", "micro_batch_size is 0; it must be at least 1"),
        ("--model.init_args.lr=fast", "lr"),
        ("--model.init_args.learning_rate=1", "'learning_rate' is not accepted"),
        ("--trainer.gradient_clip_val=1.0", "gradient clipping is not supported"),
        ("--trainer.accelerator=abacus", "the trainer cannot be built: .*abacus"),
        ("--ckpt_path=nowhere.ckpt", "ckpt_path is 'nowhere.ckpt', where there is no file"),
        ("--data.init_args.global_batch_size=0", "global_batch_size=0 is not a positive number"),
        ("--model.init_args.objective.init_args.target_steps=0", "target_steps is 0"),
        ("--config=nowhere.yaml", "nowhere.yaml"),
        ("--model.init_args.decay=quadratic", "quadratic"),
    ],
)
def test_a_wrong_setting_is_one_line_and_exit_2(
    argument: str,
    sentence: str,
    models: Folders,
    corpus: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    tiny = repo_dir() / "configs" / "tiny.yaml"
    with pytest.raises(SystemExit) as stop:
        main(["fit", *overrides(tiny, models, corpus), argument])
    assert stop.value.code == 2
    [line] = capfd.readouterr().err.splitlines()
    assert line.startswith("idlm: error: ")
    assert re.search(sentence, line)


def test_a_training_that_diverges_is_one_line_and_exit_2(
    models: Folders,
    corpus: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    tiny = repo_dir() / "configs" / "tiny.yaml"
    with pytest.raises(SystemExit) as stop:
        main(
            [
                "fit",
                *overrides(tiny, models, corpus),
                "--trainer.enable_progress_bar=false",
                "--model.init_args.warmup=0",
                "--model.init_args.fake_lr=1e30",
            ]
        )
    assert stop.value.code == 2
    [line] = capfd.readouterr().err.splitlines()
    assert "student update" in line
    assert "no weight was changed" in line


@pytest.mark.parametrize("command", ["validate", "test"])
def test_a_checkpoint_is_measured_as_its_run_measured_it(
    command: str,
    models: Folders,
    corpus: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = overrides(repo_dir() / "configs" / "tiny.yaml", models, corpus)
    main(["fit", *arguments, "--trainer.enable_progress_bar=false"])
    [file] = tmp_path.rglob("metrics.csv")
    with file.open(newline="") as lines:
        measured = [row["val/student_loss"] for row in csv.DictReader(lines)][-1]
    before = capfd.readouterr()
    assert before.err == ""
    main([command, *arguments, "--ckpt_path=runs/tiny/checkpoints/last.ckpt"])
    # a table of what was measured
    assert measured[:8] in capfd.readouterr().out
