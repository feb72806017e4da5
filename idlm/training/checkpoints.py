"""Which checkpoint of a distillation is worth exporting."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_warn

from idlm.training.checkpoint_io import damage


def best_checkpoint(trainer: L.Trainer) -> dict[str, Any] | None:
    """The best checkpoint written before the student collapsed, or None if none was kept.

    Monitored checkpoints come first, the best of them first; then the newest of each callback.
    Files are read as tensors and plain containers only; a damaged one is passed over, aloud.
    """
    for path in dict.fromkeys(_candidates(trainer)):
        if (wrong := damage(path)) is not None:
            rank_zero_warn(f"{path} {wrong}, so the next best checkpoint is looked for")
            continue
        checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        if not checkpoint.get("collapsed", False):
            return checkpoint
    return None


def _candidates(trainer: L.Trainer) -> Iterator[str]:
    callbacks: list[Any] = list(trainer.checkpoint_callbacks)
    for callback in callbacks:
        scores = {path: float(score) for path, score in _scores(callback).items()}
        yield from sorted(scores, key=scores.__getitem__, reverse=callback.mode == "max")
    for callback in callbacks:
        for name in ("best_model_path", "last_model_path"):
            if path := getattr(callback, name, ""):
                yield path


def _scores(callback: Any) -> dict[str, Any]:
    return getattr(callback, "best_k_models", {})
