"""A ``metrics.csv`` that a resumed run goes on in: every step once, none lost.

Lightning 2.6's logger removes a ``metrics.csv`` that it finds, starts a new list of columns, and
writes the file in place when a column is added. So a run that is continued in the same folder (a
fixed ``version``) would lose what it logged before, and one killed at the wrong moment everything.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import lightning as L
from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter

from idlm.errors import UserError
from idlm.samples import replace_file

# of every row, whatever is logged
_COMMON = {"step", "epoch"}


class ContinuedCSVLogger(CSVLogger):
    """Lightning's ``CSVLogger`` that keeps what the same folder holds.

    ``idlm fit`` uses it wherever a configuration says ``CSVLogger``. A Python program gives it to
    its trainer together with :class:`ContinueLogs`, which drops the rows that a resumed run makes
    again.

    Args:
        save_dir, name, version, prefix, flush_logs_every_n_steps: as Lightning's.
        file: name of the file; ``metrics.csv`` unless several kinds of runs share the folder.
    """

    def __init__(self, save_dir: Any, *args: Any, file: str = "metrics.csv", **kwargs: Any) -> None:
        super().__init__(save_dir, *args, **kwargs)
        self.file = file

    @classmethod
    def like(cls, logger: CSVLogger, *, command: str) -> ContinuedCSVLogger:
        """The same logger, for ``fit``, ``validate`` or ``test``.

        Only ``fit`` has a ``metrics.csv`` in a folder that is named by the configuration: what the
        others measure goes to ``validate.csv`` or ``test.csv`` there.
        """
        version = logger._version
        shared = version is not None and command != "fit"
        return cls(
            logger.save_dir,
            name=logger.name,
            version=version,
            prefix=logger._prefix,
            flush_logs_every_n_steps=logger._flush_logs_every_n_steps,
            **({"file": f"{command}.csv"} if shared else {}),
        )

    @property
    @rank_zero_experiment
    def experiment(self) -> ContinuedWriter:
        """What writes the files, made when it is first asked for, on the main process."""
        if self._experiment is None:
            self._experiment = ContinuedWriter(self.log_dir, self.file)
        return self._experiment  # type: ignore[return-value]


class ContinuedWriter(ExperimentWriter):
    """Appends to the file that is there; whenever it has to be written anew, that is atomic.

    Args:
        log_dir: folder of the file, made if need be.
        file: its name.
    """

    def __init__(self, log_dir: str, file: str = "metrics.csv") -> None:
        super().__init__(log_dir)
        self.metrics_file_path = str(Path(log_dir) / file)
        self._shares = file != self.NAME_METRICS_FILE
        self._logged: tuple[int, set[str]] = (-1, set())
        self.metrics_keys, rows = self._read()
        if self._shares and rows:
            self._write(rows)  # without a line that was cut off, behind which none can follow

    def _check_log_dir_exists(self) -> None:
        """Lightning removes the file here."""

    def log_hparams(self, params: dict[str, Any]) -> None:
        """Write ``hparams.yaml``; a validation leaves that of the training in its place."""
        if not (self._shares and (Path(self.log_dir) / self.NAME_HPARAMS_FILE).exists()):
            super().log_hparams(params)

    def log_metrics(self, metrics_dict: Mapping[str, Any], step: int | None = None) -> None:
        """Take a row, unless all of its values have just been logged for that step.

        Args:
            metrics_dict: name to number.
            step: counted from 0.
        """
        names = set(metrics_dict) - _COMMON
        if step is not None:
            known = self._logged[1] if self._logged[0] == step else set()
            if names and names <= known:
                return
            self._logged = (step, known | names)
        super().log_metrics(dict(metrics_dict), step)

    def continue_from(self, step: int) -> None:
        """Drop the rows of ``step`` and later ones, which are about to be made again.

        A row that was being written when a run was killed goes, too. A run that starts anew leaves
        the file of the former one beside its own, as ``NAME.previous.csv``.
        """
        self.metrics_keys, rows = self._read()
        path = Path(self.metrics_file_path)
        if step > 0 and rows:
            self._write(row for row in rows if _step(row) < step)
            return
        self.metrics_keys = []
        if rows:
            path.replace(path.with_name(f"{path.stem}.previous{path.suffix}"))
        path.unlink(missing_ok=True)

    def _rewrite_with_new_header(self, fieldnames: list[str]) -> None:
        """Write what is there with more columns."""
        self._write(self._read()[1])

    def _read(self) -> tuple[list[str], list[dict[str, str]]]:
        """Columns and complete rows of the file; none of one that is missing."""
        path = Path(self.metrics_file_path)
        text = path.read_bytes().decode("utf-8", "replace") if path.exists() else ""
        # what stands behind the last newline was being written when a run was killed, and a
        # machine that lost its power leaves zeros
        text = text[: text.rfind("\n") + 1].replace("\0", "")
        try:
            table = csv.DictReader(io.StringIO(text, newline=""))
            rows = [row for row in table if None not in row and None not in row.values()]
            return list(table.fieldnames or []), rows
        except csv.Error as error:
            raise UserError(
                f"{path} is no log of a run ({error}); move it away, or log elsewhere with "
                "--trainer.logger.init_args.version"
            ) from error

    def _write(self, rows: Iterable[Mapping[str, Any]]) -> None:
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, fieldnames=self.metrics_keys, restval="")
        writer.writeheader()
        writer.writerows(rows)
        replace_file(self.metrics_file_path, [text.getvalue()])


class ContinueLogs(Callback):
    """Lets every :class:`ContinuedCSVLogger` of a run go on where its checkpoint stands.

    Each row is written before a checkpoint of its step is, so that a run killed in between has it.
    ``idlm fit`` adds it by itself; it must come before every ``ModelCheckpoint``.
    """

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Drop the rows that this run makes again; the checkpoint has been loaded."""
        for logger in trainer.loggers if trainer.is_global_zero else []:
            if isinstance(logger, ContinuedCSVLogger):
                logger.experiment.continue_from(trainer.global_step)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any, **kwargs: Any
    ) -> None:
        """Log the update now; what Lightning logs of it later is the same row."""
        if not trainer._logger_connector.should_update_logs:
            return
        row = current_metrics(trainer)
        for logger in trainer.loggers if row else []:
            if isinstance(logger, ContinuedCSVLogger):
                logger.log_metrics(row, step=trainer.global_step - 1)  # steps of logs are from 0
                logger.save()


def current_metrics(trainer: L.Trainer) -> dict[str, Any]:
    """What Lightning is about to log of this update, and no value of an earlier validation."""
    metrics = trainer._logger_connector.metrics["log"]
    values = {name: float(value) for name, value in metrics.items()}
    return {**values, "epoch": trainer.current_epoch} if values else {}


def _step(row: Mapping[str, str]) -> float:
    try:
        return float(row["step"])
    except (KeyError, ValueError):  # no row of ours
        return -1.0
