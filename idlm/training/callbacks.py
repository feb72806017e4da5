"""Callbacks of the trainings."""

from __future__ import annotations

import math
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_warn

from idlm.errors import UserError


class CollapseGuard(Callback):
    """Stop a distillation whose student collapses: entropy at masked positions below a floor.

    A student that chases a stale fake model concentrates on few tokens: its loss keeps falling,
    its text repeats itself. Checkpoints written before stay, so the best one is kept.

    Args:
        floor: nats per masked token; the run stops when the moving average falls below it.
        window: student updates that the average covers.
        monitor: name of the logged entropy.
    """

    def __init__(
        self, floor: float, window: int = 20, monitor: str = "train/student_entropy"
    ) -> None:
        if floor < 0 or window < 1:
            raise UserError(
                f"floor is {floor} and window is {window}; the floor is in nats, 0 or more, and "
                "the window at least 1 update"
            )
        self.floor = floor
        self.window = window
        self.monitor = monitor
        self.history: list[float] = []
        self._seen = -1

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any, **kwargs: Any
    ) -> None:
        """Take the entropy of a student update into the average, and stop the run below the floor.

        Raises:
            UserError: if the training logs nothing under ``monitor``.
        """
        updates = int(getattr(pl_module, "student_updates", 0))
        value = trainer.callback_metrics.get(self.monitor)
        if updates in (0, self._seen):
            return
        if value is None:
            raise UserError(
                f"CollapseGuard watches {self.monitor!r}, which this training does not log; "
                "leave the callback out, or give the name of an entropy that is logged"
            )
        self._seen = updates
        if not math.isfinite(float(value)):  # nothing was masked in that batch
            return
        self.history = [*self.history[-self.window + 1 :], float(value)]
        average = sum(self.history) / len(self.history)
        if len(self.history) == self.window and average < self.floor:
            pl_module.collapsed = True  # type: ignore[assignment]
            trainer.should_stop = True
            rank_zero_warn(
                f"the student is collapsing: its entropy at masked positions averaged "
                f"{average:.3f} nats over the last {self.window} updates, below the floor of "
                f"{self.floor:g}; stopped after {updates} student updates, checkpoints are kept. "
                "Lower lr, raise fake_lr or fake_per_student, or use an anchor"
            )

    def state_dict(self) -> dict[str, Any]:
        """The moving average resumes with the run."""
        return {"history": self.history, "seen": self._seen}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the moving average of the saved run."""
        self.history = list(state_dict["history"])
        self._seen = state_dict["seen"]
