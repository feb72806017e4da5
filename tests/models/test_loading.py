"""Checkpoint folders in, or one sentence that says what is wrong with them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import idlm
from idlm.errors import UserError
from idlm.models import DiffusionConfig, DiffusionLM, export_folder
from idlm.models.config import FIELDS, SIZES
from idlm.models.loading import fetch
from tests.models import published

Make = Callable[..., DiffusionLM]
# The hub's config.json of a published MDLM; the sizes are filled in.
PUBLISHED = {
    "architectures": ["MDLM"],
    "auto_map": {
        "AutoConfig": "configuration_mdlm.MDLMConfig",
        "AutoModelForMaskedLM": "modeling_mdlm.MDLM",
    },
    "model_type": "mdlm",
    "return_dict": False,
    "torch_dtype": "float32",
    "transformers_version": "4.38.2",
}
DUO = {
    "architectures": ["DUO"],
    "auto_map": {"AutoConfig": "model.DUOConfig", "AutoModelForMaskedLM": "model.DUO"},
    "model_type": "DUO",
    "causal": False,
    "return_dict": False,
    "torch_dtype": "float32",
    "var_min": True,
}


def weights_of(model: DiffusionLM) -> dict[str, Tensor]:
    return {name: value.clone().contiguous() for name, value in model.state_dict().items()}


def publish(
    model: DiffusionLM, folder: Path, weights: dict[str, Tensor] | None = None, shards: int = 1
) -> Path:
    """Write the layout of the published MDLM or Duo checkpoints."""
    folder.mkdir(exist_ok=True)
    sizes = {key: getattr(model.config, key) for key in SIZES}
    config = {**DUO, **sizes}
    if model.config.process == "absorbing":
        config = {**PUBLISHED, **sizes, "time_conditioning": model.config.time_conditioning}
    (folder / "config.json").write_text(json.dumps(config))
    weights = weights_of(model) if weights is None else weights
    if shards == 1:
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        return folder
    names = sorted(weights)
    where = {
        n: f"model-{i % shards + 1:05}-of-{shards:05}.safetensors" for i, n in enumerate(names)
    }
    for shard in set(where.values()):
        save_file({n: weights[n] for n in names if where[n] == shard}, folder / shard)
    index = {"metadata": {"total_size": 0}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("prefix", ["", "_orig_mod.", "module.", "module._orig_mod."])
def test_a_published_folder_loads_whatever_wrapped_its_names(
    make: Make, tokens: Tensor, tmp_path: Path, prefix: str, shards: int
) -> None:
    model = make()
    renamed = {prefix + name: value for name, value in weights_of(model).items()}
    loaded = idlm.load(publish(model, tmp_path / "mdlm", renamed, shards))
    assert isinstance(loaded, DiffusionLM)
    assert not loaded.training
    assert loaded.process.name == "absorbing"
    assert torch.equal(loaded(tokens).logits, model(tokens).logits)


def test_a_prefix_inside_the_name_is_removed_too(
    make: Make, tokens: Tensor, tmp_path: Path
) -> None:
    model = make()
    renamed = {
        name.replace("backbone.", "backbone._orig_mod."): value
        for name, value in weights_of(model).items()
    }
    loaded = idlm.load(publish(model, tmp_path / "mdlm", renamed))
    assert torch.equal(loaded(tokens).logits, model(tokens).logits)


def test_time_conditioning_comes_from_the_folders_json(make: Make, tmp_path: Path) -> None:
    loaded = idlm.load(publish(make(time_conditioning=True), tmp_path / "timed"))
    assert loaded.config.time_conditioning is True
    assert idlm.load(publish(make(), tmp_path / "plain")).config.time_conditioning is False


def test_a_published_config_without_a_size_is_refused_not_completed(
    make: Make, tmp_path: Path
) -> None:
    folder = publish(make(), tmp_path / "mdlm")
    config = json.loads((folder / "config.json").read_text())
    del config["cond_dim"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"the config\.json of .*mdlm lacks cond_dim; a checkpoint"):
        idlm.load(folder)


@pytest.mark.parametrize("name", FIELDS)
def test_our_own_config_is_not_completed_by_class_defaults(
    make: Make, tmp_path: Path, name: str
) -> None:
    folder = export_folder(make(), tmp_path / "own")
    config = json.loads((folder / "config.json").read_text())
    del config[name]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=rf"the config\.json of .*own lacks {name}; a checkpoint"):
        idlm.load(folder)


@pytest.mark.parametrize("value", [0, -1, "16", 1.5, None])
def test_a_size_that_is_no_whole_number_is_refused(
    make: Make, tmp_path: Path, value: object
) -> None:
    folder = publish(make(), tmp_path / "mdlm")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "cond_dim": value}))
    with pytest.raises(UserError, match=r"cond_dim is .*; it must be a whole number"):
        idlm.load(folder)


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("time_conditioning", "false", "it must be true or false"),
        ("dropout", "0.1", r"it must be a number in \[0, 1\)"),
        ("dropout", 1.5, r"it must be a number in \[0, 1\)"),
        ("n_heads", 3, "gives no even head size"),
    ],
)
def test_a_setting_that_means_nothing_is_refused(
    make: Make, tmp_path: Path, name: str, value: object, told: str
) -> None:
    folder = publish(make(), tmp_path / "mdlm")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, name: value}))
    with pytest.raises(UserError, match=told):
        idlm.load(folder)


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("process", ["absorbing"], r"process is \['absorbing'\]; it must be the name"),
        ("schedule_eps", "0.001", r"schedule_eps is '0.001'; it must be a number in \[0, 1\)"),
        ("latent_global", 1.5, "latent_global is 1.5; it must be a whole number, 0"),
        ("latent_position", True, "latent_position is True; it must be a whole number, 0"),
        ("n_blocks", True, "n_blocks is True; it must be a whole number, 1"),
        ("num_labels", "x", r"cannot take a setting in the config.json of .*\('str'"),
    ],
)
def test_a_setting_of_our_own_layout_that_means_nothing_is_refused(
    make: Make, tmp_path: Path, name: str, value: object, told: str
) -> None:
    folder = export_folder(make(), tmp_path / "own")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, name: value}))
    with pytest.raises(UserError, match=told):
        idlm.load(folder)


def duo(make: Make) -> DiffusionLM:
    return make(process="uniform", time_conditioning=True)


@pytest.mark.parametrize("kind", ["mdlm", "timed mdlm", "duo"])
def test_a_published_network_computes_what_its_description_says(
    make: Make, tokens: Tensor, tmp_path: Path, kind: str
) -> None:
    model = duo(make) if kind == "duo" else make(time_conditioning="timed" in kind)
    folder = publish(model, tmp_path / "published")
    loaded = idlm.load(folder)
    assert loaded.process.name == ("uniform" if kind == "duo" else "absorbing")
    assert loaded.config.time_conditioning is (kind != "mdlm")
    sigma = torch.tensor([0.1, 3.0])
    expected = published.logits(folder, tokens, sigma)
    # fp32 against a plain fp64 computation of some ten thousand products
    torch.testing.assert_close(
        loaded(tokens, sigma).logits.double(), expected, atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize("model_type", ["DUO", "duo"])
def test_a_duo_checkpoint_is_uniform_over_all_its_states(
    make: Make, tmp_path: Path, model_type: str
) -> None:
    folder = publish(duo(make), tmp_path / "duo")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": model_type}))
    process = idlm.load(folder).process
    assert (process.name, process.vocab_size) == ("uniform", 13)
    assert process.schedule.name == "log-linear"
    (folder / "config.json").write_text(json.dumps({**config, "causal": True}))
    with pytest.raises(UserError, match="has causal true; only Duo's bidirectional"):
        idlm.load(folder)


def sdtt(model: DiffusionLM, folder: Path, prefix: str = "") -> Path:
    """The layout of SDTT's students: the settings of the run, no vocabulary."""
    c = model.config
    weights = {
        prefix + name: value
        for name, value in weights_of(model).items()
        if not (prefix and "inv_freq" in name)
    }
    publish(model, folder, weights)
    run = {
        "model": {
            "name": "small",
            "type": "ddit-orig",
            "hidden_size": c.hidden_dim,
            "cond_dim": c.cond_dim,
            "length": c.model_length,
            "n_blocks": c.n_blocks,
            "n_heads": c.n_heads,
            "scale_by_sigma": True,
            "dropout": c.dropout,
        },
        "parameterization": {"name": "multi-round-sdtt", "num_distill_steps": 2},
        "time_conditioning": c.time_conditioning,
        "tokenizer": {"name": "gpt2"},
        "data_preprocess": {"seq_len": "${model.length}"},
    }
    (folder / "config.json").write_text(json.dumps(run))
    return folder


