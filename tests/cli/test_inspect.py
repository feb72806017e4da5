"""`idlm inspect`: what a checkpoint is, and a warning when it predicts nothing."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest
import torch

import idlm
from idlm.cli import inspect, main
from idlm.errors import UserError
from idlm.models import DiffusionLM, export_folder, load_tokenizer
from tests.tiny_models import SENTENCES, Folders, make_models


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    return make_models(tmp_path_factory.mktemp("models"))


@pytest.fixture
def text(tmp_path: Path) -> str:
    path = tmp_path / "text.txt"
    path.write_text("\n".join(SENTENCES * 4))
    return str(path)


@pytest.fixture(scope="module")
def constant(folders: Folders, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network that has learned which tokens the text has, and nothing else."""
    model, tokenizer = idlm.load(folders.teacher), load_tokenizer(folders.teacher)
    counts = torch.full((model.config.vocab_size,), 0.01)
    for sentence in SENTENCES:
        counts += torch.bincount(
            torch.tensor(tokenizer(sentence).input_ids), minlength=model.config.vocab_size
        )
    linear = model.backbone.output_layer.linear
    torch.nn.init.zeros_(linear.weight)
    with torch.no_grad():
        linear.bias.copy_(counts.log())
    folder = tmp_path_factory.mktemp("constant") / "model"
    return export_folder(model, folder, tokenizer=tokenizer)


def facts(capsys: pytest.CaptureFixture[str], *argv: str) -> dict:
    capsys.readouterr()
    inspect.run([*argv, "--json", "--device", "cpu"])
    return json.loads(capsys.readouterr().out)


def test_json_has_every_fact(
    folders: Folders, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    found = facts(capsys, str(folders.student), "--text", text)
    config = idlm.load(folders.student).config
    for name in ("vocab_size", "model_length", "hidden_dim", "n_blocks", "process", "schedule"):
        assert found[name] == getattr(config, name), name
    assert (found["latent_global"], found["latent_position"]) == (4, 4)
    assert (found["layout"], found["method"]) == ("idlm", "not stated")
    assert found["mask_id"] == config.vocab_size - 1
    assert found["tokenizer"]["tokens"] == len(load_tokenizer(folders.student))
    assert set(found["dtype"]) == {"float32"}
    nelbo = found["nelbo"]
    assert (nelbo["text"], nelbo["rows"], nelbo["length"]) == (text, 4, 32)
    assert nelbo["log_states"] == pytest.approx(math.log(config.vocab_size - 1))
    assert math.isfinite(nelbo["nats_per_token"])


def test_the_table_says_it_in_words_without_a_terminal(
    constant: Path, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    inspect.run([str(constant), "--text", text, "--device", "cpu"])
    out, err = capsys.readouterr()
    told = dict(line.split("  ", 1) for line in out.splitlines())
    told = {name: value.strip() for name, value in told.items()}
    size = idlm.load(constant).config.vocab_size
    assert told["process"] == f"absorbing, mask id {size - 1}"
    assert told["schedule"] == "log-linear, eps 0.001"
    assert told["latent"] == "none"
    assert told["vocabulary"] == f"{size} states"
    assert "nats per token; uniform predictions get" in told["NELBO"]
    assert err == ""


def test_the_terminal_gets_a_table(
    constant: Path, text: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "60")
    inspect.run([str(constant), "--text", text, "--device", "cpu"])
    lines = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out).splitlines()
    assert any(line.startswith("NELBO") for line in lines)
    assert all(len(line) <= 60 for line in lines)


def test_a_network_no_better_than_uniform_is_warned_of(
    folders: Folders, constant: Path, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert facts(capsys, str(constant), "--text", text)["nelbo"]["better_than_uniform"]
    for folder, why in (
        (folders.teacher, "untrained or damaged"),
        (folders.student, "judge its samples"),
    ):
        inspect.run([str(folder), "--text", text, "--json", "--device", "cpu"])
        out, err = capsys.readouterr()
        assert not json.loads(out)["nelbo"]["better_than_uniform"]
        assert err.startswith("idlm: warning: the NELBO is ")
        assert "no better than chance" in err
        assert why in err


def test_a_broken_network_is_warned_of_and_stays_json(
    folders: Folders, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "broken"
    export_folder(idlm.load(folders.teacher), folder, tokenizer=load_tokenizer(folders.teacher))
    weights = load_file(folder / "model.safetensors")
    weights["backbone.output_layer.linear.bias"].fill_(math.nan)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    inspect.run([str(folder), "--text", text, "--json", "--device", "cpu"])
    out, err = capsys.readouterr()
    assert json.loads(out)["nelbo"]["nats_per_token"] is None
    assert "backbone.output_layer.linear.bias holds values that are not finite" in err
    (folder / "tokenizer.json").unlink()  # then there is no NELBO to show it
    (folder / "tokenizer_config.json").unlink()
    inspect.run([str(folder), "--device", "cpu"])
    assert "not finite, so the weights are damaged" in capsys.readouterr().err


def test_rows_length_and_seed_are_those_asked_for(
    constant: Path, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    base = (str(constant), "--text", text, "--rows", "2", "--length", "16")
    one, again, other = (facts(capsys, *base, "--seed", seed)["nelbo"] for seed in "001")
    assert (one["rows"], one["length"], one["seed"]) == (2, 16, 0)
    assert one == again
    assert one["nats_per_token"] != other["nats_per_token"]


def test_without_a_tokenizer_the_rest_is_still_told(
    make_bare: Path, folders: Folders, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    found = facts(capsys, str(make_bare))
    assert found["tokenizer"] is None
    assert found["nelbo"] is None
    assert "no tokenizer" in found["nelbo_missing"]
    assert found["parameters"] > 0
    with pytest.raises(UserError, match="no tokenizer"):  # asked for, it cannot be left out
        inspect.run([str(make_bare), "--text", text])
    given = facts(capsys, str(make_bare), "--tokenizer", str(folders.teacher), "--text", text)
    assert given["nelbo"] is not None


@pytest.fixture
def make_bare(folders: Folders, tmp_path: Path) -> Path:
    """The teacher without its tokenizer."""
    model: DiffusionLM = idlm.load(folders.teacher)
    return export_folder(model, tmp_path / "bare")


def test_the_default_text_is_held_out_and_needs_nothing(
    constant: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = facts(capsys, str(constant), "--rows", "1")
    assert found["nelbo"]["text"] == "python_docs, validation split"


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--rows", "0"], "--rows is 0; it must be 1 or more"),
        (["--length", "33"], "--length is 33 and the context is 32 tokens"),
        (["--text", "absent.txt"], "no file or folder 'absent.txt'"),
        (["--device", "tpu"], "device 'tpu'"),
        (["--raw"], "raw"),
        (["extra"], "unrecognized arguments: extra"),
    ],
)
def test_bad_usage_is_one_sentence(
    folders: Folders, capsys: pytest.CaptureFixture[str], options: list[str], named: str
) -> None:
    with pytest.raises(SystemExit) as stop:
        main.main(["inspect", str(folders.teacher), *options])
    assert stop.value.code == 2
    err = capsys.readouterr().err
    assert named in err
    assert err.count("\n") == 1


def test_a_checkpoint_that_does_not_load_is_one_sentence(
    folders: Folders, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = export_folder(idlm.load(folders.teacher), tmp_path / "cut")
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(SystemExit) as stop:
        main.main(["inspect", str(folder)])
    assert stop.value.code == 2
    assert "truncated or corrupt" in capsys.readouterr().err
