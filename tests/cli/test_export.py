"""`idlm export`: a checkpoint in, a Hub-ready folder out, or one sentence and nothing."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub import ModelCard
from transformers import AutoTokenizer

import idlm
from idlm.cli import export, main
from idlm.data.tokenizer import tokenizer_hash
from idlm.errors import UserError
from idlm.evaluation.cells import weights_revision
from idlm.models import load_tokenizer
from tests.models import published
from tests.tiny_models import LENGTH, Folders, make_models


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    return make_models(tmp_path_factory.mktemp("models"))


def exported(checkpoint: Path, folder: Path, *options: str) -> Path:
    export.run(["--checkpoint", str(checkpoint), "--output", str(folder), *options])
    return folder


def states(model: Any) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, model.config.vocab_size, (2, LENGTH), generator=generator)


def logits(model: Any) -> torch.Tensor:
    tokens = states(model)
    latent = model.sample_latent(torch.arange(2), LENGTH, seed=0, step=0)
    return model(tokens, torch.zeros(2), latent).logits


@pytest.mark.parametrize("which", ["teacher", "student"])
def test_an_exported_folder_is_complete_and_gives_the_same_logits(
    folders: Folders, tmp_path: Path, capsys: pytest.CaptureFixture[str], which: str
) -> None:
    source = getattr(folders, which)
    folder = exported(source, tmp_path / "deep" / "out")
    names = {path.name for path in folder.iterdir()}
    assert names >= {"model.safetensors", "config.json", "tokenizer.json", "README.md"}
    assert torch.equal(logits(idlm.load(folder)), logits(idlm.load(source)))
    own = AutoTokenizer.from_pretrained(folder)
    assert own.get_vocab() == load_tokenizer(source).get_vocab()
    card = ModelCard.load(folder / "README.md")
    assert card.data.library_name == "idlm"
    out = capsys.readouterr().out
    count = sum(p.numel() for p in idlm.load(source).parameters())
    assert out.startswith(f"{folder}: layout idlm, {count:,} parameters in float32, ")


def test_the_published_layout_is_read_by_the_published_network(
    folders: Folders, tmp_path: Path
) -> None:
    folder = exported(folders.teacher, tmp_path / "out", "--layout", "mdlm", "--dtype", "bfloat16")
    model = idlm.load(folder)
    theirs = published.logits(folder, states(model), torch.zeros(2))
    torch.testing.assert_close(theirs.float(), logits(model), rtol=0, atol=1e-5)
    assert json.loads((folder / "config.json").read_text())["torch_dtype"] == "bfloat16"
    assert "kuleshov-group/mdlm-owt" in (folder / "README.md").read_text()


def test_a_generator_needs_a_decision_before_it_fits_the_published_layout(
    folders: Folders, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError, match=r"no place for this generator's latent .* --latent zero"):
        exported(folders.student, tmp_path / "out", "--layout", "mdlm")
    assert list(tmp_path.iterdir()) == []
    folder = exported(folders.student, tmp_path / "out", "--layout", "mdlm", "--latent", "zero")
    assert "less diverse" in capsys.readouterr().err
    card = (folder / "README.md").read_text()
    assert "| latent | fixed at zero (was: 4 global, 4 per position) |" in card
    assert "| measured was | the source, before its latent was fixed |" in card
    published.read(folder)


def test_numbers_come_with_their_conditions(folders: Folders, tmp_path: Path) -> None:
    row = {
        "checkpoint": "moved since",
        "revision": weights_revision(folders.student),
        "steps": 16,
        "num_samples": 4,
        "sampling_dtype": "float64",
        "gen_ppl": 31.5,
        "entropy": 5.25,
        "evaluator": "gpt2-large",
    }
    (tmp_path / "m.json").write_text(json.dumps({"results": [row]}))
    folder = exported(folders.student, tmp_path / "out", "--metrics", str(tmp_path / "m.json"))
    card = (folder / "README.md").read_text()
    assert "| 31.50 | 5.250 |" in card
    assert "GenPPL under gpt2-large" in card
    with pytest.raises(UserError, match="not this checkpoint"):
        exported(folders.teacher, tmp_path / "no", "--metrics", str(tmp_path / "m.json"))
    assert not (tmp_path / "no").exists()


def test_a_licence_is_written_when_it_is_given_and_never_otherwise(
    folders: Folders, tmp_path: Path
) -> None:
    folder = exported(folders.teacher, tmp_path / "out")
    assert ModelCard.load(folder / "README.md").data.license is None
    again = exported(folder, tmp_path / "again", "--license", "apache-2.0")
    assert ModelCard.load(again / "README.md").data.license == "apache-2.0"
    third = exported(again, tmp_path / "third")
    assert ModelCard.load(third / "README.md").data.license == "apache-2.0"


def test_a_checkpoint_may_be_exported_over_itself(folders: Folders, tmp_path: Path) -> None:
    folder = exported(folders.teacher, tmp_path / "out")
    before = logits(idlm.load(folder))
    exported(folder, folder)
    assert torch.equal(logits(idlm.load(folder)), before)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_checkpoint_without_tokenizer_is_exported_without_and_out_loud(
    folders: Folders, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bare = exported(folders.teacher, tmp_path / "bare", "--no-tokenizer")
    assert not (bare / "tokenizer.json").exists()
    assert capsys.readouterr().err == ""
    again = exported(bare, tmp_path / "out")
    assert not (again / "tokenizer.json").exists()
    assert "| tokenizer | none in this folder |" in (again / "README.md").read_text()
    warned = capsys.readouterr().err
    assert warned.startswith(f"idlm: warning: {bare} has no tokenizer, so the export has none")
    (bare / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match=r"cannot be opened.*--tokenizer FOLDER, or --no-tokenizer"):
        exported(bare, tmp_path / "out")
    (bare / "tokenizer.json").unlink()
    whole = exported(bare, tmp_path / "out", "--tokenizer", str(folders.teacher))
    assert load_tokenizer(whole).get_vocab() == load_tokenizer(folders.teacher).get_vocab()


def test_raw_weights_and_the_average_are_told_apart(folders: Folders, tmp_path: Path) -> None:
    path = training_checkpoint(folders.teacher, tmp_path / "last.ckpt")
    options = ("--tokenizer", str(folders.teacher))
    average = exported(path, tmp_path / "average", *options)
    raw = exported(path, tmp_path / "raw", "--raw", *options)
    assert torch.equal(logits(idlm.load(average)), logits(idlm.load(path)))
    assert torch.equal(logits(idlm.load(raw)), logits(idlm.load(path, raw=True)))
    assert not torch.equal(logits(idlm.load(raw)), logits(idlm.load(average)))
    assert "| weights | exponential moving average |" in (average / "README.md").read_text()
    assert "| weights | raw, as the last update left them |" in (raw / "README.md").read_text()
    with pytest.raises(UserError, match="raw"):
        exported(folders.teacher, tmp_path / "no", "--raw")


def training_checkpoint(folder: Path, path: Path) -> Path:
    """A `.ckpt` as the teacher's training writes it; the average is twice the raw head."""
    from idlm.training import TeacherModule

    module = TeacherModule(str(folder), init=str(folder))
    module.configure_model()
    weights = module.trained_network().state_dict()
    head = "backbone.output_layer.linear.weight"
    average = {**weights, head: 2 * weights[head]}
    state = {f"model.{k}": v for k, v in weights.items()}
    state |= {f"ema.module.{k}": v for k, v in average.items()}
    checkpoint: dict[str, Any] = {
        "state_dict": state,
        "hyper_parameters": dict(module.hparams),
    }
    module.updates = 3
    module.on_save_checkpoint(checkpoint)
    torch.save(checkpoint, path)
    return path