@pytest.mark.parametrize("prefix", ["", "backbone."])
def test_an_sdtt_student_loads_with_the_vocabulary_of_its_weights(
    make: Make, tokens: Tensor, tmp_path: Path, prefix: str
) -> None:
    model = make()
    loaded = idlm.load(sdtt(model, tmp_path / "sdtt", prefix))
    assert {name: getattr(loaded.config, name) for name in FIELDS} == {
        name: getattr(model.config, name) for name in FIELDS
    }
    assert torch.equal(loaded(tokens).logits, model(tokens).logits)


def test_an_sdtt_run_of_another_network_or_without_a_size_is_refused(
    make: Make, tmp_path: Path
) -> None:
    folder = sdtt(make(), tmp_path / "sdtt")
    config = json.loads((folder / "config.json").read_text())
    config["model"]["type"] = "ddit"
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"has model.type 'ddit'; SDTT's 'ddit-orig' networks"):
        idlm.load(folder)
    del config["model"]["type"], config["model"]["hidden_size"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"model in the config\.json of .*lacks hidden_size"):
        idlm.load(folder)


def test_a_bare_network_loads_too(make: Make, tokens: Tensor, tmp_path: Path) -> None:
    model = make()
    bare = {name.removeprefix("backbone."): value for name, value in weights_of(model).items()}
    loaded = idlm.load(publish(model, tmp_path / "mdlm", bare))
    assert torch.equal(loaded(tokens).logits, model(tokens).logits)


