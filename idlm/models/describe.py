"""What a checkpoint is: its layout, process, sizes and files."""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from idlm.models.cards import AVERAGED, RAW, UNKNOWN, Card
from idlm.models.config import SIZES
from idlm.models.files import WEIGHTS, fetch, read_json
from idlm.models.modeling import DiffusionLM
from idlm.models.published import layout_of
from idlm.models.tokenizers import mask_id
from idlm.models.weights import weight_files

_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def describe(model: DiffusionLM) -> dict[str, Any]:
    """Process, schedule, sizes and parameter counts of a network, ready for JSON."""
    config = model.config
    named = dict(model.named_parameters())
    return {
        "process": config.process,
        "mask_id": mask_id(config),
        "schedule": config.schedule,
        "schedule_eps": config.schedule_eps,
        "time_conditioning": config.time_conditioning,
        "parameters": sum(p.numel() for p in named.values()),
        "latent_parameters": sum(p.numel() for k, p in named.items() if ".latent." in k),
        **{name: getattr(config, name) for name in SIZES},
        "latent_global": config.latent_global,
        "latent_position": config.latent_position,
    }


def not_finite(model: DiffusionLM) -> list[str]:
    """Names of the parameters that hold a NaN or an infinity."""
    return [name for name, p in model.named_parameters() if not bool(torch.isfinite(p).all())]


def describe_files(
    checkpoint: str | Path, *, revision: str | None = None, raw: bool = False
) -> dict[str, Any]:
    """Layout, dtypes, size and hashes of a checkpoint's files, ready for JSON.

    Args:
        checkpoint: folder, bundled name, hub id, or path of a Lightning ``.ckpt``.
        revision: hub revision.
        raw: whether the raw weights of a ``.ckpt`` are meant.

    Raises:
        UserError: if the checkpoint cannot be found.
    """
    path = fetch(checkpoint, *WEIGHTS, revision=revision)
    if path.is_file():
        from idlm.models.lightning_ckpt import read_lightning

        _, weights = read_lightning(path, raw=raw)
        dtypes = Counter(str(value.dtype).removeprefix("torch.") for value in weights.values())
        return _files("lightning", RAW if raw else AVERAGED, dtypes, [path])
    layout = layout_of(read_json(path))
    paths = weight_files(path)
    dtypes = Counter()
    for shard in paths:
        with safe_open(shard, "pt") as file:
            found = [file.get_slice(name).get_dtype() for name in file.keys()]  # noqa: SIM118
        dtypes.update(_DTYPES.get(dtype, dtype) for dtype in found)
    return _files(layout or UNKNOWN, UNKNOWN, dtypes, paths)


def _files(layout: str, weights: str, dtypes: Counter[str], paths: list[Path]) -> dict[str, Any]:
    return {
        "layout": layout,
        "weights": weights,
        "dtype": dict(dtypes.most_common()),
        "bytes": sum(path.stat().st_size for path in paths),
        "sha256": {path.name: _sha256(path) for path in paths},
    }


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while piece := stream.read(1 << 22):
            digest.update(piece)
    return digest.hexdigest()


def method_of(card: Card | None) -> str:
    """How the weights were made, as far as a card of this toolkit says it."""
    if card is None or not card.ours:
        return UNKNOWN
    paragraphs = [part for part in card.intro.split("\n\n") if not part.startswith(("#", "```"))]
    return " ".join(paragraphs[0].split()) if paragraphs else UNKNOWN


def kind_of_weights(card: Card | None) -> str:
    """Averaged or raw, as far as a card of this toolkit says it."""
    intro = card.intro if card is not None and card.ours else ""
    return next((kind for kind in (AVERAGED, RAW) if kind in intro), UNKNOWN)
