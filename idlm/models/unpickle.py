"""Unpickle as data: nothing that the pickle names is ever imported or called.

A pickle is a program, and the only way from it to code is to name a callable. Here every name is
answered with a plain container or with a :class:`Record`, an inert class that stores what the
pickle says about an object and does nothing else; a name outside the list is refused before
anything of it runs. Tensors are records as well, until their bytes are asked for: optimiser states
cost nothing, and no function of PyTorch takes arguments from the pickle.
"""

from __future__ import annotations

import pickle
import re
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, NamedTuple

import torch

from idlm.errors import UserError


class ForbiddenCallError(UserError):
    """A pickle names something that could be called; nothing of it was."""


class Record(dict[Any, Any]):
    """An object as the pickle describes it, never built.

    The keys and values are those a dict subclass was filled with.

    Attributes:
        name: qualified name of its class or function.
        args: what it would have been called with.
        state: what it would have been restored from; ``None`` if there was no state.
    """

    __slots__ = ("args", "state")
    name: ClassVar[str] = ""
    args: tuple[Any, ...]
    state: Any

    def __new__(cls, *args: Any, **_: Any) -> Record:
        record = super().__new__(cls)
        record.args, record.state = args, None
        return record

    def __init__(self, *_: Any, **__: Any) -> None:
        super().__init__()

    def __setstate__(self, state: Any) -> None:
        self.state = state

    # identity: records are keys of sets and dicts, and comparing deep ones could take forever
    __hash__ = object.__hash__  # type: ignore[assignment]
    __eq__ = object.__eq__


class _Ordered(dict[Any, Any]):
    """An ``OrderedDict`` without attributes, behind which a pickle could hide its methods."""

    __slots__ = ()

    def __setstate__(self, _: Any) -> None:
        """Drop them; a state dict carries ``_metadata`` that way."""


class Storage(NamedTuple):
    """Where the numbers of tensors lie: entry of the archive, their type and count."""

    key: str
    dtype: torch.dtype
    numel: int


# Their constructors only collect what they are given. Nothing that multiplies or formats its
# arguments is among them: bytes(10**12), or str() of lists in lists, would be a bomb.
_CONTAINERS: dict[str, type] = {
    "builtins.dict": dict,
    "builtins.frozenset": frozenset,
    "builtins.list": list,
    "builtins.set": set,
    "builtins.tuple": tuple,
    "collections.OrderedDict": _Ordered,
    "torch.Size": tuple,
}
_DTYPES = {
    "torch.DoubleStorage": torch.float64,
    "torch.FloatStorage": torch.float32,
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.LongStorage": torch.int64,
    "torch.IntStorage": torch.int32,
    "torch.ShortStorage": torch.int16,
    "torch.CharStorage": torch.int8,
    "torch.ByteStorage": torch.uint8,
    "torch.BoolStorage": torch.bool,
}
_TENSOR = "torch._utils._rebuild_tensor_v2"
_PARAMETER = "torch._utils._rebuild_parameter"
# What checkpoints of this family hold besides: `save_hyperparameters()` stores the Hydra
# configuration (OmegaConf) and the tokenizer as whole objects. All become records, so no name let
# in here can do anything; the list is short because another name means another kind of file.
_RECORDS = re.compile(
    "|".join(
        (
            *map(re.escape, (_TENSOR, _PARAMETER, *_DTYPES)),
            r"torch\.(u?int|float|bfloat|complex)\d+(_\w+)?|torch\.(bool|device)",
            r"builtins\.(bool|bytearray|bytes|complex|float|int|object|str)",
            r"_codecs\.encode",  # how protocol 2 writes bytes
            r"collections\.defaultdict|typing\.(Any|Dict|List|Optional|Tuple|Union)",
            r"argparse\.Namespace|types\.SimpleNamespace",
            r"pathlib(\._local)?\.(Pure)?(Posix|Windows)?Path",
            r"numpy\.(dtype|ndarray)|numpy\._?core\.multiarray\.(scalar|_reconstruct)",
            r"omegaconf\.(dictconfig\.DictConfig|listconfig\.ListConfig)",
            r"omegaconf\.base\.(ContainerMetadata|Metadata)|omegaconf\.nodes\.[A-Z]\w+Node",
            r"(lightning|pytorch_lightning|lightning_fabric)\.[a-z_.]+\.AttributeDict",
            r"tokenizers\.(Tokenizer|AddedToken)|tokenizers\.models\.[A-Z]\w+",
            r"transformers\.(models\.\w+\.)?tokenization_\w+\.[A-Z]\w+",
            r"dataloader\.Text8Tokenizer",  # of MDLM's repository
        )
    )
)


@cache
def _record_class(name: str) -> type[Record]:
    return type("Record", (Record,), {"name": name, "__slots__": ()})


class Reader(pickle.Unpickler):
    """Every opcode that reaches for code ends in :meth:`find_class`, which hands out none.

    What the other opcodes can touch is immutable or ours: REDUCE, NEWOBJ, OBJ and INST build
    containers and records, BUILD restores their state and nothing else.

    Args:
        file: opened for reading bytes.
        path: its name, for messages.
    """

    def __init__(self, file: BinaryIO, path: Path) -> None:
        super().__init__(file)
        self.path = path

    def find_class(self, module: str, name: str) -> type:
        """A container or the record class of an allowed name.

        Raises:
            ForbiddenCallError: naming what the pickle wants to call.
        """
        # protocol 2, which torch.save writes, has the module names of Python 2
        module, name = NAME_MAPPING.get((module, name), (module, name))
        full = f"{IMPORT_MAPPING.get(module, module)}.{name}"
        if full in _CONTAINERS:
            return _CONTAINERS[full]
        if _RECORDS.fullmatch(full):
            return _record_class(full)
        shown = "".join(letter if letter.isprintable() else "?" for letter in full[:120])
        raise ForbiddenCallError(
            f"{self.path} was not loaded: its pickle wants to call {shown}, and a checkpoint may "
            "only rebuild tensors and plain containers; if you trust its author, ask for the "
            "weights as safetensors"
        )

    def persistent_load(self, pid: Any) -> Storage:
        """The storage a tensor refers to.

        Raises:
            pickle.UnpicklingError: for a reference to anything else.
        """
        if isinstance(pid, tuple) and len(pid) >= 5 and pid[0] == "storage":
            _, kind, key, _, numel, *_ = pid  # PyTorch before 1.6 adds a view
            dtype = _DTYPES.get(getattr(kind, "name", ""))
            if dtype and isinstance(key, str) and isinstance(numel, int) and numel >= 0:
                return Storage(key, dtype, numel)
        raise pickle.UnpicklingError("a persistent id in it names no storage")


def tensor_parts(value: Any) -> tuple[Storage, int, tuple[int, ...], tuple[int, ...]] | None:
    """Storage, offset, shape and stride of a tensor's record; ``None`` for anything else."""
    while isinstance(value, Record) and value.name == _PARAMETER and value.args:
        value = value.args[0]
    if not isinstance(value, Record) or value.name != _TENSOR or len(value.args) < 4:
        return None
    storage, offset, shape, stride = value.args[:4]
    if not (
        isinstance(storage, Storage) and isinstance(shape, tuple) and isinstance(stride, tuple)
    ):
        return None
    numbers = (offset, *shape, *stride)
    if not all(isinstance(n, int) and n >= 0 for n in numbers) or len(shape) != len(stride):
        return None
    return storage, offset, shape, stride