def test_a_training_checkpoint_brings_its_own_tokenizer(folders: Folders, tmp_path: Path) -> None:
    path = training_checkpoint(folders.teacher, tmp_path / "last.ckpt")
    own, held = load_tokenizer(folders.teacher), load_tokenizer(path)
    assert tokenizer_hash(held) == tokenizer_hash(own)
    assert (held.eos_token_id, held.name_or_path) == (own.eos_token_id, str(path))
    folder = exported(path, tmp_path / "out")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (folder / name).read_text() == (folders.teacher / name).read_text()
    card = (folder / "README.md").read_text()
    assert f"| tokenizer | {folders.teacher} |" in card
    state = torch.load(path, weights_only=True)  # as a run that goes on reads it
    del state["tokenizer"], state["making"]
    torch.save(state, path)  # of an older version
    assert not (exported(path, tmp_path / "old") / "tokenizer.json").exists()


@pytest.mark.parametrize(
    "files",
    [
        {"tokenizer.json": "{"},
        {"tokenizer.json": "\ud800", "tokenizer_config.json": 3},
        {"tokenizer_config.json": '{"auto_map": {"AutoTokenizer": ["own.Code", null]}}'},
    ],
)
def test_a_tokenizer_in_a_checkpoint_that_cannot_be_opened_is_one_sentence(
    folders: Folders, tmp_path: Path, files: dict[str, Any]
) -> None:
    path = training_checkpoint(folders.teacher, tmp_path / "last.ckpt")
    state = torch.load(path, weights_only=True)
    torch.save({**state, "tokenizer": files}, path)
    with pytest.raises(UserError, match=r"cannot be opened.*or --no-tokenizer to write none"):
        exported(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_tokenizer_in_a_checkpoint_writes_under_its_own_names_only(
    folders: Folders, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = training_checkpoint(folders.teacher, tmp_path / "last.ckpt")
    state, outside = torch.load(path, weights_only=True), tmp_path / "outside.json"
    for held in ({str(outside): "x", "../outside.json": "x"}, "text", [1]):
        torch.save({**state, "tokenizer": held}, path)
        exported(path, tmp_path / "out")
        assert "has no tokenizer" in capsys.readouterr().err
    assert not outside.exists()


class Hub:
    """Stands in for HfApi."""

    def __init__(self) -> None:
        self.uploaded: list[tuple[str, set[str]]] = []

    def create_repo(self, repo_id: str, **options: Any) -> None:
        pass

    def upload_folder(self, *, repo_id: str, folder_path: Path, **options: Any) -> SimpleNamespace:
        self.uploaded.append((repo_id, {path.name for path in Path(folder_path).iterdir()}))
        return SimpleNamespace(commit_url="https://hub/commit/1")


def test_a_push_uploads_what_was_written(
    folders: Folders,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    hub = Hub()
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: hub)
    folder = exported(folders.teacher, tmp_path / "out", "--push", "me/model")
    assert hub.uploaded == [("me/model", {path.name for path in folder.iterdir()})]
    assert capsys.readouterr().out.splitlines()[-1] == "pushed: https://hub/commit/1"
    assert "\n# model\n" in (folder / "README.md").read_text()  # the title, where none was given


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--private"], "--private is about the repository of --push"),
        (["--push", "model"], "give owner/name"),
        (["--layout", "onnx"], "invalid choice: 'onnx'"),
        (["--dtype", "int8"], "invalid choice: 'int8'"),
        (["--metrics", "absent.json"], "absent.json cannot be read"),
        (["--tokenizer", "x", "--no-tokenizer"], "not allowed with"),
        (["--checkpoint", "./absent"], "checkpoint './absent'"),
        (["--layout", "duo"], "this checkpoint's is absorbing"),
    ],
)
def test_bad_usage_is_one_sentence_and_writes_nothing(
    folders: Folders,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    named: str,
) -> None:
    argv = ["export", "--checkpoint", str(folders.teacher), "--output", str(tmp_path / "out")]
    with pytest.raises(SystemExit) as stop:
        main.main([*argv, *options])
    assert stop.value.code == 2
    err = capsys.readouterr().err
    assert named in err
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_something_else_is_refused_before_anything_is_loaded(
    folders: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(idlm, "load", lambda *_, **__: pytest.fail("loaded"), raising=False)
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(UserError, match=r"holds files but no config\.json"):
        exported(folders.teacher, tmp_path)
    assert (tmp_path / "letter.txt").read_text() == "dear"
