"""What is written can be read: by us, by transformers, and half a write is none."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import idlm
from idlm.errors import UserError
from idlm.models import DiffusionLM, Latent, export_folder
from idlm.models.layouts import fix_latent_at_zero
from tests.models import published

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


@pytest.mark.parametrize("timed", [False, True])
def test_the_authors_network_reads_the_mdlm_layout_and_gives_our_logits(
    make: Make, tokens: Tensor, tmp_path: Path, timed: bool
) -> None:
    model = make(time_conditioning=timed)
    folder = export_folder(model, tmp_path / "out", layout="mdlm")
    sigma = torch.tensor([0.3, 2.5])
    expected = model.double()(tokens, sigma).logits
    # fp32 tables of angles on our side
    torch.testing.assert_close(published.logits(folder, tokens, sigma), expected, rtol=0, atol=1e-5)
    assert torch.equal(
        idlm.load(folder)(tokens, sigma).logits, make(time_conditioning=timed)(tokens, sigma).logits
    )


def test_the_mdlm_layout_says_what_the_published_one_says(make: Make, tmp_path: Path) -> None:
    model = make(time_conditioning=True, dropout=0.2)
    folder = export_folder(model, tmp_path / "out", layout="mdlm", dtype=torch.bfloat16)
    config = json.loads((folder / "config.json").read_text())
    assert config.pop("transformers_version")
    where = "kuleshov-group/mdlm-owt--"
    assert config == {
        "architectures": ["MDLM"],
        "auto_map": {
            "AutoConfig": where + "configuration_mdlm.MDLMConfig",
            "AutoModelForMaskedLM": where + "modeling_mdlm.MDLM",
        },
        "cond_dim": 8,
        "dropout": 0.2,
        "hidden_dim": 16,
        "model_length": 12,
        "model_type": "mdlm",
        "n_blocks": 2,
        "n_heads": 2,
        "return_dict": False,
        "time_conditioning": True,
        "torch_dtype": "bfloat16",
        "vocab_size": 13,
    }


def test_the_authors_network_reads_the_duo_layout_and_gives_our_logits(
    make: Make, tmp_path: Path
) -> None:
    model = make(process="uniform", time_conditioning=True)
    folder = export_folder(model, tmp_path / "out", layout="duo")
    config = json.loads((folder / "config.json").read_text())
    assert (config["model_type"], config["architectures"]) == ("DUO", ["DUO"])
    assert (config["causal"], config["var_min"]) == (False, True)
    assert "time_conditioning" not in config
    tokens, sigma = torch.randint(0, 13, (2, 12)), torch.tensor([0.1, 1.7])
    expected = model.double()(tokens, sigma).logits
    torch.testing.assert_close(published.logits(folder, tokens, sigma), expected, rtol=0, atol=1e-5)
    loaded = idlm.load(folder)
    assert loaded.config.process == "uniform"
    assert torch.equal(loaded(tokens, sigma).logits, model.float()(tokens, sigma).logits)


@pytest.mark.parametrize(
    ("layout", "changes", "named"),
    [
        ("mdlm", {"schedule": "cosine"}, "the schedule 'cosine'"),
        ("mdlm", {"schedule_eps": 0.01}, "schedule_eps 0.01"),
        ("mdlm", {"latent_global": 4}, "--latent zero"),
        ("mdlm", {"latent_position": 4}, "latent_position 4"),
        ("mdlm", {"process": "uniform", "time_conditioning": True}, "this checkpoint's is uniform"),
        ("duo", {}, "this checkpoint's is absorbing"),
        ("duo", {"process": "uniform"}, "this network never does"),
        ("onnx", {}, "choose one of idlm, mdlm, duo"),
    ],
)
def test_a_layout_that_would_lose_something_is_refused(
    make: Make, tmp_path: Path, layout: str, changes: dict, named: str
) -> None:
    with pytest.raises(UserError, match=named):
        export_folder(make(**changes), tmp_path / "out", layout=layout)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("vector", "position"), [(5, 3), (5, 0), (0, 3)])
def test_a_latent_fixed_at_zero_is_the_generator_at_epsilon_zero(
    make: Make, tokens: Tensor, tmp_path: Path, vector: int, position: int
) -> None:
    model = make(time_conditioning=True).with_latent(latent_global=vector, latent_position=position)
    for name, weight in model.named_parameters():
        if ".latent." in name:
            torch.nn.init.normal_(weight, std=0.5)
    sigma = torch.tensor([0.2, 2.0])
    silent = Latent(
        torch.zeros(2, vector) if vector else None,
        torch.zeros(2, 12, position) if position else None,
    )
    fixed = fix_latent_at_zero(model)
    assert not fixed.has_latent
    expected = model(tokens, sigma, silent).logits
    # one fp32 rounding of every adaLN bias
    torch.testing.assert_close(fixed(tokens, sigma).logits, expected, rtol=0, atol=1e-5)
    noisy = model(tokens, sigma, model.sample_latent(torch.arange(2), 12, seed=0, step=0)).logits
    assert (noisy - expected).abs().max() > 0.01  # the latent mattered
    exact = fix_latent_at_zero(model.double())(tokens, sigma).logits
    silent = Latent(*(part if part is None else part.double() for part in silent))
    torch.testing.assert_close(exact, model(tokens, sigma, silent).logits, rtol=0, atol=1e-12)
    folder = export_folder(fixed, tmp_path / "out", layout="mdlm")
    theirs = published.logits(folder, tokens, sigma)
    torch.testing.assert_close(theirs.float(), expected, rtol=0, atol=1e-4)


def test_a_network_without_latent_has_nothing_to_fix(make: Make) -> None:
    model = make()
    assert fix_latent_at_zero(model) is model


def test_a_folder_of_something_else_is_left_alone(make: Make, tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").write_text("years of work")
    with pytest.raises(UserError, match=r"holds files but no config\.json"):
        export_folder(make(), tmp_path / "thesis")
    (tmp_path / "file").write_text("a file")
    with pytest.raises(UserError, match="is a file"):
        export_folder(make(), tmp_path / "file")
    (tmp_path / "empty").mkdir()
    export_folder(make(), tmp_path / "empty")
    assert (tmp_path / "thesis" / "chapter1.tex").read_text() == "years of work"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["empty", "file", "thesis"]


def test_a_swap_that_fails_puts_the_old_folder_back(
    make: Make, tokens: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make()
    target = export_folder(model, tmp_path / "out")
    real = os.replace

    def replace(old: Path, new: Path) -> None:
        if Path(new) == target and Path(old).name != "old":
            raise OSError("interrupted")
        real(old, new)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", replace)
        with pytest.raises(OSError, match="interrupted"):
            export_folder(make(seed=9), target)
    assert torch.equal(idlm.load(target)(tokens).logits, model(tokens).logits)
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_weight_that_half_precision_cannot_hold_is_refused(make: Make, tmp_path: Path) -> None:
    model = make()
    with torch.no_grad():
        model.backbone.output_layer.linear.bias[3] = 1e5
    with pytest.raises(UserError, match=r"linear\.bias .* float16; choose bfloat16 or float32"):
        export_folder(model, tmp_path / "out", dtype=torch.float16)
    export_folder(model, tmp_path / "out", dtype=torch.bfloat16)
    with torch.no_grad():
        model.backbone.output_layer.linear.bias[3] = float("nan")
    with pytest.raises(UserError, match="its weights are broken"):
        export_folder(model, tmp_path / "out")
