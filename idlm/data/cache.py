"""Packed rows on disk, keyed by what they are made of.

An entry is a folder-free pair ``<key>.npy`` (rows, opened as a memory map) and ``<key>.json``
(the conditions and the packing report). The key is a hash of the content and of every setting
that changes the rows, so an entry never goes stale and is never updated.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from idlm.data.packing import PackingReport
from idlm.errors import UserError

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


def open_rows(folder: Path, key: str) -> tuple[np.ndarray, dict[str, Any]] | None:
    """The rows ``[N, L]`` as a read-only memory map and their metadata, or None on a miss."""
    rows_file, metadata_file = folder / f"{key}.npy", folder / f"{key}.json"
    if not (rows_file.exists() and metadata_file.exists()):
        return None
    return np.load(rows_file, mmap_mode="r"), json.loads(metadata_file.read_text("utf-8"))


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
    same entry at once both succeed, with the same content.

    Raises:
        UserError: if the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=f".{key}-", suffix=".npy", dir=folder)
    except OSError as error:
        raise UserError(
            f"the cache folder {str(folder)!r} cannot be written ({error.strerror}); set "
            "IDLM_CACHE or --data.init_args.cache_dir to a folder that can"
        ) from error
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            _write_array(file, blocks)
        os.replace(temporary, folder / f"{key}.npy")
        metadata = {"format": FORMAT, **conditions, **dataclasses.asdict(report)}
        _write_text(folder / f"{key}.json", json.dumps(metadata, indent=1, sort_keys=True))
    finally:
        temporary.unlink(missing_ok=True)


def _write_array(file: Any, blocks: Iterable[np.ndarray]) -> None:
    """A version 1.0 .npy whose number of rows is only known at the end."""
    rows, header_end, first = 0, 0, None
    for block in blocks:
        if first is None:
            first = block
            header_end = _write_header(file, block, rows=0)
        file.write(np.ascontiguousarray(block).data)
        rows += len(block)
    if first is None:
        raise ValueError("no blocks to write: packing refuses an empty result before this")
    file.seek(0)
    # numpy pads the header for growth along the first axis, so it has the same size again.
    if _write_header(file, first, rows=rows) != header_end:
        raise RuntimeError("the .npy header changed its size; this numpy is not supported")


def _write_header(file: Any, block: np.ndarray, *, rows: int) -> int:
    header = {
        "descr": np.lib.format.dtype_to_descr(block.dtype),
        "fortran_order": False,
        "shape": (rows, *block.shape[1:]),
    }
    np.lib.format.write_array_header_1_0(file, header)
    return int(file.tell())


def _write_text(path: Path, text: str) -> None:
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
    os.replace(name, path)
