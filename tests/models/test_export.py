"""What is written can be read: by us, by transformers, and half a write is none."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import idlm
from idlm.models import DiffusionLM, export_folder

Make = Callable[..., DiffusionLM]
ANGLES = "backbone.rotary_emb.inv_freq"


def generator(make: Make) -> DiffusionLM:
    """A generator with settings that no default would restore, and latent weights off zero."""
    teacher = make(schedule="cosine", schedule_eps=0.01, time_conditioning=True, dropout=0.3)
    model = teacher.with_latent(latent_global=5, latent_position=3)
    for name, weight in model.named_parameters():
        if ".latent." in name:
            torch.nn.init.normal_(weight, std=0.3)
    return model


def test_a_generator_comes_back_with_every_setting_and_weight(make: Make, tmp_path: Path) -> None:
    model = generator(make)
    loaded = idlm.load(export_folder(model, tmp_path / "out"))
    assert not loaded.training
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
    for key in (
        "time_conditioning",
        "schedule",
        "schedule_eps",
        "process",
        "latent_global",
        "latent_position",
        "dropout",
        "model_length",
        "vocab_size",
    ):
        assert getattr(loaded.config, key) == getattr(model.config, key), key
    states = torch.randint(0, 13, (2, 12))
    latent = model.sample_latent(torch.arange(2), 12, seed=0, step=0)
    sigma = torch.tensor([0.2, 2.0])
    assert torch.equal(loaded(states, sigma, latent).logits, model(states, sigma, latent).logits)


def test_half_precision_is_the_rounded_weight_and_keeps_the_angles(
    make: Make, tokens: Tensor, tmp_path: Path
) -> None:
    model = make()
    folder = export_folder(model, tmp_path / "out", dtype=torch.float16)
    stored = load_file(folder / "model.safetensors")
    assert {v.dtype for name, v in stored.items() if name != ANGLES} == {torch.float16}
    assert stored[ANGLES].dtype == torch.float32
    loaded = idlm.load(folder)
    assert loaded.dtype == torch.float32
    for name, value in model.state_dict().items():
        expected = value if name == ANGLES else value.half().float()
        assert torch.equal(loaded.state_dict()[name], expected), name
    error = (loaded(tokens).logits - model(tokens).logits).abs().max().item()
    assert 0 < error < 0.05  # 11 bits
    assert all(p.dtype == torch.float32 for p in model.parameters())  # exporting changes nothing


def test_an_exported_folder_is_one_that_transformers_reads_and_writes(
    make: Make, tokens: Tensor, tmp_path: Path
) -> None:
    model = make()
    read = DiffusionLM.from_pretrained(export_folder(model, tmp_path / "ours"))
    assert torch.equal(read(tokens).logits, model(tokens).logits)
    read.save_pretrained(tmp_path / "theirs")
    assert torch.equal(idlm.load(tmp_path / "theirs")(tokens).logits, model(tokens).logits)
    config = json.loads((tmp_path / "ours" / "config.json").read_text())
    assert config["model_type"] == "idlm"
    assert config["architectures"] == ["DiffusionLM"]


def test_an_export_replaces_the_old_folder_whole(make: Make, tmp_path: Path) -> None:
    target = tmp_path / "deep" / "out"
    export_folder(make(seed=1), target, card="# old\n")
    (target / "stray.txt").write_text("from another run")
    model = make(seed=2)
    assert export_folder(model, target) == target
    assert sorted(p.name for p in target.iterdir()) == ["config.json", "model.safetensors"]
    weights = idlm.load(target).state_dict()
    assert torch.equal(
        weights["backbone.vocab_embed.embedding"],
        model.state_dict()["backbone.vocab_embed.embedding"],
    )
    assert [p.name for p in target.parent.iterdir()] == ["out"]


def test_a_failed_export_leaves_the_old_folder_and_no_traces(
    make: Make, tokens: Tensor, tmp_path: Path
) -> None:
    class BrokenTokenizer:
        def save_pretrained(self, folder: Path) -> None:
            raise OSError("no space left on device")

    model = make()
    target = export_folder(model, tmp_path / "out", card="# card\n")
    with pytest.raises(OSError, match="no space left"):
        export_folder(make(seed=9), target, tokenizer=BrokenTokenizer())
    assert (target / "README.md").read_text() == "# card\n"
    assert torch.equal(idlm.load(target)(tokens).logits, model(tokens).logits)
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_compiled_model_exports_clean_names(make: Make, tmp_path: Path) -> None:
    model = make()
    model.compile_backbone(backend="eager")
    stored = load_file(export_folder(model, tmp_path / "out") / "model.safetensors")
    assert stored.keys() == make().state_dict().keys()
