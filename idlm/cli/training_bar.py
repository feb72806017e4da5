"""Progress bars of trainings whose loader never ends."""

from __future__ import annotations

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback, RichProgressBar
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

_SHOWN = {
    "train/student_loss": "loss {:.4f}",
    "train/student_entropy": "entropy {:.2f}",
    "train/tokens_per_second": "{:.0f} tokens/s",
    "train/mfu": "MFU {:.0%}",
}


class EndlessBar(RichProgressBar):
    """Lightning's bar without the last epoch of a run that has none (``Epoch 0/-2``)."""

    @classmethod
    def like(cls, bar: RichProgressBar) -> EndlessBar:
        """A bar with the settings of another."""
        return cls(int(bar.refresh_rate), bar._leave, bar.theme, bar._console_kwargs)

    def _get_train_description(self, current_epoch: int) -> str:
        if self.trainer.max_epochs != -1:
            return super()._get_train_description(current_epoch)
        # as wide as what a validation writes below it, so that nothing moves
        return f"Epoch {current_epoch}".ljust(len(self.validation_description))


class UpdateBar(Callback):
    """Shows student updates out of ``max_student_updates`` with what was logged last.

    Lightning's own bars count batches of an epoch, and these epochs have no end.
    """

    def __init__(self) -> None:
        self._bar: Progress | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Open the bar on the main process."""
        if not trainer.is_global_zero:
            return
        self._bar = Progress(
            TextColumn("distilling"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("updates"),
            TimeElapsedColumn(),
            TextColumn("{task.description}"),
            console=Console(stderr=True),
        )
        self._bar.start()
        self._task = self._bar.add_task("", total=pl_module.hparams["max_student_updates"])

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any, **kwargs: Any
    ) -> None:
        """Move it to the number of student updates."""
        if self._bar is None:
            return
        metrics = trainer.callback_metrics
        said = [text.format(float(metrics[k])) for k, text in _SHOWN.items() if k in metrics]
        done = int(getattr(pl_module, "student_updates", 0))
        self._bar.update(self._task, completed=done, description=", ".join(said))

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Leave the terminal as it was."""
        self._close()

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        """The same, before an error is printed."""
        self._close()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
