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
from idlm.models import DiffusionLM, decode, load_tokenizer

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
SIZES = (
    "vocab_size",
    "model_length",
    "hidden_dim",
    "cond_dim",
    "n_blocks",
    "n_heads",
    "dropout",
    "time_conditioning",
)


def weights_of(model: DiffusionLM) -> dict[str, Tensor]:
    return {name: value.clone().contiguous() for name, value in model.state_dict().items()}


def publish(
    model: DiffusionLM, folder: Path, weights: dict[str, Tensor] | None = None, shards: int = 1
) -> Path:
    """Write the layout of the published MDLM checkpoints."""
    folder.mkdir(exist_ok=True)
    config = {**PUBLISHED, **{key: getattr(model.config, key) for key in SIZES}}
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
    with pytest.raises(UserError, match="lacks cond_dim; an MDLM config needs"):
        idlm.load(folder)


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
    assert "do not fit its config.json" in message


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


def test_a_model_of_another_kind_is_refused_by_its_name(make: Make, tmp_path: Path) -> None:
    folder = publish(make(), tmp_path / "mdlm")
    (folder / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(UserError, match="has model_type 'gpt2'; this version loads 'idlm'"):
        idlm.load(folder)


@pytest.mark.parametrize("name", ["/nowhere/at/all", "./nowhere", "~/nowhere", "a/b/c"])
def test_a_path_that_is_no_folder_gets_a_sentence(name: str) -> None:
    with pytest.raises(UserError, match=r"is not a folder; give a folder with config\.json and"):
        idlm.load(name)


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match="is not a folder"):
        idlm.load(tmp_path / "model.safetensors")


def test_a_hub_id_out_of_reach_gets_a_sentence_with_a_way_out() -> None:
    # the tests run offline
    with pytest.raises(
        UserError, match=r"could not reach checkpoint 'nobody/nothing'.*local folde"
    ):
        idlm.load("nobody/nothing")
    with pytest.raises(UserError, match="is neither a folder nor a hub id such as owner/name"):
        idlm.load("no body")


def letters() -> object:
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.WordLevel({"a": 0, "b": 1, "<eos>": 2}, unk_token="<eos>"))
    core.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<eos>")


def test_decoding_shows_masks_in_their_places() -> None:
    tokenizer = letters()
    mask = len(tokenizer)  # type: ignore[arg-type]
    rows = torch.tensor([[0, 1, 0, 0], [mask, 0, mask, mask], [1, mask, 2, 1]])
    assert decode(tokenizer, rows) == ["abaa", "[MASK]a[MASK][MASK]", "b[MASK]<eos>b"]


def test_a_checkpoint_without_tokenizer_is_refused_with_a_remedy(
    make: Make, tmp_path: Path
) -> None:
    folder = publish(make(), tmp_path / "mdlm")
    with pytest.raises(
        UserError, match=r"has no tokenizer\.json.*put the tokenizer's files beside"
    ):
        load_tokenizer(folder)
    letters().save_pretrained(folder)  # type: ignore[attr-defined]
    assert len(load_tokenizer(folder)) == 3


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