def test_only_whole_parts_of_a_name_are_removed(make: Make, tmp_path: Path) -> None:
    model = make()
    weights = weights_of(model)
    weights["backbone.blocks.0.submodule.weight"] = torch.ones(2)
    weights["noise.module.sigma"] = torch.ones(2)
    with pytest.raises(
        UserError, match=r"unexpected: backbone\.blocks\.0\.submodule\.weight, noise"
    ):
        idlm.load(publish(model, tmp_path / "mdlm", weights))


def test_one_name_twice_is_refused_not_overwritten(make: Make, tmp_path: Path) -> None:
    model = make()
    weights = weights_of(model)
    weights["module.backbone.output_layer.linear.bias"] = torch.ones(13)
    with pytest.raises(UserError, match=r"linear\.bias a second time, as .*; keep one of the two"):
        idlm.load(publish(model, tmp_path / "mdlm", weights))


ROTARY = "backbone.rotary_emb.inv_freq"


def test_rotary_frequencies_may_be_absent_and_are_never_taken_from_half_precision(
    make: Make, tmp_path: Path
) -> None:
    model = make(hidden_dim=64)  # eight pairs of one head: frequencies that fp16 rounds
    weights = weights_of(model)
    exact = weights.pop(ROTARY)
    for number, stored in enumerate((None, exact.half(), exact.bfloat16())):
        given = weights if stored is None else {**weights, ROTARY: stored}
        loaded = idlm.load(publish(model, tmp_path / str(number), given), dtype=torch.bfloat16)
        kept = loaded.state_dict()[ROTARY]
        assert kept.dtype == torch.float32
        assert torch.equal(kept, exact)
        assert loaded.dtype == torch.bfloat16


