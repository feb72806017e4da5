"""Packed rows on disk, keyed by what they are made of.

An entry is a folder-free pair ``<key>.npy`` (rows, opened as a memory map) and ``<key>.json``
(the conditions and the packing report). The key is a hash of the content and of every setting
that changes the rows, so an entry never goes stale. It is never updated either: what turns out to
be damaged is packed anew, and whoever packs holds a lock, so that nobody else does the same work.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import numpy as np

from idlm.data.packing import PackingReport
from idlm.errors import UserError
from idlm.locks import awaited
from idlm.samples import permissions

log = logging.getLogger(__name__)

_ELSEWHERE = "set IDLM_CACHE or --data.init_args.cache_dir to a folder that can"

FORMAT = 1
"""Raise when the packing itself changes, so that old entries are left alone."""


def cache_folder(cache_dir: str | Path | None = None) -> Path:
    """``cache_dir`` if given, else ``$IDLM_CACHE``, else ``~/.cache/idlm``; then ``packed/``."""
    base = cache_dir or os.environ.get("IDLM_CACHE") or "~/.cache/idlm"
    return Path(base).expanduser() / "packed"


def cache_key(conditions: dict[str, Any]) -> str:
    """A hash of JSON-able conditions: 32 hexadecimal digits."""
    text = json.dumps({"format": FORMAT, **conditions}, sort_keys=True)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()[:32]


def open_rows(
    folder: Path, key: str, *, verify: bool = True, aloud: bool = True
) -> tuple[np.ndarray, dict[str, Any]] | None:
    """The rows ``[N, L]`` as a read-only memory map and their metadata, or None on a miss.

    An entry that is not what was written is a miss too.

    Args:
        folder: the cache.
        key: of the entry.
        verify: read all of it and compare its hash, about a second a gigabyte; without, only the
            size, shape and type are compared.
        aloud: say in the log what is wrong with an entry.
    """
    rows_file, metadata_file = folder / f"{key}.npy", folder / f"{key}.json"
    if not (rows_file.exists() and metadata_file.exists()):
        return None
    try:
        metadata = json.loads(metadata_file.read_text("utf-8"))
        rows = np.load(rows_file, mmap_mode="r")
        if [*rows.shape, rows.dtype.str] != [*metadata["shape"], metadata["dtype"]]:
            raise ValueError(f"it has shape {rows.shape} and type {rows.dtype}")
        if verify and _hash(rows_file, start=rows.offset) != metadata["sha256"]:
            raise ValueError("its hash is another")
    except (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"no {error} is recorded" if isinstance(error, KeyError) else str(error)
        if aloud:
            log.warning(
                "the packed rows in %s are not what was written (%s); they are packed anew",
                rows_file,
                reason.split("\n")[0],
            )
        return None
    return rows, metadata


@contextmanager
def packing(folder: Path, key: str) -> Iterator[None]:
    """Hold the right to write an entry; whoever comes second waits, and then finds it written.

    The operating system takes the lock from a process that dies. What it left behind is removed.

    Raises:
        UserError: if the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(folder, error) from error
    lock = folder / f".{key}.lock"
    with awaited(lock, subject=f"the cache folder {str(folder)!r}", elsewhere=_ELSEWHERE):
        for leftover in folder.glob(f".{key}-*"):
            leftover.unlink(missing_ok=True)
        yield


def write_rows(
    folder: Path,
    key: str,
    blocks: Iterable[np.ndarray],
    *,
    conditions: dict[str, Any],
    report: PackingReport,
) -> None:
    """Write blocks ``[n, L]`` one after the other as a single array, without holding them.

    The metadata comes last: an entry without it does not count. Two processes that write the
    same entry at once both succeed, with the same content; :func:`packing` spares the second one
    the work.

    Raises:
        UserError: if the folder cannot be written, or the disk is full.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(folder, error) from error
    with _replacing(folder / f"{key}.npy", key) as file:
        written = _write_array(_Checked(file, folder), blocks)
        (folder / f"{key}.json").unlink(missing_ok=True)  # of a damaged entry
    metadata = {"format": FORMAT, **conditions, **dataclasses.asdict(report), **written}
    text = json.dumps(metadata, indent=1, sort_keys=True)
    with _replacing(folder / f"{key}.json", key) as file:
        _Checked(file, folder).write(text.encode("utf-8"))


@contextmanager
def _replacing(path: Path, key: str) -> Iterator[IO[bytes]]:
    """A private file that takes the place of ``path`` once the block has filled it.

    Raises:
        UserError: naming the cache folder, if it cannot be written.
    """
    try:
        descriptor, name = tempfile.mkstemp(prefix=f".{key}-", suffix=path.suffix, dir=path.parent)
    except OSError as error:
        raise _unwritable(path.parent, error) from error
    file = os.fdopen(descriptor, "wb")
    try:
        yield file
        try:
            file.flush()
            # until here its owner's alone; now as a plain open() would have made it
            os.fchmod(file.fileno(), permissions(path))
            file.close()
            os.replace(name, path)
        except OSError as error:
            raise _unwritable(path.parent, error) from error
    finally:
        with suppress(OSError):  # a full disk refuses what is left in the buffer once more
            file.close()
        with suppress(OSError):
            os.unlink(name)


class _Checked:
    """A file whose failures are sentences: of the cache, not of what makes the rows."""

    def __init__(self, file: Any, folder: Path) -> None:
        self._file, self._folder = file, folder

    def write(self, data: Any) -> int:
        """As of the file.

        Raises:
            UserError: naming the cache folder, if it cannot.
        """
        try:
            return int(self._file.write(data))
        except OSError as error:
            raise _unwritable(self._folder, error) from error

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def _unwritable(folder: Path, error: OSError) -> UserError:
    return UserError(
        f"the cache folder {str(folder)!r} cannot be written ({error.strerror}); {_ELSEWHERE}"
    )


def _hash(file: Path, *, start: int) -> str:
    """The sha256 of a file's bytes from ``start`` on."""
    digest = hashlib.sha256()
    with open(file, "rb") as stream:
        stream.seek(start)
        while piece := stream.read(1 << 22):
            digest.update(piece)
    return digest.hexdigest()


def _write_array(file: Any, blocks: Iterable[np.ndarray]) -> dict[str, Any]:
    """A version 1.0 .npy whose number of rows is only known at the end.

    Returns:
        What :func:`open_rows` compares: shape, type, and sha256 of everything behind the header.
    """
    rows, header_end, first = 0, 0, None
    digest = hashlib.sha256()
    for block in blocks:
        if first is None:
            first = block
            header_end = _write_header(file, block, rows=0)
        data = np.ascontiguousarray(block).data
        file.write(data)
        digest.update(data)
        rows += len(block)
    if first is None:
        raise ValueError("no blocks to write: packing refuses an empty result before this")
    file.seek(0)
    # numpy pads the header for growth along the first axis, so it has the same size again.
    if _write_header(file, first, rows=rows) != header_end:
        raise RuntimeError("the .npy header changed its size; this numpy is not supported")
    shape = [rows, *first.shape[1:]]
    return {"shape": shape, "dtype": first.dtype.str, "sha256": digest.hexdigest()}


def _write_header(file: Any, block: np.ndarray, *, rows: int) -> int:
    header = {
        "descr": np.lib.format.dtype_to_descr(block.dtype),
        "fortran_order": False,
        "shape": (rows, *block.shape[1:]),
    }
    np.lib.format.write_array_header_1_0(file, header)
    return int(file.tell())
