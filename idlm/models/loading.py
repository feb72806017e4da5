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
from idlm.models.weights import check_names, fill, read_weights

__all__ = ["build", "check_names", "decode", "fetch", "load", "load_tokenizer", "read_config"]


def load(
    path_or_hub_id: str | Path,
    *,
    revision: str | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    raw: bool = False,
) -> DiffusionLM:
    """Load a denoiser or generator in eval mode.

    Args:
        path_or_hub_id: a local folder, a Lightning ``.ckpt`` file, the name of a bundled model,
            or a hub id; every layout of ``docs/loading.md``.
        revision: branch, tag or commit on the hub.
        device: where to put it; the CPU by default.
        dtype: floating dtype of the weights; fp32 by default, whatever the file holds.
        raw: of a Lightning file the raw weights instead of their moving average.

    Raises:
        UserError: if it cannot be found, read, or does not fit its own configuration; if there is
            no such device; if ``raw`` is asked of a checkpoint that holds one set of weights.
    """
    source = str(path_or_hub_id)
    place = pick_device(device) if isinstance(device, str) else device or torch.device("cpu")
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
    return build(config, weights, source).to(device=place, dtype=dtype or torch.float32)


def build(config: DiffusionConfig, weights: dict[str, Tensor], source: str) -> DiffusionLM:
    """The network of a configuration with these weights, fp32 on the CPU, in eval mode.

    Args:
        config: sizes and process.
        weights: tensors under canonical names (:mod:`idlm.models.weights`).
        source: what the checkpoint is called, in messages and as ``name_or_path``.

    Raises:
        UserError: if the two do not fit.
    """
    model = DiffusionLM(config)
    fill(model, weights, source)
    model.name_or_path = source
    return model.eval()