def test_rotary_frequencies_of_another_base_are_refused(make: Make, tmp_path: Path) -> None:
    model = make()
    weights = weights_of(model)
    weights[ROTARY] = 1.0 / 500.0 ** (torch.arange(0, 8, 2).float() / 8)
    with pytest.raises(UserError, match="is not the table of base 10000"):
        idlm.load(publish(model, tmp_path / "mdlm", weights))


def test_integer_weights_are_refused_not_cast(make: Make, tmp_path: Path) -> None:
    model = make()
    weights = weights_of(model)
    name = "backbone.blocks.1.mlp.0.weight"
    weights[name] = weights[name].to(torch.int8)
    with pytest.raises(UserError, match=rf"not floating point: {name} is int8"):
        idlm.load(publish(model, tmp_path / "mdlm", weights))


def test_weights_of_half_precision_load_as_fp32_and_as_asked(make: Make, tmp_path: Path) -> None:
    model = make()
    half = {name: value.half() for name, value in weights_of(model).items()}
    half["backbone.rotary_emb.inv_freq"] = model.state_dict()["backbone.rotary_emb.inv_freq"]
    folder = publish(model, tmp_path / "mdlm", half)
    loaded = idlm.load(folder)
    assert loaded.dtype == torch.float32
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, half[name].float()), name
    wide = idlm.load(folder, dtype=torch.float64, device="cpu")
    assert wide.dtype == torch.float64


def test_all_differences_between_weights_and_config_come_in_one_message(
    make: Make, tmp_path: Path
) -> None:
    model = make()
    weights = weights_of(model)
    del weights["backbone.blocks.0.attn_qkv.weight"]
    del weights["backbone.output_layer.linear.bias"]
    weights["backbone.blocks.7.norm1.weight"] = torch.ones(16)
    weights["backbone.vocab_embed.embedding"] = torch.ones(14, 16)
    with pytest.raises(UserError) as caught:
        idlm.load(publish(model, tmp_path / "mdlm", weights))
    message = str(caught.value)
    assert (
        "missing: backbone.blocks.0.attn_qkv.weight, backbone.output_layer.linear.bias" in message
    )
    assert "unexpected: backbone.blocks.7.norm1.weight" in message
    assert "backbone.vocab_embed.embedding is (14, 16) instead of (13, 16)" in message
    assert "do not fit its configuration" in message


@pytest.mark.parametrize("name", ["vocab_size", "hidden_dim", "cond_dim"])
def test_an_absurd_size_is_told_before_memory_is_asked_for_it(
    name: str, make: Make, tmp_path: Path
) -> None:
    folder = publish(make(), tmp_path / "mdlm")
    config = json.loads((folder / "config.json").read_text())
    config[name] = 10**12
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"its configuration: wrongly shaped|sizes beyond any"):
        idlm.load(folder)


