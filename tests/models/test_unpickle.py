"""A checkpoint is data: whatever its pickle names, nothing of it runs."""

from __future__ import annotations

import copyreg
import pickle
import struct
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from idlm.errors import UserError
from idlm.models.archive import Archive
from idlm.models.unpickle import Record


class Touch:
    """Unpickled, it calls ``call`` with ``args``: the classic attack."""

    def __init__(self, call: Callable[..., Any], *args: Any) -> None:
        self.call, self.args = call, args

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call, self.args


class Restored:
    """Does its harm while its state is restored."""

    def __getstate__(self) -> dict[str, str]:
        return {"path": self.path}

    def __setstate__(self, state: dict[str, str]) -> None:
        Path(state["path"]).touch()


def restored(path: str) -> Restored:
    made = Restored()
    made.path = path
    return made


def touch_code(path: str) -> str:
    return f"__import__('pathlib').Path({path!r}).touch()"


def text(value: str) -> bytes:
    """A string as BINUNICODE pushes it."""
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


# a harmful program for each opcode that can reach code, and the name it reaches for
PROGRAMS: dict[str, tuple[str, Callable[[str], bytes]]] = {
    "reduce": (
        "posix.system",
        lambda p: b"\x80\x02cposix\nsystem\n" + text(f"touch {p}") + b"\x85R.",
    ),
    "inst": ("posix.system", lambda p: b"(" + text(f"touch {p}") + b"iposix\nsystem\n."),
    "obj": (
        "subprocess.getoutput",
        lambda p: b"(csubprocess\ngetoutput\n" + text(f"touch {p}") + b"o.",
    ),
    "newobj": (
        "subprocess.Popen",
        lambda p: b"\x80\x02csubprocess\nPopen\n)\x81}" + text("x") + text(p) + b"sb.",
    ),
    "stack global": (
        "posix.system",
        lambda p: b"\x80\x04\x8c\x05posix\x8c\x06system\x93" + text(f"touch {p}") + b"\x85R.",
    ),
    "python 2 name": (
        "builtins.eval",
        lambda p: b"\x80\x02c__builtin__\neval\n" + text(touch_code(p)) + b"\x85R.",
    ),
    "dotted name": (
        "pathlib.Path.touch",
        lambda p: (
            b"\x80\x04\x8c\x07pathlib\x8c\x0aPath.touch\x93\x8c\x07pathlib\x8c\x04Path\x93"
            + text(p)
            + b"\x85R\x85R."
        ),
    ),
}


def write_zip(path: Path, program: bytes, *, compressed: bool = False, **entries: bytes) -> Path:
    """An archive as ``torch.save`` lays it out, around any program."""
    method = zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("archive/data.pkl", program)
        archive.writestr("archive/byteorder", b"little")
        for name, content in entries.items():
            archive.writestr(f"archive/data/{name.removeprefix('at_')}", content)
    return path


def read(path: Path) -> Any:
    with Archive(path) as archive:
        return archive.root


