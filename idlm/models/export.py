"""Write Hugging Face folders: safetensors, config, tokenizer, model card, all or nothing."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from idlm.models.modeling import DiffusionLM


def export_folder(
    model: DiffusionLM,
    folder: str | Path,
    *,
    tokenizer: Any = None,
    card: str | None = None,
    dtype: torch.dtype = torch.float32,
) -> Path:
    """Write a checkpoint that :func:`idlm.load` and the hub understand.

    The folder appears under its name only when it is complete; one that is there is replaced.

    Args:
        model: the network; its weights are saved under the published names.
        folder: where to.
        tokenizer: saved beside the weights when given.
        card: Markdown of the model card.
        dtype: floating dtype of the saved weights.

    Returns:
        The folder.
    """
    target = Path(folder)
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        weights = {
            name: (value.to(dtype) if value.is_floating_point() else value).cpu().contiguous()
            for name, value in model.state_dict().items()
        }
        # rotary frequencies keep fp32: half precision would bend the positions
        for name, value in model.state_dict().items():
            if name.endswith("inv_freq"):
                weights[name] = value.float().cpu()
        save_file(weights, staging / "model.safetensors", metadata={"format": "pt"})
        config = model.config.to_diff_dict()
        config.update(
            model_type=model.config.model_type,
            architectures=[type(model).__name__],
            dtype=str(dtype).removeprefix("torch."),
        )
        for name in (
            "vocab_size",
            "model_length",
            "hidden_dim",
            "cond_dim",
            "n_blocks",
            "n_heads",
            "dropout",
            "time_conditioning",
            "process",
            "schedule",
            "schedule_eps",
            "latent_global",
            "latent_position",
        ):
            config[name] = getattr(model.config, name)
        text = json.dumps(config, indent=2, sort_keys=True) + "\n"
        (staging / "config.json").write_text(text, encoding="utf-8")
        if tokenizer is not None:
            tokenizer.save_pretrained(staging)
        if card is not None:
            (staging / "README.md").write_text(card, encoding="utf-8")
        os.chmod(staging, 0o755)
        for path in staging.iterdir():  # safetensors writes for the owner alone
            os.chmod(path, 0o644)
        _swap(staging, target)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    return target


def _swap(staging: Path, target: Path) -> None:
    """Put ``staging`` in the place of ``target``; a folder that was there goes last."""
    if not target.exists():
        os.replace(staging, target)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{target.name}.old.", dir=target.parent))
    os.replace(target, old / "old")
    os.replace(staging, target)
    shutil.rmtree(old, ignore_errors=True)
