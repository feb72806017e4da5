"""The zip file that ``torch.save`` writes, read tensor by tensor without running anything of it."""

from __future__ import annotations

import math
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from idlm.errors import UserError
from idlm.models.unpickle import Reader, tensor_parts

_OLD_FORMAT = 0x1950A86A20F9469CFC6C  # the number PyTorch wrote first before 1.6


class Archive:
    """An opened checkpoint; use it in a ``with`` statement.

    Args:
        path: the file.

    Attributes:
        root: the saved object, of plain containers and :class:`~idlm.models.unpickle.Record`.

    Raises:
        UserError: naming what the pickle wants to call, or saying what is wrong with the file.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            self._zip = zipfile.ZipFile(self.path)
        except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
            self._refuse_other_formats(error)
        try:
            with self._intact():
                self._folder = self._find_folder()
                with self._zip.open(self._entry("data.pkl")) as file:
                    self.root = Reader(file, self.path).load()  # type: ignore[arg-type]
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the file."""
        self._zip.close()

    def __enter__(self) -> Archive:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def tensor(self, value: Any) -> Tensor:
        """Read one tensor of :attr:`root`: on the CPU, in the file's dtype, its checksum compared.

        Raises:
            UserError: if it is no tensor, or its bytes are missing or damaged.
        """
        with self._intact():
            parts = tensor_parts(value)
            if parts is None:
                raise ValueError("something else stands where a tensor should be")
            storage, offset, shape, stride = parts
            # the key is only looked up among the entries: no path in it leads anywhere
            entry = self._entry(f"data/{storage.key}")
            if entry.file_size != storage.numel * storage.dtype.itemsize:
                raise ValueError(f"{entry.filename} has {entry.file_size} bytes")
            count = math.prod(shape)
            if count > storage.numel:  # stride 0 repeats numbers without bound; weights never do
                raise ValueError(f"{count} numbers are asked of the {storage.numel} stored")
            if count == 0:
                return torch.empty(shape, dtype=storage.dtype)
            data = torch.frombuffer(bytearray(self._zip.read(entry)), dtype=storage.dtype)
            viewed = data.as_strided(shape, stride, offset)
            return viewed if count == storage.numel else viewed.clone()

    def _find_folder(self) -> str:
        names = self._zip.namelist()
        for name in names:
            folder, _, last = name.rpartition("/")
            if last == "data.pkl":
                order = f"{folder}/byteorder"
                if order in names and self._zip.read(order).decode() != sys.byteorder:
                    raise ValueError("its byte order is not this machine's")
                return folder
        raise ValueError("it holds no data.pkl")

    def _entry(self, name: str) -> zipfile.ZipInfo:
        entry = self._zip.getinfo(f"{self._folder}/{name}")
        # torch.save never compresses; a compressed entry could unfold without bound
        if entry.compress_type != zipfile.ZIP_STORED:
            raise ValueError(f"{entry.filename} is compressed")
        return entry

    @contextmanager
    def _intact(self) -> Iterator[None]:
        """Turn every way in which a damaged file fails into one sentence."""
        try:
            yield
        except UserError:
            raise
        except Exception as error:
            raise UserError(self._corrupt(error)) from error

    def _corrupt(self, error: Exception) -> str:
        return f"{self.path} is truncated or corrupt ({_one_line(error)}); download it again"

    def _refuse_other_formats(self, error: Exception) -> NoReturn:
        """Say what the file is instead; of a bare pickle, what it wants to call."""
        if not self.path.is_file():
            raise UserError(f"checkpoint {str(self.path)!r} is not a file") from error
        with self.path.open("rb") as file:
            if file.read(4) == b"PK\x03\x04":
                raise UserError(self._corrupt(error)) from error
            file.seek(0)
            first: Any = None
            try:
                first = Reader(file, self.path).load()
                for _ in range(3):  # the old format: number, protocol, system, object
                    Reader(file, self.path).load()
            except UserError:
                raise
            except Exception:  # noqa: BLE001 - it is refused below, whatever it is
                pass
        if first == _OLD_FORMAT:
            raise UserError(
                f"{self.path} is in the format PyTorch wrote before 1.6, which is not read; "
                "rewrite it with torch.save(torch.load(FILE, weights_only=True), FILE)"
            ) from error
        raise UserError(
            f"{self.path} is no PyTorch checkpoint ({_one_line(error)}); give a Lightning .ckpt, "
            "or a folder with config.json and model.safetensors"
        ) from error


def _one_line(error: Exception) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:160]