def tensor_program(
    key: str = "0",
    *,
    kind: bytes = b"FloatStorage",
    numel: int = 6,
    size: tuple[int, ...] = (2, 3),
    stride: tuple[int, ...] = (3, 1),
    offset: int = 0,
) -> bytes:
    """A pickle of one tensor, with whatever it claims about itself."""

    def integers(values: tuple[int, ...]) -> bytes:
        return b"(" + b"".join(b"J" + struct.pack("<i", v) for v in values) + b"t"

    storage = (
        b"("
        + text("storage")
        + b"ctorch\n"
        + kind
        + b"\n"
        + text(key)
        + text("cpu")
        + b"J"
        + struct.pack("<i", numel)
        + b"tQ"
    )
    return (
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n("
        + storage
        + b"J"
        + struct.pack("<i", offset)
        + integers(size)
        + integers(stride)
        + b"\x89ccollections\nOrderedDict\n)RtR."
    )


SIX = torch.arange(6.0).numpy().tobytes()


@pytest.mark.parametrize("kind", PROGRAMS)
@pytest.mark.parametrize("container", ["archive", "bare pickle"])
def test_every_opcode_that_reaches_for_code_is_refused_with_the_name(
    kind: str, container: str, tmp_path: Path
) -> None:
    name, program = PROGRAMS[kind]
    harm, control = tmp_path / "harm", tmp_path / "control"
    path = tmp_path / "x.ckpt"
    if container == "archive":
        write_zip(path, program(str(harm)))
    else:
        path.write_bytes(program(str(harm)))
    with pytest.raises(UserError, match=rf"wants to call {name}\b"):
        read(path)
    assert not harm.exists()
    if kind != "newobj":  # the rest do their harm in pickle itself, so the test tests something
        pickle.loads(program(str(control)))
        assert control.exists()


@pytest.mark.parametrize(
    "place", ["hyper_parameters", "optimizer_states", "state_dict", "callbacks"]
)
@pytest.mark.parametrize(
    ("harmful", "name"),
    [
        (lambda path: Touch(eval, touch_code(path)), "builtins.eval"),
        (lambda path: Touch(exec, touch_code(path)), "builtins.exec"),
        (lambda path: Touch(subprocess.check_call, ["touch", path]), "subprocess.check_call"),
        (restored, "test_unpickle.Restored"),
    ],
    ids=["eval", "exec", "subprocess", "setstate"],
)
@pytest.mark.parametrize("old_format", [False, True])
def test_a_harmful_object_anywhere_in_a_checkpoint_does_nothing(
    harmful: Callable[[str], Any], name: str, place: str, old_format: bool, tmp_path: Path
) -> None:
    harm, control = tmp_path / "harm", tmp_path / "control"
    torch.save({place: harmful(str(control))}, tmp_path / "control.ckpt")
    torch.load(tmp_path / "control.ckpt", weights_only=False)
    assert control.exists()
    checkpoint: dict[str, Any] = {
        "state_dict": {"w": torch.ones(3)},
        place: {"deep": [1, (harmful(str(harm)),)]},
    }
    path = tmp_path / "x.ckpt"
    torch.save(checkpoint, path, _use_new_zipfile_serialization=not old_format)
    with pytest.raises(UserError, match=rf"wants to call \S*{name}\b"):
        read(path)
    assert not harm.exists()


def test_an_extension_code_cannot_smuggle_a_callable_in(tmp_path: Path) -> None:
    copyreg.add_extension("posix", "system", 240)
    try:
        path = write_zip(tmp_path / "x.ckpt", b"\x80\x02\x82\xf0X\x04\x00\x00\x00true\x85R.")
        with pytest.raises(UserError, match=r"posix\.system"):
            read(path)
    finally:
        copyreg.remove_extension("posix", "system", 240)


def test_a_name_that_is_let_in_is_stored_and_not_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def harm(*_: Any) -> None:
        raise AssertionError("called")

    monkeypatch.setattr(torch._utils, "_rebuild_tensor_v2", harm)
    monkeypatch.setattr(torch, "device", harm)
    program = b"\x80\x02ctorch\ndevice\nX\x04\x00\x00\x00cuda\x85R."
    record = read(write_zip(tmp_path / "x.ckpt", program))
    assert isinstance(record, Record)
    assert (record.name, record.args, record.state) == ("torch.device", ("cuda",), None)
    assert isinstance(read(write_zip(tmp_path / "y.ckpt", tensor_program())), Record)


@pytest.mark.parametrize(
    "name", [b"ccollections\nOrderedDict\n", b"c__builtin__\ndict\n", b"ctorch\ndevice\n"]
)
@pytest.mark.parametrize(
    "state", [b"}X\x0c\x00\x00\x00__setstate__K\x01s", b"N}X\x04\x00\x00\x00argsK\x01s\x86"]
)
def test_a_class_on_the_stack_cannot_be_changed(name: bytes, state: bytes, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="corrupt"):
        read(write_zip(tmp_path / "x.ckpt", b"\x80\x02" + name + state + b"b."))
    record = read(write_zip(tmp_path / "y.ckpt", b"\x80\x02ctorch\ndevice\nK\x01\x85R."))
    assert record.args == (1,)


def test_attributes_of_an_ordered_dict_cannot_hide_its_methods(tmp_path: Path) -> None:
    program = b"\x80\x02ccollections\nOrderedDict\n)R" + text("a") + b"K\x01s"
    program += b"}" + text("items") + b"K\x02sb."
    with pytest.raises(TypeError):
        pickle.loads(program).items()
    assert list(read(write_zip(tmp_path / "x.ckpt", program)).items()) == [("a", 1)]


@pytest.mark.parametrize(
    "pid",
    [
        b"X\x06\x00\x00\x00secretQ",
        b"(X\x06\x00\x00\x00moduleK\x01K\x02K\x03K\x04tQ",
        b"(X\x07\x00\x00\x00storagectorch\ndevice\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x06tQ",
        b"Psecret\n",
    ],
)
def test_a_persistent_id_names_a_storage_or_is_refused(pid: bytes, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="names no storage"):
        read(write_zip(tmp_path / "x.ckpt", b"\x80\x02" + pid + b"."))


@pytest.mark.parametrize("key", ["../../secret", "/etc/passwd", "../byteorder", "1"])
def test_a_storage_key_leads_nowhere_but_into_the_archive(key: str, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(SIX)
    path = write_zip(tmp_path / "x.ckpt", tensor_program(key), at_0=SIX)
    with Archive(path) as archive, pytest.raises(UserError, match="truncated or corrupt"):
        archive.tensor(archive.root)


def test_tensors_of_every_dtype_and_layout_are_read_exactly(tmp_path: Path) -> None:
    torch.manual_seed(0)
    wide = torch.randn(4, 6)
    saved = {
        **{
            str(d): (wide * 3).to(d)
            for d in (torch.float64, torch.float32, torch.float16, torch.bfloat16)
        },
        **{
            str(d): (wide * 3).to(d)
            for d in (torch.int64, torch.int32, torch.int16, torch.int8, torch.bool)
        },
        "bytes": torch.arange(7, dtype=torch.uint8),
        "transposed": wide.t(),
        "view": wide[1:3, 2:5],
        "scalar": torch.tensor(3.5),
        "empty": torch.empty(0, 3),
        "parameter": torch.nn.Parameter(wide),
    }
    torch.save(saved, tmp_path / "x.ckpt")
    with Archive(tmp_path / "x.ckpt") as archive:
        for name, value in archive.root.items():
            tensor = archive.tensor(value)
            assert tensor.dtype == saved[name].dtype
            assert torch.equal(tensor, saved[name]), name
            assert not tensor.requires_grad


@pytest.mark.parametrize(
    "claim",
    [
        {"size": (10**9,), "stride": (0,)},
        {"size": (2, 4), "stride": (4, 1)},
        {"offset": 3},
        {"numel": 10**9},
        {"kind": b"DoubleStorage"},
        {"size": (-2, -3)},
        {"size": (6,)},
    ],
    ids=str,
)
def test_a_tensor_that_claims_more_than_is_stored_is_refused(
    claim: dict[str, Any], tmp_path: Path
) -> None:
    path = write_zip(tmp_path / "x.ckpt", tensor_program(**claim), at_0=SIX)
    with Archive(path) as archive, pytest.raises(UserError, match="truncated or corrupt"):
        archive.tensor(archive.root)


def test_a_compressed_entry_is_refused_before_it_unfolds(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "x.ckpt", b"\x80\x02N.", compressed=True)
    with pytest.raises(UserError, match="compressed"):
        read(path)


def test_a_pickle_nested_a_hundred_thousand_deep_neither_crashes_nor_hangs(tmp_path: Path) -> None:
    depth = 100_000
    path = write_zip(tmp_path / "x.ckpt", b"\x80\x02" + b"]" * depth + b"a" * (depth - 1) + b".")
    assert isinstance(read(path), list)


def test_damage_is_told_in_one_sentence(tmp_path: Path) -> None:
    whole = tmp_path / "whole.ckpt"
    torch.save({"w": torch.arange(1000.0)}, whole)
    content = whole.read_bytes()
    at = content.index(torch.arange(500.0, 600.0).numpy().tobytes())
    damaged = {
        "truncated": content[: len(content) // 2],
        "head": content[:100],
        "bytes": content[:at] + b"\x00\x01\x02\x03" + content[at + 4 :],
        "pickle": content.replace(b"_rebuild_tensor_v2", b"_rebuild_tensor\xff\xff\xff"),
    }
    for name, part in damaged.items():
        path = tmp_path / f"{name}.ckpt"
        path.write_bytes(part)
        with (
            pytest.raises(
                UserError, match=rf"{name}\.ckpt is truncated or corrupt \(.*download"
            ) as told,
            Archive(path) as archive,
        ):
            archive.tensor(archive.root["w"])
        assert "\n" not in str(told.value)


def test_what_is_no_archive_is_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "x.ckpt"
    for content in (b"", b"hello", b"\x80\x02N."):
        path.write_bytes(content)
        with pytest.raises(UserError, match="no PyTorch checkpoint"):
            read(path)
    torch.save({"w": torch.ones(2)}, path, _use_new_zipfile_serialization=False)
    with pytest.raises(UserError, match=r"before 1\.6"):
        read(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("notes.txt", "hello")
    with pytest.raises(UserError, match=r"no data\.pkl"):
        read(path)
    with pytest.raises(UserError, match="not a file"):
        read(tmp_path / "nowhere.ckpt")
    with pytest.raises(UserError, match="not a file"):
        read(tmp_path)