def test_a_truncated_file_is_named(make: Make, tmp_path: Path) -> None:
    folder = publish(make(), tmp_path / "mdlm")
    whole = (folder / "model.safetensors").read_bytes()
    for keep in (len(whole) // 2, 5, 0):
        (folder / "model.safetensors").write_bytes(whole[:keep])
        with pytest.raises(UserError, match=r"model\.safetensors is truncated or corrupt.*again"):
            idlm.load(folder)


def test_a_missing_shard_is_named(make: Make, tmp_path: Path) -> None:
    folder = publish(make(), tmp_path / "mdlm", shards=2)
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(UserError, match=r"has no model-00002-of-00002\.safetensors; download"):
        idlm.load(folder)


def test_a_shard_outside_the_folder_is_never_read(make: Make, tmp_path: Path) -> None:
    model = make()
    folder = publish(model, tmp_path / "mdlm", shards=2)
    (folder / "model-00001-of-00002.safetensors").rename(tmp_path / "outside.safetensors")
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    index["weight_map"] = {
        name: shard if "00002" in shard.split("-of-")[0] else "../outside.safetensors"
        for name, shard in index["weight_map"].items()
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=r"has no outside\.safetensors"):
        idlm.load(folder)


@pytest.mark.parametrize("text", ["", "{", '{"metadata": {}}', "[]"])
def test_a_corrupt_index_of_shards_is_named(make: Make, tmp_path: Path, text: str) -> None:
    folder = publish(make(), tmp_path / "mdlm", shards=2)
    (folder / "model.safetensors.index.json").write_text(text)
    with pytest.raises(UserError, match=r"model\.safetensors\.index\.json .*download it again"):
        idlm.load(folder)


def test_a_folder_without_config_or_weights_is_no_checkpoint(make: Make, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no config\.json, so it is no model checkpoint"):
        idlm.load(tmp_path)
    folder = publish(make(), tmp_path / "mdlm")
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"has no model\.safetensors; download the checkpoint"):
        idlm.load(folder)


@pytest.mark.parametrize("text", ["{", "[]", "null", "\ufffd"])
def test_a_config_that_is_no_json_object_is_named(make: Make, tmp_path: Path, text: str) -> None:
    folder = publish(make(), tmp_path / "mdlm")
    (folder / "config.json").write_text(text)
    with pytest.raises(UserError, match=r"config\.json is not .*download it again"):
        idlm.load(folder)
    (folder / "config.json").unlink()
    (folder / "config.json").mkdir()
    with pytest.raises(UserError, match=r"config\.json cannot be read \(Is a directory\)"):
        idlm.load(folder)


def test_a_model_of_another_kind_is_refused_by_its_name(make: Make, tmp_path: Path) -> None:
    folder = publish(make(), tmp_path / "mdlm")
    (folder / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(UserError, match="has model_type 'gpt2'; this version loads 'idlm'"):
        idlm.load(folder)


@pytest.mark.parametrize("name", ["/nowhere/at/all", "./nowhere", "~/nowhere", "a/b/c"])
def test_a_path_that_is_no_folder_gets_a_sentence(name: str) -> None:
    with pytest.raises(UserError, match=r"is not a folder; give a folder with config\.json and"):
        idlm.load(name)


@pytest.mark.parametrize("name", ["runs/last.ckpt", "last.ckpt", "/nowhere/last.ckpt"])
def test_a_lightning_file_that_is_not_there_is_not_looked_for_on_the_hub(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr("idlm.models.files.hub_reachable", lambda: pytest.fail("asked the hub"))
    with pytest.raises(UserError, match=f"there is no checkpoint '{name}'; check the path"):
        idlm.load(name)


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match="is not a folder"):
        idlm.load(tmp_path / "model.safetensors")


def test_weights_only_as_a_pickle_get_a_way_out(make: Make, tmp_path: Path) -> None:
    folder = publish(make(), tmp_path / "mdlm")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"only as a pickle \(\.bin\), which is not read; save"):
        idlm.load(folder)


def test_raw_weights_are_refused_where_there_is_one_set(make: Make, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="mdlm has no raw weights: only a Lightning"):
        idlm.load(publish(make(), tmp_path / "mdlm"), raw=True)


def test_an_unknown_device_and_a_revision_of_a_folder_are_refused(
    make: Make, tmp_path: Path
) -> None:
    folder = publish(make(), tmp_path / "mdlm")
    with pytest.raises(UserError, match="device 'gpu' is unknown"):
        idlm.load(folder, device="gpu")
    with pytest.raises(UserError, match="device 'cuda:99' is not here"):
        idlm.load(folder, device=99)
    assert idlm.load(folder, dtype="bfloat16").dtype == torch.bfloat16
    with pytest.raises(UserError, match=r"dtype is torch\.int8; use float32"):
        idlm.load(folder, dtype=torch.int8)
    with pytest.raises(UserError, match=r"revision is 'main' but .* is on this machine"):
        idlm.load(folder, revision="main")


@pytest.mark.parametrize("raw", [False, True])
def test_a_lightning_file_goes_to_its_reader(
    make: Make, tokens: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, raw: bool
) -> None:
    model, asked = make(), []

    def read(path: Path, *, raw: bool) -> tuple[DiffusionConfig, dict[str, Tensor]]:
        asked.append((path, raw))
        return model.config, weights_of(model)

    monkeypatch.setattr("idlm.models.lightning_ckpt.read_lightning", read)
    file = tmp_path / "last.ckpt"
    file.write_bytes(b"")
    loaded = idlm.load(file, raw=raw)
    assert asked == [(file, raw)]
    assert loaded.name_or_path == str(file)
    assert torch.equal(loaded(tokens).logits, model(tokens).logits)


@pytest.mark.parametrize("reachable", [True, False])
def test_the_hub_is_asked_for_the_revision_and_only_when_it_answers(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reachable: bool
) -> None:
    folder = publish(make(), tmp_path / "snapshot")
    asked: list[dict[str, object]] = []

    def snapshot_download(name: str, **options: object) -> str:
        asked.append({"name": name, **options})
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    monkeypatch.setattr("idlm.models.files.hub_reachable", lambda: reachable)
    model = idlm.load("s-sahoo/duo", revision="v2")
    assert model.name_or_path == "s-sahoo/duo"
    (request,) = asked
    assert request["name"] == "s-sahoo/duo"
    assert request["revision"] == "v2"
    assert request["local_files_only"] is not reachable
    assert "*.safetensors" in request["allow_patterns"]  # type: ignore[operator]
    assert "*.py" not in request["allow_patterns"]  # type: ignore[operator]
    assert fetch("s-sahoo/duo", "*.json") == folder


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("python-docs-studnet-16step", "; did you mean 'python-docs-student-16step'? bundled"),
        ("Python-Docs-Teacher", "; did you mean 'python-docs-teacher'? bundled"),
        ("gpt9", "instead; bundled, for work without a network, are python-docs-teacher, "),
    ],
)
def test_a_misspelt_bundled_model_is_answered_with_the_nearest(typed: str, said: str) -> None:
    with pytest.raises(UserError, match=r"python-docs-evaluator$") as caught:
        idlm.load(typed)
    assert said in str(caught.value)
    with pytest.raises(UserError, match="could not reach checkpoint 'o/python-docs'") as caught:
        idlm.load("o/python-docs")
    assert "bundled" not in str(caught.value)


def test_a_hub_id_out_of_reach_gets_a_sentence_with_a_way_out() -> None:
    # the tests run offline
    with pytest.raises(
        UserError, match=r"could not reach checkpoint 'nobody/nothing'.*local folde"
    ):
        idlm.load("nobody/nothing")
    with pytest.raises(UserError, match="is neither a folder nor a hub id such as owner/name"):
        idlm.load("no body")


def test_loading_runs_no_code_of_the_checkpoint(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = publish(make(), tmp_path / "mdlm")
    for name in ("configuration_mdlm.py", "modeling_mdlm.py"):
        (folder / name).write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    idlm.load(folder)
    assert not (tmp_path / "ran").exists()


def test_the_file_on_disk_carries_the_published_names(make: Make, tmp_path: Path) -> None:
    model = make()
    folder = publish(model, tmp_path / "mdlm")
    names = load_file(folder / "model.safetensors").keys()
    assert "backbone.blocks.1.adaLN_modulation.bias" in names
    assert names == model.state_dict().keys()
