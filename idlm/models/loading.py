"""Load any checkpoint of the family: strictly, without remote code, without flash-attn."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from idlm.devices import pick_device
from idlm.errors import UserError
from idlm.models.config import DiffusionConfig
from idlm.models.files import WEIGHTS, fetch, read_config
from idlm.models.modeling import DiffusionLM
from idlm.models.tokenizers import decode, load_tokenizer
from idlm.models.weights import check_names, check_sizes, fill, read_weights

__all__ = ["build", "check_names", "decode", "fetch", "load", "load_tokenizer", "read_config"]


def load(
    path_or_hub_id: str | Path,
    *,
    revision: str | None = None,
    device: str | int | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    raw: bool = False,
) -> DiffusionLM:
    """Load a denoiser or generator in eval mode.

    Args:
        path_or_hub_id: a local folder, a Lightning ``.ckpt`` file, the name of a bundled model,
            or a hub id; every layout of ``docs/loading.md``.
        revision: branch, tag or commit on the hub.
        device: where to put it, by name, number of a GPU or ``torch.device``; the CPU by default.
        dtype: floating dtype of the weights, or its name; fp32 by default, whatever the file holds.
        raw: of a Lightning file the raw weights instead of their moving average.

    Raises:
        UserError: if it cannot be found, read, or does not fit its own configuration; if there is
            no such device or floating dtype; if ``raw`` is asked of a checkpoint that holds one
            set of weights.
    """
    source = str(path_or_hub_id)
    if isinstance(device, int):
        device = f"cuda:{device}"
    place = device if isinstance(device, torch.device) else pick_device(device or "cpu")
    wanted = floating_dtype(dtype or torch.float32)
    path = fetch(path_or_hub_id, *WEIGHTS, revision=revision)
    if path.is_file():
        from idlm.models.lightning_ckpt import read_lightning

        config, weights = read_lightning(path, raw=raw)
    elif raw:
        raise UserError(
            f"{source} has no raw weights: only a Lightning .ckpt file holds them beside their "
            "moving average; leave raw out"
        )
    else:
        config, weights = read_config(path), read_weights(path)
    model = build(config, weights, source)
    model.revision = revision
    return model.to(device=place, dtype=wanted)


def floating_dtype(dtype: object) -> torch.dtype:
    """A floating dtype, given as it is or by its name.

    Raises:
        UserError: if it is none.
    """
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise UserError(f"dtype is {dtype!r}; use float32, float64, float16 or bfloat16 of torch")
    return found


def build(config: DiffusionConfig, weights: dict[str, Tensor], source: str) -> DiffusionLM:
    """The network of a configuration with these weights, fp32 on the CPU, in eval mode.

    Args:
        config: sizes and process.
        weights: tensors under canonical names (:mod:`idlm.models.weights`).
        source: what the checkpoint is called, in messages and as ``name_or_path``.

    Raises:
        UserError: if the two do not fit.
    """
    try:
        with torch.device("meta"):  # before memory is asked for sizes that do not fit
            outline = DiffusionLM(config)
    except RuntimeError as error:
        raise UserError(
            f"{source} states sizes beyond any machine's ({error}); download its config.json again"
        ) from error
    check_sizes(outline, weights, source)
    model = DiffusionLM(config)
    fill(model, weights, source)
    model.name_or_path = source
    return model.eval()
