"""Load a checkpoint folder or hub id: strictly, without remote code, without flash-attn."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from idlm.errors import UserError
from idlm.models.config import DiffusionConfig
from idlm.models.modeling import DiffusionLM
from idlm.paths import resolve

_PREFIXES = ("_orig_mod.", "module.")
_SIZES = (
    "vocab_size",
    "model_length",
    "hidden_dim",
    "cond_dim",
    "n_blocks",
    "n_heads",
    "dropout",
    "time_conditioning",
)


def fetch(name: str | Path, *patterns: str, revision: str | None = None) -> Path:
    """The local folder of a checkpoint: itself, a bundled model, or a snapshot from the hub.

    Raises:
        UserError: if it is neither a folder nor reachable on the hub.
    """
    folder = Path(resolve(name))
    if folder.is_dir():
        return folder
    if folder.exists() or str(name).startswith((".", "/", "~")) or str(name).count("/") > 1:
        raise UserError(
            f"checkpoint {str(name)!r} is not a folder; give a folder with config.json and "
            "model.safetensors, or a hub id such as kuleshov-group/mdlm-owt"
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        return Path(
            snapshot_download(str(name), revision=revision, allow_patterns=list(patterns) or None)
        )
    except HFValidationError as error:
        raise UserError(
            f"checkpoint {str(name)!r} is neither a folder nor a hub id such as owner/name"
        ) from error
    except Exception as error:  # hub, http and offline errors share no base class
        reason = str(error).strip().split("\n")[0]
        raise UserError(
            f"could not reach checkpoint {str(name)!r} on the Hugging Face hub "
            f"({type(error).__name__}: {reason[:160]}); check the name and the network, or give "
            "the path of a local folder with config.json and model.safetensors instead"
        ) from error


def read_config(folder: Path) -> DiffusionConfig:
    """Translate the folder's ``config.json``, ours or a published one.

    The JSON decides, never a class default (the hub's MDLM class would say cond_dim 129).

    Raises:
        UserError: if the file is missing, unreadable or of an unknown kind.
    """
    path = folder / "config.json"
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{folder} has no config.json, so it is no model checkpoint") from None
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error}); download it again") from error
    if not isinstance(raw, dict):
        raise UserError(f"{path} is not a JSON object of settings; download it again")
    kind = str(raw.get("model_type", "")).lower()
    if kind == DiffusionConfig.model_type:
        return DiffusionConfig.from_dict(raw)
    if kind == "mdlm":
        absent = [key for key in _SIZES if key not in raw]
        if absent:
            raise UserError(f"{path} lacks {', '.join(absent)}; an MDLM config needs them")
        return DiffusionConfig(**{key: raw[key] for key in _SIZES}, process="absorbing")
    raise UserError(
        f"{path} has model_type {raw.get('model_type')!r}; this version loads 'idlm' and 'mdlm'"
    )


def _clean_name(name: str) -> str:
    for prefix in _PREFIXES:
        name = name.replace(prefix, "")
    return name


def read_weights(folder: Path) -> dict[str, Tensor]:
    """All tensors of ``model.safetensors`` or its shards, under their canonical names.

    Raises:
        UserError: if there are none, or a file is truncated or corrupt.
    """
    index = folder / "model.safetensors.index.json"
    if index.exists():
        try:
            listed = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            shards: Iterable[str] = sorted(set(listed.values()))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{index} lists no shards ({error!r}); download it again") from error
    else:
        shards = ["model.safetensors"]
    weights: dict[str, Tensor] = {}
    for shard in shards:
        path = folder / Path(shard).name  # a name from outside never leaves the folder
        if not path.exists():
            raise UserError(f"{folder} has no {path.name}; download the checkpoint again")
        try:
            tensors = load_file(path)
        except (SafetensorError, OSError, ValueError) as error:
            raise UserError(
                f"{path} is truncated or corrupt ({error}); download it again"
            ) from error
        weights.update({_clean_name(name): tensor for name, tensor in tensors.items()})
    return weights


def check_names(model: torch.nn.Module, weights: dict[str, Tensor], source: str) -> None:
    """Compare names and shapes with the model's, all differences in one message.

    Raises:
        UserError: listing missing, unexpected and wrongly shaped parameters.
    """
    expected = model.state_dict()
    shapes = [
        f"{name} is {tuple(weights[name].shape)} instead of {tuple(expected[name].shape)}"
        for name in expected
        if name in weights and weights[name].shape != expected[name].shape
    ]
    groups = {
        "missing": sorted(expected.keys() - weights.keys()),
        "unexpected": sorted(weights.keys() - expected.keys()),
        "wrongly shaped": shapes,
    }
    told = "; ".join(f"{kind}: {', '.join(names)}" for kind, names in groups.items() if names)
    if told:
        raise UserError(f"the weights in {source} do not fit its config.json: {told}")


def load(
    path_or_hub_id: str | Path,
    *,
    revision: str | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
) -> DiffusionLM:
    """Load a denoiser or generator in eval mode.

    Args:
        path_or_hub_id: a local folder, the name of a bundled model, or a hub id.
        revision: hub revision.
        device: where to put it; the CPU by default.
        dtype: floating dtype of the weights; fp32 by default, whatever the file holds.

    Raises:
        UserError: if it cannot be found, read, or does not fit its own configuration.
    """
    folder = fetch(path_or_hub_id, "*.json", "*.safetensors", "*.txt", "*.model", revision=revision)
    config = read_config(folder)
    model = DiffusionLM(config)
    weights = read_weights(folder)
    check_names(model, weights, str(path_or_hub_id))
    model.load_state_dict(weights, strict=True)
    model.name_or_path = str(path_or_hub_id)
    return model.to(device=device or "cpu", dtype=dtype or torch.float32).eval()


def load_tokenizer(path_or_hub_id: str | Path, *, revision: str | None = None) -> Any:
    """The checkpoint's own tokenizer, GPT-2's for a published one without.

    Raises:
        UserError: if neither can be had.
    """
    from transformers import AutoTokenizer

    folder = fetch(path_or_hub_id, "*.json", "*.txt", "*.model", revision=revision)
    if any((folder / name).exists() for name in ("tokenizer.json", "vocab.json")):
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    if (folder / "config.json").exists() and read_config(folder).vocab_size == 50258:
        gpt2 = fetch("gpt2", "tokenizer*.json", "vocab.json", "merges.txt")
        return AutoTokenizer.from_pretrained(gpt2, trust_remote_code=False)
    raise UserError(
        f"{path_or_hub_id} has no tokenizer.json and is not of GPT-2's vocabulary; "
        "put the tokenizer's files beside its config.json"
    )


def decode(tokenizer: Any, tokens: Tensor) -> list[str]:
    """Text of token rows ``[N, L]``; a token that is still masked shows as ``[MASK]``."""
    texts = []
    for row in tokens.tolist():
        pieces: list[str] = []
        known: list[int] = []
        for token in row:
            if token < len(tokenizer):
                known.append(token)
                continue
            pieces += [tokenizer.decode(known), "[MASK]"]
            known = []
        texts.append("".join([*pieces, tokenizer.decode(known)]))
    return texts
