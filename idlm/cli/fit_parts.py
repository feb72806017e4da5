"""What ``idlm fit|validate|test`` puts into Lightning's trainer in place of its own parts."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.plugins.io import TorchCheckpointIO

from idlm.cli.training_bar import EndlessBar
from idlm.training.checkpoint_io import CheckedCheckpointIO
from idlm.training.csv_log import ContinuedCSVLogger, ContinueLogs
from idlm.training.earlier import KeepEarlierCheckpoints
from idlm.training.stopping import SaveOnSignal


def checked_trainer(trainer: Trainer, *, command: str) -> Trainer:
    """A trainer whose checkpoints are checked and kept, whose logs go on, and that a signal saves.

    Only Lightning's own parts are exchanged, in place: a configuration may name others.

    Args:
        trainer: as LightningCLI built it.
        command: ``fit``, ``validate`` or ``test``.
    """
    fitting = command == "fit"
    if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
        # a number that is asked of one checkpoint must not come from another
        trainer.strategy.checkpoint_io = CheckedCheckpointIO(fallback=fitting)
    trainer.loggers = [
        ContinuedCSVLogger.like(logger, command=command)
        if type(logger) is CSVLogger and "://" not in str(logger.save_dir)
        else logger
        for logger in trainer.loggers
    ]
    if fitting:
        callbacks = cast(Any, trainer).callbacks
        callbacks[:] = [EndlessBar.like(c) if type(c) is RichProgressBar else c for c in callbacks]
        # before checkpoints are written
        callbacks[:0] = [KeepEarlierCheckpoints(), ContinueLogs()]
        callbacks.append(SaveOnSignal())  # after it
    return trainer


def log_folders(trainer: Trainer) -> list[str]:
    """Local folders that the loggers of a trainer write to."""
    kinds = (CSVLogger, TensorBoardLogger)
    folders = [str(logger.log_dir) for logger in trainer.loggers if isinstance(logger, kinds)]
    return [folder for folder in folders if "://" not in folder]


class SaveConfig(SaveConfigCallback):
    """Writes the ``config.yaml`` of a training when its networks are there.

    So a run that is refused leaves nothing, and one that is killed a whole file. ``idlm validate``
    and ``idlm test`` write none: beside a log it says what was trained.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Nothing yet."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write it, once, in the folder of the first logger or else in that of the trainer."""
        folder = trainer.log_dir  # all processes have to ask
        if folder is None or "://" in folder:  # object stores show no half-written files
            super().setup(trainer, pl_module, "fit")
            return
        target = Path(folder) / self.config_filename
        self.config_filename = f".{target.name}.tmp"
        half = target.with_name(self.config_filename)
        try:
            if trainer.is_global_zero:
                half.unlink(missing_ok=True)  # never written through: it may be a link
            super().setup(trainer, pl_module, "fit")
            if half.exists() and trainer.is_global_zero:
                half.replace(target)
        finally:
            self.config_filename = target.name
            if trainer.is_global_zero:
                half.unlink(missing_ok=True)
