"""Checkpoint files that are complete or not there, and that show when they are damaged.

Lightning 2.6 writes a checkpoint to the system's temporary folder and then moves it, which is a
copy onto the old file wherever that folder is on another disk; and nothing is forced to the disk.
Here the new file is written beside the old one, forced out, and renamed.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, cast

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.utilities import rank_zero_warn

from idlm.errors import UserError
from idlm.models.archive import Archive
from idlm.samples import permissions

SUFFIX = ".ckpt"
# the comment of the zip archive that torch.save writes: fixed length, at the very end of the file
_MARK = b"\nidlm sha256 "
_SEAL = len(_MARK) + 64
# the last record of a zip archive: its signature, and at its end the length of the comment
_END = struct.Struct("<4s16xH")
_PIECE = 1 << 22


class CheckedCheckpointIO(TorchCheckpointIO):
    """Writes checkpoints atomically with their hash, keeps the one before, and checks on reading.

    The file appears under its name only when complete and on the disk. It ends in the SHA-256 of
    everything before (the comment of the zip archive, ``unzip -z`` prints it), so a copy of it can
    be checked anywhere. The file that it replaces stays as ``NAME.previous.ckpt``.

    ``idlm fit`` uses it by itself; a Python program gives it to its trainer: ``plugins=[...]``.
    Only single files on a local disk are its business; folders and remote checkpoints are
    Lightning's.

    Args:
        fallback: what to do about a file that is damaged or missing: go on from the newest good
            checkpoint in its folder, aloud, or refuse.
    """

    def __init__(self, *, fallback: bool = True) -> None:
        self.fallback = fallback
        self._damaged: set[Path] = set()

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None
    ) -> None:
        """Write a checkpoint; only rank 0 calls this.

        Raises:
            UserError: if it cannot be written; the file that was there is still there.
        """
        if storage_options is not None or "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        target = Path(path)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with _written(target) as file:
                sealed = _Sealed(file)
                torch.save(checkpoint, cast(IO[bytes], sealed))
                sealed.finish()
                # the rename must not reach the disk before the contents do
                file.flush()
                os.fsync(file.fileno())
                self._keep(target)
        except OSError as error:
            raise UserError(
                f"checkpoint {target} cannot be written ({error.strerror}); free some space or "
                f"give the run a folder that it may write to, and go on with --ckpt_path {target}: "
                "what was saved before is still there"
            ) from error

    def load_checkpoint(
        self,
        path: str | Path,
        map_location: Callable[..., Any] | None = lambda storage, loc: storage,
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        """Read a checkpoint after its hash was compared.

        Raises:
            UserError: if it is damaged or missing and, with ``fallback``, no other one will do.
        """
        if "://" in str(path) or Path(path).is_dir():
            return super().load_checkpoint(path, map_location, weights_only)
        wrong = damage(path)
        if wrong is not None:
            if not self.fallback:
                raise UserError(f"{path} {wrong}; name another checkpoint")
            path = self._replacement(Path(path), wrong)
        return super().load_checkpoint(path, map_location, weights_only)

    def remove_checkpoint(self, path: str | Path) -> None:
        """Remove a checkpoint and the one that was kept of that name."""
        super().remove_checkpoint(path)
        if "://" not in str(path):
            previous_of(path).unlink(missing_ok=True)

    def _keep(self, target: Path) -> None:
        """Keep what is about to be replaced, if it is a good checkpoint."""
        if not target.is_file() or target.resolve() in self._damaged:
            self._damaged.discard(target.resolve())
            return
        previous = previous_of(target)
        link = previous.with_name(f".{previous.name}.tmp")
        link.unlink(missing_ok=True)
        try:
            os.link(target, link)  # so that the name itself never leads nowhere
        except OSError:  # a file system without links
            os.replace(target, previous)
        else:
            try:
                os.replace(link, previous)
            finally:
                link.unlink(missing_ok=True)

    def _replacement(self, path: Path, wrong: str) -> Path:
        for step, other in checkpoints_in(path.parent):
            if other.name == path.name or damage(other) is not None:
                continue
            self._damaged.add(path.resolve())
            rank_zero_warn(f"{path} {wrong}; using {other} instead, which stands at step {step}")
            return other
        raise UserError(
            f"{path} {wrong}, and no other checkpoint in {path.parent} can stand in for it; name "
            "another one, or leave --ckpt_path out to start anew"
        )


def previous_of(path: str | Path) -> Path:
    """Where the checkpoint is kept that the newest of that name replaced."""
    path = Path(path)
    return path.with_name(f"{path.stem}.previous{path.suffix}")


def damage(path: str | Path) -> str | None:
    """What is wrong with a checkpoint file, as the end of a sentence about it; None for nothing.

    Compares the SHA-256 at its end. A file without one (Lightning's own writing) is read through
    instead, and the checksums of its parts are compared.
    """
    try:
        with open(path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _SEAL))
            seal = file.read()
            if seal.startswith(_MARK):
                found = _sha256(file, size - _SEAL)
                same = found == seal[len(_MARK) :].decode("ascii", "replace")
                return None if same else "is damaged (its SHA-256 is not the one it was saved with)"
            file.seek(max(0, size - _SEAL - _END.size))
            if not _ends_well(file.read()):
                return "is cut off or no checkpoint"
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
        if broken is None:
            torch._C.PyTorchFileReader(str(path))  # reads more of the archive than zipfile does
        return None if broken is None else f"is damaged (the checksum of {broken} differs)"
    except FileNotFoundError:
        return "is not there"
    except OSError as error:
        return f"cannot be read ({error.strerror or error})"
    except (zipfile.BadZipFile, zlib.error, RuntimeError, EOFError, ValueError):
        return "is cut off or no checkpoint"


def checkpoints_in(folder: Path) -> list[tuple[int, Path]]:
    """Checkpoints of a folder that a run can go on from, as (step, file), the newest step first.

    What they hold is read, not yet compared with their hashes. Of two at one step the one that was
    written last comes first.
    """
    found = []
    for path in folder.glob(f"*{SUFFIX}"):
        with contextlib.suppress(UserError, OSError), Archive(path) as archive:
            root = archive.root if isinstance(archive.root, dict) else {}
            step = root.get("global_step")
            # whatever else lies in the folder: it may come from anywhere
            if "optimizer_states" in root and "loops" in root and type(step) is int:
                found.append((step, path.stat().st_mtime_ns, path))
    return [(step, path) for step, _, path in sorted(found, reverse=True)]


def remove_leftovers(folder: str | Path) -> None:
    """Remove what a killed run left half-written; for the one run that has the folder to itself."""
    for path in Path(folder).glob(f".*{SUFFIX}.tmp"):
        path.unlink(missing_ok=True)


class _Sealed:
    """What ``torch.save`` writes to: hashes everything, and ends the archive in the hash.

    An error of the disk is kept until the end, because PyTorch's writer, written in C++, answers
    one with errors of its own.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._hash = hashlib.sha256()
        self._tail = b""  # the last two bytes so far: of a zip archive, its comment's length
        self._error: OSError | None = None

    def write(self, data: Any) -> int:
        """Take bytes or a buffer of them."""
        view = memoryview(data).cast("B")
        if len(view) < 2:
            joined = self._tail + bytes(view)
            self._put(joined[:-2])
            self._tail = joined[-2:]
        else:
            self._put(self._tail)
            self._put(view[:-2])
            self._tail = bytes(view[-2:])
        return len(view)

    def flush(self) -> None:
        """PyTorch asks for it; :meth:`finish` does it."""

    def finish(self) -> None:
        """Announce the comment and write it.

        Raises:
            OSError: the first of all that writing met with.
        """
        if self._error is None and self._tail != b"\0\0":
            raise RuntimeError("torch.save wrote something else than a zip archive")
        self._put(struct.pack("<H", _SEAL))
        self._put(_MARK + self._hash.hexdigest().encode(), hashed=False)
        if self._error is not None:
            raise self._error

    def _put(self, data: bytes | memoryview, *, hashed: bool = True) -> None:
        if self._error is not None:
            return
        try:
            self._file.write(data)
        except OSError as error:
            self._error = error
        if hashed:
            self._hash.update(data)


@contextlib.contextmanager
def _written(target: Path) -> Iterator[IO[bytes]]:
    """A file beside the target that takes its name at the end of the block."""
    # no process number in the name: a killed run's is overwritten by the next one
    temporary = target.with_name(f".{target.name}.tmp")
    try:
        temporary.unlink(missing_ok=True)  # never written through: it may be a link
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        with os.fdopen(os.open(temporary, flags, 0o600), "wb") as file:
            yield file
            os.fchmod(file.fileno(), permissions(target))
        os.replace(temporary, target)
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _ends_well(tail: bytes) -> bool:
    """Whether the end of a zip archive has the comment that it announces, no more and no less."""
    place = tail.rfind(b"PK\x05\x06")
    if place < 0 or len(tail) < place + _END.size:
        return False
    _, length = _END.unpack_from(tail, place)
    return bool(length == len(tail) - place - _END.size)


def _sha256(file: IO[bytes], size: int) -> str:
    """Of the first bytes of an open file."""
    digest = hashlib.sha256()
    file.seek(0)
    while size > 0 and (piece := file.read(min(size, _PIECE))):
        digest.update(piece)
        size -= len(piece)
    return digest.hexdigest()
