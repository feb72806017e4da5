"""One run per output: a lock that the system itself takes back when its process ends.

The lock is ``flock`` on a small file, so whatever ends the process (SIGKILL, a crash, a power cut)
frees it. Who holds it stands in the file, for the sentence that the second run is told.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import sys
import time
import weakref
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO

from idlm.errors import UserError

RUN_LOCK = ".idlm-run.lock"
# what file systems without locks answer
_UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)


@contextmanager
def alone_in(folders: Iterable[str | Path], *, remedy: str) -> Iterator[None]:
    """Be the only run that writes to these folders; they are made if need be.

    Args:
        folders: of the run.
        remedy: what to do where another run is there, for the message.

    Raises:
        UserError: naming the process that uses one of them, or a folder that cannot be written.
    """
    with ExitStack() as stack:
        # sorted: two runs that share several folders meet at the same one first
        for folder in sorted({Path(folder).resolve() for folder in folders}):
            stack.enter_context(held(folder / RUN_LOCK, subject=str(folder), remedy=remedy))
        yield


@contextmanager
def alone_writing(path: str | Path, *, remedy: str) -> Iterator[None]:
    """Be the only process that makes this file; a device or pipe is nobody's.

    Args:
        path: of the file that is to be written.
        remedy: what to do where another process makes it, for the message.

    Raises:
        UserError: naming the process that makes it, or a folder that cannot be written.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        yield
        return
    target = path.resolve()
    with held(target.with_name(f".{target.name}.lock"), subject=str(path), remedy=remedy):
        yield


@contextmanager
def held(lock: Path, *, subject: str, remedy: str) -> Iterator[None]:
    """Hold a lock file while the block runs.

    Args:
        lock: the file; its folder is made, and goes again if nothing else came into it. The file
            is removed at the end, and after a crash it is locked by nobody.
        subject: what it protects, for messages.
        remedy: what to do where it is held, for the message.

    Raises:
        UserError: if another process holds it, or the file cannot be made.
    """
    made = [folder for folder in lock.parents if not folder.exists()]
    file = _acquire(lock, subject, remedy)
    try:
        yield
    finally:
        # still locked, so nobody else can have opened this very file in vain
        lock.unlink(missing_ok=True)
        file.close()
        with suppress(OSError):  # not empty: something was written, or another run is there
            for folder in made:
                folder.rmdir()


def _acquire(lock: Path, subject: str, remedy: str) -> IO[str]:
    while True:
        try:
            lock.parent.mkdir(parents=True, exist_ok=True)
            file = _opened(lock)
        except OSError as error:
            if isinstance(error, FileNotFoundError) and not lock.parent.is_dir():
                continue  # its last holder removed the folder between our making and our opening
            raise UserError(
                f"{subject} cannot be written ({error.strerror}); name a place in a folder that "
                "you may write to"
            ) from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.seek(0)
            holder = file.read().strip() or "another process"
            file.close()
            if error.errno in _UNSUPPORTED:
                print(
                    f"idlm: {subject} is on a file system without locks ({error.strerror}): a "
                    "second run there would not be noticed",
                    file=sys.stderr,
                )
                return _opened(lock)
            raise UserError(f"{subject} is in use by {holder}; {remedy}") from None
        if _is_still(lock, file):
            file.truncate(0)
            now = time.strftime("%Y-%m-%d %H:%M:%S")
            file.write(f"process {os.getpid()} on {socket.gethostname()}, since {now}\n")
            file.flush()
            return file
        file.close()  # its last holder removed it between our opening and our locking


def _opened(lock: Path) -> IO[str]:
    # a link in a folder of several people could lead to somebody's file
    number = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    file = os.fdopen(number, "r+", encoding="utf-8")
    _OPEN.add(file)
    return file


def _forget() -> None:
    """In a forked child: a lock is of the run, not of what loads data for it and may outlive it."""
    for file in list(_OPEN):
        with suppress(OSError):
            file.close()
    _OPEN.clear()


_OPEN: weakref.WeakSet[IO[str]] = weakref.WeakSet()
os.register_at_fork(after_in_child=_forget)


def _is_still(lock: Path, file: IO[str]) -> bool:
    """Whether the name still leads to the file that was locked."""
    try:
        return os.path.samestat(os.stat(lock), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False
