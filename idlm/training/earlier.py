"""A run that starts anew in the folder of an earlier one moves its checkpoints aside."""

from __future__ import annotations

import sys
from itertools import count
from pathlib import Path
from typing import Any, cast

import lightning as L
from lightning.pytorch.callbacks import Callback

from idlm.errors import UserError
from idlm.training.checkpoint_io import SUFFIX

_REMEDY = "move them away, give this run a folder of its own, or go on from one with --ckpt_path"


class KeepEarlierCheckpoints(Callback):
    """Before the first update, move the checkpoints of an earlier run to a folder beside theirs.

    A run that goes on from a checkpoint moves nothing, and neither does one that fails before its
    first update. ``idlm fit`` adds this by itself, and holds the locks of the folders meanwhile; it
    must come before whatever writes checkpoints.
    """

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Move them on the main process, while the others wait.

        Raises:
            UserError: if they cannot be moved; then all are where they were.
        """
        if trainer.ckpt_path is not None:
            return
        if trainer.is_global_zero:
            callbacks = cast(list[Any], trainer.checkpoint_callbacks)
            folders = [str(getattr(callback, "dirpath", None) or "") for callback in callbacks]
            for folder in dict.fromkeys(folders):
                if folder and "://" not in folder:
                    _say(Path(folder), moved_aside(folder))
        # each of them writes its part of a checkpoint that is a folder
        trainer.strategy.barrier()


def moved_aside(folder: str | Path) -> Path | None:
    """Rename the checkpoints in a folder into the first free one of ``FOLDER.1``, ``FOLDER.2``, ...

    Args:
        folder: of checkpoints, files or folders; those right in it move, under their names.

    Returns:
        Where they are now; None if there were none.

    Raises:
        UserError: if they cannot be moved; then all are where they were.
    """
    folder = Path(folder)
    found = sorted(folder.glob(f"*{SUFFIX}"))
    if not found:
        return None
    moved: list[Path] = []
    target = None
    try:
        target = _new_folder(folder)
        for path in found:
            path.rename(target / path.name)
            moved.append(path)
    except OSError as error:
        for path in moved:
            (cast(Path, target) / path.name).rename(path)
        if target is not None:
            target.rmdir()
        raise UserError(
            f"the checkpoints of an earlier run in {_shown(folder)} cannot be moved aside "
            f"({error.strerror}); {_REMEDY}"
        ) from error
    return target


def _new_folder(folder: Path) -> Path:
    """The first free name, taken: two runs cannot get the same one."""
    for number in count(1):
        target = folder.with_name(f"{folder.name}.{number}")
        try:
            target.mkdir()
        except FileExistsError:
            continue
        return target
    raise AssertionError("numbers do not end")


def _say(folder: Path, target: Path | None) -> None:
    if target is not None:
        print(
            f"idlm: the checkpoints of an earlier run in {_shown(folder)} are now in "
            f"{_shown(target)}; --ckpt_path last continues a run",
            file=sys.stderr,
        )


def _shown(folder: Path) -> Path:
    """As the user would name it: Lightning makes every folder absolute."""
    here = Path.cwd()
    return folder.relative_to(here) if folder.is_relative_to(here) else folder
