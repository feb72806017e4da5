"""Tensors of a checkpoint folder under their canonical names, and whether they fit the network."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from idlm.errors import UserError

# what torch.compile and DistributedDataParallel put between the parts of a name
_WRAPPERS = {"_orig_mod", "module"}
_PARTS = ("vocab_embed", "sigma_map", "rotary_emb", "blocks", "output_layer", "latent")
_EMBEDDING = "backbone.vocab_embed.embedding"
_ROTARY = "backbone.rotary_emb.inv_freq"


def canonical_name(name: str) -> str:
    """The name in our state dict: without wrappers, the network under one ``backbone.``.

    A published network may be stored bare, or twice wrapped (``backbone.backbone.``: a hub model
    that is itself the backbone of a training module). A name that is no part of the network is
    returned as it is, so that a message shows it as the file has it.
    """
    parts = [part for part in name.split(".") if part not in _WRAPPERS]
    inner = list(parts)
    while inner and inner[0] == "backbone":
        inner.pop(0)
    known = bool(inner) and inner[0] in _PARTS
    return ".".join(["backbone", *inner] if known else parts)


def weight_files(folder: Path) -> list[Path]:
    """``model.safetensors``, or the shards that its index lists.

    Raises:
        UserError: if one is missing or the index is corrupt.
    """
    index = folder / "model.safetensors.index.json"
    names = {"model.safetensors"}
    if index.exists():
        try:
            names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
            paths = [folder / Path(name).name for name in sorted(names)]  # never outside the folder
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise UserError(f"{index} lists no shards ({error!r}); download it again") from error
    else:
        paths = [folder / "model.safetensors"]
    for path in paths:
        if path.exists():
            continue
        if not index.exists() and any(folder.glob("*.bin")):
            raise UserError(
                f"{folder} has its weights only as a pickle (.bin), which is not read; save the "
                "tensors as model.safetensors with safetensors.torch.save_file"
            )
        raise UserError(f"{folder} has no {path.name}; download the checkpoint again")
    return paths


@contextmanager
def _opened(path: Path) -> Iterator[safe_open]:
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path} is truncated or corrupt ({error}); download it again") from error


def read_weights(folder: Path) -> dict[str, Tensor]:
    """All tensors of a folder under their canonical names.

    Raises:
        UserError: if there are none, a file is truncated or corrupt, or two are of one name.
    """
    weights: dict[str, Tensor] = {}
    for path in weight_files(folder):
        with _opened(path) as file:
            for name in file.keys():  # noqa: SIM118 - not a dictionary
                canonical = canonical_name(name)
                if canonical in weights:
                    raise UserError(
                        f"{path} holds {canonical} a second time, as {name}; keep one of the two"
                    )
                weights[canonical] = file.get_tensor(name)
    return weights


def embedding_rows(folder: Path) -> int:
    """V as the stored embedding has it, without reading the tensors.

    Raises:
        UserError: if there is no embedding, or a file is truncated or corrupt.
    """
    for path in weight_files(folder):
        with _opened(path) as file:
            for name in file.keys():  # noqa: SIM118 - not a dictionary
                if canonical_name(name) == _EMBEDDING:
                    return int(file.get_slice(name).get_shape()[0])
    raise UserError(f"the weights in {folder} hold no {_EMBEDDING}, so their vocabulary is unknown")


def fill(model: nn.Module, weights: Mapping[str, Tensor], source: str) -> None:
    """Put the weights into the network, all of them or none.

    Args:
        model: a :class:`idlm.models.DiffusionLM`.
        weights: tensors under canonical names; any floating dtype.
        source: what to call the checkpoint in a message.

    Raises:
        UserError: listing all that is missing, unexpected, wrongly shaped or not floating point.
    """
    weights = dict(weights)
    rotary = model.state_dict()[_ROTARY]
    stored = weights.get(_ROTARY)
    if stored is None:
        weights[_ROTARY] = rotary  # a buffer that follows from the sizes; some files leave it out
    elif stored.shape == rotary.shape:
        half = stored.dtype in (torch.float16, torch.bfloat16)
        if not torch.allclose(stored.float(), rotary, rtol=1e-2 if half else 1e-5, atol=0.0):
            raise UserError(
                f"{_ROTARY} in {source} is not the table of base 10000 that every network of the "
                "family has; the checkpoint is of another kind, or corrupt"
            )
        if half:
            weights[_ROTARY] = rotary  # rounded angles would be off by radians at position 1000
    check_names(model, weights, source)
    model.load_state_dict(weights, strict=True)


def check_sizes(model: nn.Module, weights: Mapping[str, Tensor], source: str) -> None:
    """:func:`check_names` on a network without memory, whose rotary table may be left out.

    Raises:
        UserError: as :func:`check_names`.
    """
    check_names(model, {_ROTARY: model.state_dict()[_ROTARY], **weights}, source)


def check_names(model: nn.Module, weights: Mapping[str, Tensor], source: str) -> None:
    """Compare names and shapes with the model's, all differences in one message.

    Raises:
        UserError: listing missing, unexpected, wrongly shaped and not floating parameters.
    """
    expected = model.state_dict()
    both = [name for name in expected if name in weights]
    groups = {
        "missing": sorted(expected.keys() - weights.keys()),
        "unexpected": sorted(weights.keys() - expected.keys()),
        "wrongly shaped": [
            f"{name} is {tuple(weights[name].shape)} instead of {tuple(expected[name].shape)}"
            for name in both
            if weights[name].shape != expected[name].shape
        ],
        "not floating point": [
            f"{name} is {str(weights[name].dtype).removeprefix('torch.')}"
            for name in both
            if not weights[name].is_floating_point()
        ],
    }
    told = "; ".join(f"{kind}: {', '.join(names)}" for kind, names in groups.items() if names)
    if told:
        raise UserError(f"the weights in {source} do not fit its configuration: {told}")
