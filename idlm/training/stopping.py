"""A run that is asked to stop saves itself first: preemption (SIGTERM) and Ctrl-C (SIGINT)."""

from __future__ import annotations

import signal
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback, ModelCheckpoint

from idlm.errors import Stopped
from idlm.training.csv_log import current_metrics

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class SaveOnSignal(Callback):
    """On SIGTERM or Ctrl-C: finish the update, save ``last.ckpt``, end with a sentence.

    The checkpoint goes where the run's ``ModelCheckpoint`` with ``save_last`` writes its own, or to
    ``checkpoints/`` in the trainer's folder. A validation that is under way is broken off and not
    made up for. The same signal a second time acts at once, as if this callback were not there.

    ``idlm fit`` adds it by itself. With several processes one of them needs to get the signal; they
    agree after each update, and finish a validation first.

    Raises:
        Stopped: out of ``trainer.fit``, when the checkpoint is written.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[int, Any] = {}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Listen from the first update on; there is nothing to save before."""
        self.received = None
        if threading.current_thread() is not threading.main_thread():
            return  # Python lets no other thread have handlers
        for number in SIGNALS:
            # what is ignored (a job of `nohup` or `&`) stays ignored
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            signal.signal(number, signal.SIG_DFL)
            if number == signal.SIGINT:
                raise KeyboardInterrupt
            signal.raise_signal(number)
        self.received = number
        how = "Ctrl-C again" if number == signal.SIGINT else "the signal again"
        name = signal.Signals(number).name
        # os.write would be safer in a handler, but Python runs it between two instructions
        print(
            f"idlm: {name}: saving after this update; {how} stops at once",
            file=sys.stderr,
            flush=True,
        )

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any, **kwargs: Any
    ) -> None:
        """Save and stop, if any process was asked to."""
        asked = self.received is not None
        if trainer.world_size > 1:
            asked = trainer.strategy.reduce_boolean_decision(asked, all=False)
        # the last update ends the run anyway, with its export
        if asked and not trainer.should_stop:
            _log(trainer)
            self._stop(trainer)

    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any, **kwargs: Any
    ) -> None:
        """The same within a validation, where processes that differ in batches could not agree."""
        if self.received is not None and trainer.world_size == 1 and not trainer.should_stop:
            self._stop(trainer)

    def _stop(self, trainer: L.Trainer) -> None:
        number = signal.SIGTERM if self.received is None else self.received
        path = last_checkpoint(trainer)
        trainer.save_checkpoint(path)
        raise Stopped(
            f"stopped by {signal.Signals(number).name} after step {trainer.global_step}, which is "
            f"saved; go on with --ckpt_path {path}",
            number,
        )

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Give the handlers back; exporting is not interrupted, it ends by itself."""
        self._restore()

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        """Give the handlers back."""
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}


def _log(trainer: L.Trainer) -> None:
    """What Lightning would log about this update only later."""
    metrics = current_metrics(trainer)
    for logger in trainer.loggers:
        logger.log_metrics(metrics, step=trainer.global_step - 1)  # steps of logs count from 0
        logger.save()


def last_checkpoint(trainer: L.Trainer) -> Path:
    """The file that a run is continued from."""
    name = ModelCheckpoint.CHECKPOINT_NAME_LAST + ModelCheckpoint.FILE_EXTENSION
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, ModelCheckpoint) and callback.save_last and callback.dirpath:
            return Path(callback.last_model_path or Path(callback.dirpath) / name)
    return Path(trainer.default_root_dir) / "checkpoints" / name
