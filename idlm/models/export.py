"""Write Hugging Face folders: safetensors, config, tokenizer, model card, all or nothing."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from idlm.errors import UserError
from idlm.models.layouts import config_json
from idlm.models.modeling import DiffusionLM


def export_folder(
    model: DiffusionLM,
    folder: str | Path,
    *,
    tokenizer: Any = None,
    card: str | None = None,
    dtype: torch.dtype = torch.float32,
    layout: str = "idlm",
) -> Path:
    """Write a checkpoint that :func:`idlm.load` and the hub understand.

    The folder appears under its name only when it is complete; a checkpoint that is there is
    replaced.

    Args:
        model: the network; its weights are saved under the published names.
        folder: where to.
        tokenizer: saved beside the weights when given.
        card: Markdown of the model card.
        dtype: floating dtype of the saved weights.
        layout: ``idlm``, or the published ``mdlm`` or ``duo`` (:mod:`idlm.models.layouts`).

    Returns:
        The folder.

    Raises:
        UserError: if the folder holds something else than a checkpoint, the layout cannot
            represent the network, or the dtype cannot hold its weights.
    """
    config = config_json(model.config, layout, dtype)
    weights = _weights(model, dtype)
    with replacing(folder) as staging:
        save_file(weights, staging / "model.safetensors", metadata={"format": "pt"})
        text = json.dumps(config, indent=2, sort_keys=True) + "\n"
        (staging / "config.json").write_text(text, encoding="utf-8")
        if tokenizer is not None:
            tokenizer.save_pretrained(staging)
        if card is not None:
            (staging / "README.md").write_text(card, encoding="utf-8")
    return Path(folder).absolute()


@contextmanager
def replacing(folder: str | Path) -> Iterator[Path]:
    """An empty folder to write a checkpoint into, put in the place of ``folder`` at the end.

    If the body fails, what was there stays as it was and what was written is removed.

    Raises:
        UserError: as :func:`check_replaceable`.
    """
    target = check_replaceable(folder)
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        yield staging
        os.chmod(staging, 0o755)
        for path in staging.iterdir():  # safetensors writes for the owner alone
            os.chmod(path, 0o644)
        _swap(staging, target)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise


def check_replaceable(folder: str | Path) -> Path:
    """The folder as an absolute path, if an export may take its place.

    Raises:
        UserError: if it is a file, or a folder with files but no checkpoint.
    """
    target = Path(folder).absolute()
    if target.exists() and not target.is_dir():
        raise UserError(f"{folder} is a file; name a new folder, or a checkpoint to replace")
    if target.is_dir() and any(target.iterdir()) and not (target / "config.json").is_file():
        raise UserError(
            f"{folder} holds files but no config.json, so it is no earlier export and is left "
            "alone; name a new or empty folder"
        )
    return target


def _weights(model: DiffusionLM, dtype: torch.dtype) -> dict[str, Tensor]:
    """The tensors of the file; buffers, the rotary frequencies, in fp32 whatever the dtype."""
    buffers = {name for name, _ in model.named_buffers()}
    weights = {}
    for name, value in model.state_dict().items():
        # half precision would bend the positions
        wanted = torch.float32 if name in buffers else dtype
        stored = value.to(wanted) if value.is_floating_point() else value
        if not torch.isfinite(stored).all():
            broken = not torch.isfinite(value).all()
            raise UserError(
                f"{name} has no finite value in {str(wanted).removeprefix('torch.')}; "
                + ("its weights are broken" if broken else "choose bfloat16 or float32")
            )
        weights[name] = stored.cpu().contiguous()
    return weights


def _swap(staging: Path, target: Path) -> None:
    """Put ``staging`` in the place of ``target``; a folder that was there goes last."""
    if not target.exists():
        os.replace(staging, target)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{target.name}.old.", dir=target.parent))
    os.replace(target, old / "old")
    try:
        os.replace(staging, target)
    except BaseException:
        os.replace(old / "old", target)
        raise
    finally:
        shutil.rmtree(old, ignore_errors=True)
