"""Locks between processes: held while the owner lives, and gone with it."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from idlm.errors import UserError


@contextmanager
def hold(path: Path, *, wait: bool = True) -> Iterator[bool]:
    """Hold the lock file ``path``; the system lets go of it when the process ends, however it ends.

    Args:
        path: made if it is not there, removed at the end.
        wait: for another owner; otherwise the block runs without the lock.

    Yields:
        Whether the lock is held.

    Raises:
        UserError: if the file cannot be made.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = _locked(path, wait)
    except OSError as error:
        raise UserError(
            f"{path} cannot be made ({error.strerror}); name an output where you may write"
        ) from error
    if file is None:
        yield False
        return
    try:
        yield True
    finally:
        path.unlink(missing_ok=True)
        os.close(file)


def _locked(path: Path, wait: bool) -> int | None:
    """A descriptor that holds the lock on the file that ``path`` names now."""
    while True:
        # a link in a folder of several people could lead to somebody's file
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            # the owner before may have removed the file while this process waited for it
            if path.exists() and os.path.samestat(os.fstat(file), os.stat(path)):
                return file
        except BlockingIOError:
            os.close(file)
            return None
        except FileNotFoundError:
            pass
        os.close(file)
