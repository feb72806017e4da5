"""Checkpoints are complete or not there, show when they are damaged, and have a predecessor."""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
import resource
import shutil
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from idlm.cli.main import main
from idlm.errors import UserError
from idlm.models.archive import Archive
from idlm.reliability.compare import losses
from idlm.reliability.tiny import Tiny, make_tiny
from idlm.training.checkpoint_io import CheckedCheckpointIO, damage, previous_of
from idlm.training.checkpoints import best_checkpoint

WHOLE = {"optimizer_states": [], "loops": {}, "state_dict": {"w": torch.arange(4000.0)}}


def checkpoint(step: int) -> dict[str, Any]:
    return {**WHOLE, "global_step": step}


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 0x10
    path.write_bytes(data)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "run" / "last.ckpt"
    CheckedCheckpointIO().save_checkpoint(checkpoint(7), path)
    return path


@contextmanager
def file_limit(size: int) -> Iterator[None]:
    """No file of this process may grow beyond so many bytes, which fails as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


# One file


def test_a_checkpoint_reads_back_everywhere_and_ends_in_the_hash_of_what_is_before(
    saved: Path,
) -> None:
    assert torch.equal(torch.load(saved)["state_dict"]["w"], WHOLE["state_dict"]["w"])
    assert CheckedCheckpointIO().load_checkpoint(saved)["global_step"] == 7
    with Archive(saved) as archive:
        assert archive.root["global_step"] == 7
    comment = zipfile.ZipFile(saved).comment
    body = saved.read_bytes()[: -len(comment)]
    assert comment.decode().split() == ["idlm", "sha256", hashlib.sha256(body).hexdigest()]
    assert damage(saved) is None
    assert [p.name for p in saved.parent.iterdir()] == ["last.ckpt"]


def test_every_flipped_bit_and_every_cut_is_noticed(saved: Path) -> None:
    whole = saved.read_bytes()
    seal = len(zipfile.ZipFile(saved).comment)
    # the mark in front of the hash is the one place whose damage harms nothing
    for place in [*range(0, len(whole) - seal, 211), len(whole) - seal - 1, len(whole) - 1]:
        flip(saved, place)
        assert damage(saved) is not None, place
        saved.write_bytes(whole)
    for size in [*range(0, len(whole), 997), len(whole) - seal, len(whole) - 1]:
        saved.write_bytes(whole[:size])
        assert damage(saved) is not None, size


def test_a_checkpoint_of_lightnings_own_writing_is_checked_by_its_checksums(tmp_path: Path) -> None:
    path = tmp_path / "plain.ckpt"
    torch.save(checkpoint(3), path)
    assert damage(path) is None
    flip(path, path.stat().st_size // 2)
    assert "checksum of" in str(damage(path))


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(saved: Path) -> None:
    before = saved.read_bytes()
    with file_limit(9000), pytest.raises(UserError) as caught:
        CheckedCheckpointIO().save_checkpoint(checkpoint(8), saved)
    assert str(caught.value).startswith(f"checkpoint {saved} cannot be written (File too large);")
    assert f"--ckpt_path {saved}" in str(caught.value)
    assert saved.read_bytes() == before
    assert [p.name for p in saved.parent.iterdir()] == ["last.ckpt"]


@pytest.mark.parametrize("call", ["fsync", "replace", "link"])
def test_a_full_disk_at_any_call_leaves_a_good_checkpoint(
    call: str, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, call, full)
        if call == "link":  # then the old file is moved, not linked
            CheckedCheckpointIO().save_checkpoint(checkpoint(8), saved)
        else:
            with pytest.raises(UserError, match="No space left on device"):
                CheckedCheckpointIO().save_checkpoint(checkpoint(8), saved)
    kept = [p for p in saved.parent.iterdir() if p.suffix == ".ckpt" and damage(p) is None]
    assert saved in kept
    assert not list(saved.parent.glob(".*"))


def test_the_contents_reach_the_disk_before_the_name_does(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda f: (order.append("fsync"), fsync(f)))
    monkeypatch.setattr(os, "replace", lambda a, b: (order.append(Path(b).name), replace(a, b)))
    CheckedCheckpointIO().save_checkpoint(checkpoint(8), saved)
    assert order == ["fsync", "last.previous.ckpt", "last.ckpt", "fsync"]


# The one before


def test_the_checkpoint_that_is_replaced_is_kept_and_removed_with_it(saved: Path) -> None:
    io = CheckedCheckpointIO()
    for step in (8, 9):
        io.save_checkpoint(checkpoint(step), saved)
    assert torch.load(previous_of(saved))["global_step"] == 8
    io.remove_checkpoint(saved)
    assert list(saved.parent.iterdir()) == []


@pytest.mark.parametrize("how", ["flipped", "cut", "missing", "empty"])
def test_the_newest_good_checkpoint_stands_in_for_a_bad_one_aloud(how: str, saved: Path) -> None:
    io = CheckedCheckpointIO()
    io.save_checkpoint(checkpoint(8), saved)
    io.save_checkpoint(checkpoint(5), saved.with_name("best-step=5.ckpt"))
    io.save_checkpoint({"global_step": 99, "state_dict": {}}, saved.with_name("weights.ckpt"))
    match how:
        case "flipped":
            flip(saved, 5000)
        case "cut":
            saved.write_bytes(saved.read_bytes()[:5000])
        case "missing":
            saved.unlink()
        case "empty":
            saved.write_bytes(b"")
    wrong = {"flipped": "SHA-256", "cut": "cut off", "missing": "is not there", "empty": "cut off"}
    said = rf"last\.ckpt .*{wrong[how]}.*; using .*last\.previous\.ckpt instead.* step 7"
    with pytest.warns(UserWarning, match=said):
        assert io.load_checkpoint(saved)["global_step"] == 7
    # the bad file must not push the good one out
    io.save_checkpoint(checkpoint(10), saved)
    assert torch.load(previous_of(saved))["global_step"] == 7
    assert torch.load(saved)["global_step"] == 10
    io.save_checkpoint(checkpoint(11), saved)
    assert torch.load(previous_of(saved))["global_step"] == 10


def test_what_else_lies_in_the_folder_stands_in_for_no_checkpoint_and_hinders_none(
    saved: Path,
) -> None:
    io = CheckedCheckpointIO()
    io.save_checkpoint(checkpoint(8), saved)
    strange = [3, "optimizer_states loops", None, [1]]
    strange += [
        {**WHOLE, "global_step": step} for step in ("x", float("inf"), torch.zeros(3), None, [9])
    ]
    for number, held in enumerate([*strange, WHOLE]):
        torch.save(held, saved.with_name(f"strange{number}.ckpt"))
    shutil.copy(saved, version := saved.with_name("version.ckpt"))
    data = version.read_bytes()
    place = data.rindex(b"PK\x01\x02")  # an entry that asks for a zip of another century
    version.write_bytes(data[: place + 6] + b"\xff" + data[place + 7 :])
    flip(saved, 5000)
    with pytest.warns(UserWarning, match=r"using .*last\.previous\.ckpt instead.* step 7"):
        assert io.load_checkpoint(saved)["global_step"] == 7


def test_an_archive_that_pytorch_cannot_read_is_damaged(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.ckpt", "w") as archive:
        archive.writestr("x/data.pkl", b"x")
    assert damage(tmp_path / "x.ckpt") == "is cut off or no checkpoint"
    with pytest.raises(UserError, match="no other checkpoint in"):
        CheckedCheckpointIO().load_checkpoint(tmp_path / "x.ckpt")


def test_without_another_good_checkpoint_or_where_none_may_stand_in_it_is_refused(
    saved: Path,
) -> None:
    io = CheckedCheckpointIO(fallback=False)
    io.save_checkpoint(checkpoint(8), saved)
    flip(saved, 5000)
    with pytest.raises(UserError, match=r"last\.ckpt is damaged .*name another checkpoint"):
        io.load_checkpoint(saved)
    flip(previous_of(saved), 5000)
    with pytest.raises(UserError, match=r"no other checkpoint in .* can stand in"):
        CheckedCheckpointIO().load_checkpoint(saved)


def test_a_collapsed_run_exports_the_best_checkpoint_that_is_not_damaged(tmp_path: Path) -> None:
    scores = {str(tmp_path / f"{n}.ckpt"): torch.tensor(float(n)) for n in (1, 2)}
    kept = SimpleNamespace(mode="min", best_k_models=scores)
    trainer = SimpleNamespace(checkpoint_callbacks=[kept])
    for n in (1, 2):
        CheckedCheckpointIO().save_checkpoint(checkpoint(n), tmp_path / f"{n}.ckpt")
    flip(tmp_path / "1.ckpt", 5000)
    with pytest.warns(UserWarning, match=r"1\.ckpt is damaged"):
        found = best_checkpoint(trainer)  # type: ignore[arg-type]
    assert found is not None
    assert found["global_step"] == 2


# The command line


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    torch.set_num_threads(1)
    return make_tiny(tmp_path_factory.mktemp("tiny") / "tiny")


@pytest.fixture(scope="module")
def run(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of four student updates: checkpoints at steps 9 and 12."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    main(tiny.command(folder, updates=4))
    return folder


def error_of(command: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as stop:
        main(command)
    assert stop.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


def test_a_run_resumed_from_a_damaged_checkpoint_goes_on_from_the_last_good_one(
    tiny: Tiny, run: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    last = folder / "checkpoints" / "last.ckpt"
    flip(last, last.stat().st_size // 2)
    command = [*tiny.command(folder, updates=4), "--trainer.logger.init_args.version=again"]
    with pytest.warns(UserWarning, match=r"last\.ckpt is damaged .*using .*previous.* step 9"):
        main([*command, f"--ckpt_path={last}"])
    again, first = losses(folder / "logs" / "again"), losses(run / "logs" / "version_0")
    assert [sum(key) for key in again] == [10, 11, 12]
    assert again == {key: first[key] for key in again}


def test_a_number_asked_of_a_damaged_checkpoint_is_refused_not_taken_from_another(
    tiny: Tiny, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    last = folder / "checkpoints" / "last.ckpt"
    flip(last, last.stat().st_size // 2)
    _, config = tiny.command(folder, updates=4)
    said = error_of(["validate", config, f"--ckpt_path={last}"], capsys)
    assert said.startswith(f"idlm: error: {last} is damaged")


def test_a_disk_that_fills_up_ends_the_run_in_a_sentence_and_spares_what_was_saved(
    tiny: Tiny, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    last = folder / "checkpoints" / "last.ckpt"
    before = last.read_bytes()
    command = [*tiny.command(folder, updates=9), f"--ckpt_path={last}"]
    with file_limit(100_000):
        said = error_of(command, capsys)
    assert said.startswith(f"idlm: error: checkpoint {last} cannot be written (File too large)")
    assert last.read_bytes() == before
    assert not list(last.parent.glob(".last*"))


def test_two_runs_in_one_folder_refuse_each_other(
    tiny: Tiny, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from idlm.locks import alone_in

    with alone_in([run / "checkpoints"], remedy=""):
        said = error_of(tiny.command(run, updates=5), capsys)
    assert f"checkpoints is in use by process {os.getpid()}" in said
    assert "--trainer.default_root_dir" in said


def test_what_a_killed_run_left_half_written_is_removed_by_the_next(
    tiny: Tiny, run: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    (folder / "checkpoints").mkdir(parents=True)
    half = folder / "checkpoints" / ".best-step=4.ckpt.tmp"
    half.write_bytes(b"half")
    main(tiny.command(folder, updates=1))
    assert not half.exists()


@contextmanager
def powerless() -> Iterator[None]:
    """Root like any other owner: what lets it write where nobody may is laid down for a while."""
    if os.geteuid():
        yield
        return
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # version 3 of the call, this process
    sets = (ctypes.c_uint32 * 6)()  # effective, permitted and inheritable, twice 32 bits
    if libc.capget(header, sets) != 0:
        pytest.skip("root may write anywhere here")
    before = sets[0]
    sets[0] = before & ~0b110  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
    assert libc.capset(header, sets) == 0
    try:
        yield
    finally:
        sets[0] = before
        assert libc.capset(header, sets) == 0


@pytest.mark.parametrize("part", [".", "checkpoints"])
def test_a_folder_that_may_only_be_read_is_one_sentence(
    part: str, tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    command = tiny.command(folder, updates=1)
    (folder / "checkpoints").mkdir()
    closed = folder / part
    closed.chmod(0o555)
    try:
        with powerless():
            said = error_of(command, capsys)
    finally:
        closed.chmod(0o755)
    assert said.startswith(f"idlm: error: {closed.resolve()} cannot be written (Permission denied)")
    assert not (folder / "logs").exists()
