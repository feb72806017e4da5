"""Locks between processes: held while their owner lives, and taken back by the system itself.

A lock is ``flock`` on a small file, so whatever ends the process (SIGKILL, a crash, a power cut)
frees it. Who holds it stands in the file, for the sentence that a second process is told: one that
is refused (:func:`held`, :func:`alone_in`, :func:`alone_writing`), or one that waits
(:func:`awaited`). :func:`tried` does neither.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import socket
import sys
import time
import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO

from idlm.errors import UserError

RUN_LOCK = ".idlm-run.lock"
# what file systems without locks answer
_UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)
# what they answer where another process holds the lock
_TAKEN = (errno.EWOULDBLOCK, errno.EACCES)
_LONGEST_HOLDER = 200
_LONGEST_NAME = 255
# A wait that is over by then is not worth a line.
_PATIENCE = 1.0
_ELSEWHERE = "name a place in a folder that you may write to"
_FIRST_PAUSE, _LONGEST_PAUSE = 0.01, 0.5
# A folder is lost to its last holder once or twice; more often it cannot be made at all.
_MOST_RACES = 100


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
        for folder in sorted({_resolved(Path(folder)) for folder in folders}):
            stack.enter_context(held(folder / RUN_LOCK, subject=str(folder), remedy=remedy))
        yield


@contextmanager
def alone_writing(path: str | Path, *, remedy: str) -> Iterator[None]:
    """Be the only process that makes this file or folder; a device or pipe is nobody's.

    Args:
        path: of what is to be written, as a whole.
        remedy: what to do where another process makes it, for the message.

    Raises:
        UserError: naming the process that makes it, or a folder that cannot be written.
    """
    path = Path(path)
    if path.exists() and not path.is_file() and not path.is_dir():
        yield
        return
    with held(lock_beside(path), subject=str(path), remedy=remedy):
        yield


def lock_beside(path: Path) -> Path:
    """The lock file of a file or folder, beside what its name leads to.

    Raises:
        UserError: if it leads nowhere: links in a circle, a NUL, a folder that is gone.
    """
    target = _resolved(path)
    name = f".{target.name}.lock"
    if len(os.fsencode(name)) > _LONGEST_NAME:  # the file's own name may still fit
        name = f".{hashlib.sha256(os.fsencode(target.name)).hexdigest()}.lock"
    return target.with_name(name)


def _resolved(path: Path) -> Path:
    try:
        resolved = path.resolve()
        if resolved.is_symlink():  # what Python 3.13 makes of links in a circle
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
        return resolved
    except (OSError, RuntimeError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error).partition(" from ")[0]
        raise UserError(f"{str(path)[:200]} cannot be written ({reason}); {_ELSEWHERE}") from error


@contextmanager
def held(lock: Path, *, subject: str, remedy: str) -> Iterator[None]:
    """Hold a lock file while the block runs, or refuse to run it.

    Args:
        lock: the file; its folder is made, and goes again if nothing else came into it. The file
            is removed at the end, and after a crash it is locked by nobody.
        subject: what it protects, for messages.
        remedy: what to do where it is held, for the message.

    Raises:
        UserError: if another process holds it, or the file cannot be made.
    """
    with tried(lock, subject=subject) as mine:
        if not mine:
            raise UserError(f"{subject} is in use by {_holder(lock)}; {remedy}")
        yield


@contextmanager
def awaited(
    lock: Path,
    *,
    subject: str,
    timeout: float | None = None,
    patience: float = _PATIENCE,
    remedy: str = "end it, or try again later",
    elsewhere: str = _ELSEWHERE,
) -> Iterator[None]:
    """Hold a lock file while the block runs; while another process holds it, wait.

    Args:
        lock: as for :func:`held`.
        subject: what it protects, for messages.
        timeout: seconds to wait at most; None for as long as it takes.
        patience: seconds after which a line on stderr says what is waited for.
        remedy: what to do where the time is up, for the message.
        elsewhere: what to do where the file cannot be made, for the message.

    Raises:
        UserError: if the time is up, or the file cannot be made.
    """
    made = _missing_folders(lock)
    started, said, pause = time.monotonic(), False, _FIRST_PAUSE
    while (file := _acquire(lock, subject, elsewhere)) is None:
        waited = time.monotonic() - started
        if timeout is not None and waited >= timeout:
            raise UserError(
                f"{subject} is still in use by {_holder(lock)} after {timeout:g} s; {remedy}"
            )
        if waited >= patience and not said:
            said = True
            print(f"idlm: waiting for {subject}, in use by {_holder(lock)}", file=sys.stderr)
        left = pause if timeout is None else min(pause, timeout - waited)
        time.sleep(max(left, 0.0))
        pause = min(2 * pause, _LONGEST_PAUSE)
    try:
        yield
    finally:
        _release(lock, file, made)


@contextmanager
def tried(lock: Path, *, subject: str) -> Iterator[bool]:
    """Hold a lock file while the block runs, or run it without.

    Args:
        lock: as for :func:`held`.
        subject: what it protects, for messages.

    Yields:
        Whether the lock is held; also on a file system without locks, where a line says so.

    Raises:
        UserError: if the file cannot be made.
    """
    made = _missing_folders(lock)
    file = _acquire(lock, subject)
    if file is None:
        yield False
        return
    try:
        yield True
    finally:
        _release(lock, file, made)


def _missing_folders(lock: Path) -> list[Path]:
    return [folder for folder in lock.parents if not folder.exists()]


def _release(lock: Path, file: IO[str], made: Sequence[Path]) -> None:
    if file.closed:  # in a forked child: the lock is its parent's
        return
    # still locked, so nobody else can have opened this very file in vain
    lock.unlink(missing_ok=True)
    file.close()
    with suppress(OSError):  # not empty: something was written, or another run is there
        for folder in made:
            folder.rmdir()


def _acquire(lock: Path, subject: str, elsewhere: str = _ELSEWHERE) -> IO[str] | None:
    """The locked file; None if another process holds it."""
    races = 0
    while True:
        try:
            lock.parent.mkdir(parents=True, exist_ok=True)
            file = _opened(lock)
        except OSError as error:
            gone = isinstance(error, FileNotFoundError) and not lock.parent.is_dir()
            if gone and (races := races + 1) < _MOST_RACES:
                continue  # its last holder removed the folder between our making and our opening
            # not a race: some places, such as /proc, answer so to everyone who makes a folder
            raise UserError(
                f"{subject} cannot be written ({error.strerror}); {elsewhere}"
            ) from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _UNSUPPORTED:
                _say_unsupported(lock, subject, error)
                return file
            file.close()
            if error.errno in _TAKEN:
                return None
            raise UserError(
                f"{subject} cannot be locked ({error.strerror}); {elsewhere}"
            ) from error
        if _is_still(lock, file):
            file.truncate(0)
            now = time.strftime("%Y-%m-%d %H:%M:%S")
            file.write(f"process {os.getpid()} on {socket.gethostname()}, since {now}\n")
            file.flush()
            return file
        file.close()  # its last holder removed it between our opening and our locking


def _holder(lock: Path) -> str:
    """Who holds the lock, as far as its file says so."""
    try:
        number = os.open(lock, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        with os.fdopen(number, encoding="utf-8", errors="replace") as file:
            return file.read(_LONGEST_HOLDER).strip() or "another process"
    except OSError:  # it has just let go
        return "another process"


def _say_unsupported(lock: Path, subject: str, error: OSError) -> None:
    """Once for each folder: a protocol takes hundreds of locks in one."""
    if lock.parent in _SAID:
        return
    _SAID.add(lock.parent)
    print(
        f"idlm: {subject} is on a file system without locks ({error.strerror}): a second run there "
        "would not be noticed",
        file=sys.stderr,
    )


def _opened(lock: Path) -> IO[str]:
    # a link in a folder of several people could lead to somebody's file
    number = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    file = os.fdopen(number, "r+", encoding="utf-8")
    _OPEN.add(file)
    return file


def _forget() -> None:
    """In a forked child: a lock is of the run, not of what loads data for it and may outlive it."""
    for file in list(_OPEN):
        with suppress(OSError):
            file.close()
    _OPEN.clear()


_SAID: set[Path] = set()
_OPEN: weakref.WeakSet[IO[str]] = weakref.WeakSet()
os.register_at_fork(after_in_child=_forget)


def _is_still(lock: Path, file: IO[str]) -> bool:
    """Whether the name still leads to the file that was locked."""
    try:
        return os.path.samestat(os.stat(lock), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False
