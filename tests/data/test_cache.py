from __future__ import annotations

import errno
import json
import logging
import multiprocessing
import os
import resource
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from idlm.data import PackedDataModule, cache
from idlm.data.packing import PackingReport
from idlm.errors import UserError


@pytest.fixture
def tokenised(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Counts the calls that tokenise."""
    from idlm.data import packing

    calls: list[int] = []
    original = packing.tokenize
    monkeypatch.setattr(
        packing, "tokenize", lambda texts, t: (calls.append(len(texts)), original(texts, t))[1]
    )
    return calls


def test_blocks_become_one_memory_mapped_array(tmp_path: Path) -> None:
    blocks = [np.arange(12, dtype=np.uint16).reshape(n, -1) for n in (2, 3, 1)]
    blocks = [block[:, :4] for block in blocks]
    conditions = {"length": 4}
    cache.write_rows(tmp_path, "key", blocks, conditions=conditions, report=PackingReport(rows=6))
    found = cache.open_rows(tmp_path, "key")
    assert found is not None
    rows, metadata = found
    assert isinstance(rows, np.memmap)
    assert np.array_equal(rows, np.concatenate(blocks))
    assert metadata["rows"] == 6
    assert metadata["length"] == 4


def test_an_interrupted_write_leaves_no_entry(tmp_path: Path) -> None:
    def interrupted() -> Iterator[np.ndarray]:
        yield np.zeros((2, 4), np.uint16)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache.write_rows(tmp_path, "key", interrupted(), conditions={}, report=PackingReport())
    assert cache.open_rows(tmp_path, "key") is None
    assert list(tmp_path.iterdir()) == []


def test_a_second_module_finds_the_rows_and_tokenises_nothing(
    data: Callable[..., PackedDataModule], tokenised: list[int]
) -> None:
    first = data()
    first.prepare_data()
    assert tokenised
    tokenised.clear()
    second = data()
    second.prepare_data()
    assert not tokenised
    assert np.array_equal(second.rows("train"), first.rows("train"))


def test_a_changed_text_is_tokenised_again(
    data: Callable[..., PackedDataModule], tokenised: list[int], jsonl: Path
) -> None:
    before = data().rows("train")
    tokenised.clear()
    jsonl.write_text(json.dumps({"text": "one new document " * 40}) + "\n" + jsonl.read_text())
    assert not np.array_equal(data().rows("train")[: len(before)], before)
    assert tokenised


@pytest.mark.parametrize("change", [{"length": 17}, {"special_ends": True}])
def test_other_packing_settings_are_another_entry(
    data: Callable[..., PackedDataModule], tokenised: list[int], change: dict[str, object]
) -> None:
    data().rows("train")
    tokenised.clear()
    data(**change).rows("train")
    assert tokenised


def test_idlm_cache_moves_the_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("IDLM_CACHE", str(tmp_path / "elsewhere"))
    assert cache.cache_folder() == tmp_path / "elsewhere" / "packed"
    assert cache.cache_folder(tmp_path) == tmp_path / "packed"


def test_a_cache_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    blocker = tmp_path / "file"
    blocker.write_text("")
    with pytest.raises(UserError, match=r"cache folder .* cannot be written.*set IDLM_CACHE"):
        cache.write_rows(blocker / "packed", "k", [], conditions={}, report=PackingReport())


def _damaged_rows(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-3] ^= 1
    file.write_bytes(data)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "flipped": _damaged_rows,
    "truncated": lambda file: os.truncate(file, file.stat().st_size - 32),
    "empty": lambda file: file.write_bytes(b""),
    "no metadata": lambda file: file.with_suffix(".json").write_text("{"),
    "of an older version": lambda file: file.with_suffix(".json").write_text("{}"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_rows_that_are_not_what_was_written_are_packed_anew_and_said(
    damage: str,
    data: Callable[..., PackedDataModule],
    tokenised: list[int],
    caplog: pytest.LogCaptureFixture,
) -> None:
    module = data()
    expected = module.rows("train").copy()
    file = module.cache_folder / f"{module.metadata['train']['key']}.npy"
    tokenised.clear()
    DAMAGE[damage](file)
    with caplog.at_level(logging.WARNING, "idlm.data"):
        assert np.array_equal(data().rows("train"), expected)
    assert tokenised
    assert f"the packed rows in {file} are not what was written" in caplog.text
    assert len([r for r in caplog.records if r.name == "idlm.data.cache"]) == 1
    caplog.clear()
    tokenised.clear()
    data().rows("train")
    assert (tokenised, caplog.text) == ([], "")


def test_a_text_that_changes_while_it_is_packed_is_refused_and_nothing_is_kept(
    data: Callable[..., PackedDataModule], monkeypatch: pytest.MonkeyPatch, jsonl: Path
) -> None:
    from idlm.data import packing

    original = packing.tokenize

    def changing(texts: list[str], tokenizer: object) -> np.ndarray:
        with jsonl.open("a") as file:
            file.write(json.dumps({"text": "written meanwhile"}) + "\n")
        return original(texts, tokenizer)  # type: ignore[arg-type]

    monkeypatch.setattr(packing, "tokenize", changing)
    module = data()
    with pytest.raises(UserError, match=r"changed while its train split was packed.*run again"):
        module.rows("train")
    assert list(module.cache_folder.iterdir()) == []


def _pack_slowly(module: PackedDataModule, answers: Any) -> None:
    from idlm.data import packing

    original = packing.tokenize

    def slow(texts: list[str], tokenizer: object) -> np.ndarray:
        answers.put("tokenises")
        time.sleep(0.4)
        return original(texts, tokenizer)  # type: ignore[arg-type]

    packing.tokenize = slow  # type: ignore[assignment]
    answers.put(int(module.rows("train").sum()))


def test_two_processes_that_want_the_same_rows_at_once_tokenise_them_once(
    data: Callable[..., PackedDataModule],
) -> None:
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    data().tokenizer  # noqa: B018 - imported once, before the fork
    both = [context.Process(target=_pack_slowly, args=(data(), answers)) for _ in range(2)]
    for process in both:
        process.start()
    said = [answers.get(timeout=60) for _ in range(3)]
    for process in both:
        process.join(60)
        assert process.exitcode == 0
    assert said.count("tokenises") == 1
    assert set(said) - {"tokenises"} == {int(data().rows("train").sum())}


def test_the_lock_and_the_leftovers_of_a_killed_process_are_no_hindrance(
    data: Callable[..., PackedDataModule],
) -> None:
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    module = data()
    module.tokenizer  # noqa: B018 - imported once, before the fork
    killed = context.Process(target=_pack_slowly, args=(module, answers))
    killed.start()
    assert answers.get(timeout=60) == "tokenises"
    os.kill(killed.pid or 0, signal.SIGKILL)
    killed.join(60)
    assert [f for f in module.cache_folder.iterdir() if f.suffix == ".npy"]  # half an entry
    rows = module.rows("train")
    left = sorted(f.suffix for f in module.cache_folder.iterdir())
    assert left == [".json", ".npy"]
    assert len(rows) == module.metadata["train"]["rows"]


def test_entries_have_the_permissions_of_any_new_file_and_are_private_until_they_are_whole(
    tmp_path: Path,
) -> None:
    seen: list[int] = []

    def blocks() -> Iterator[np.ndarray]:
        for _ in range(2):
            seen.extend(file.stat().st_mode & 0o777 for file in tmp_path.iterdir())
            yield np.zeros((2, 4), np.uint16)

    before = os.umask(0o027)
    try:
        cache.write_rows(tmp_path, "key", blocks(), conditions={}, report=PackingReport())
    finally:
        os.umask(before)
    modes = {file.name: file.stat().st_mode & 0o777 for file in tmp_path.iterdir()}
    assert modes == {"key.npy": 0o640, "key.json": 0o640}
    assert seen == [0o600, 0o600]


@pytest.mark.parametrize("call", ["fchmod", "replace"])
@pytest.mark.parametrize("at", [1, 2])
def test_an_entry_that_cannot_be_finished_leaves_no_temporary_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, at: int
) -> None:
    real, calls = getattr(os, call), []

    def full(*args: Any) -> None:
        calls.append(args)
        if len(calls) == at:  # the rows first, then the metadata
            raise OSError(errno.ENOSPC, "No space left on device")
        real(*args)

    monkeypatch.setattr(os, call, full)
    with pytest.raises(UserError, match=r"cache folder .* cannot be written \(No space left"):
        cache.write_rows(
            tmp_path,
            "key",
            [np.zeros((2, 4), np.uint16)],
            conditions={},
            report=PackingReport(),
        )
    assert cache.open_rows(tmp_path, "key") is None
    assert [file.name for file in tmp_path.iterdir()] == ["key.npy"] * (at - 1)


def test_metadata_that_finds_no_room_leaves_no_temporary_file(tmp_path: Path) -> None:
    def write() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        with pytest.raises(UserError, match=r"cache folder .* cannot be written"):
            cache.write_rows(
                tmp_path,
                "key",
                [np.zeros((2, 4), np.uint16)],
                conditions={"long": "x" * 8192},
                report=PackingReport(),
            )

    process = multiprocessing.get_context("fork").Process(target=write)
    process.start()
    process.join(60)
    assert process.exitcode == 0
    assert [file.name for file in tmp_path.iterdir()] == ["key.npy"]


def test_a_cache_that_cannot_be_locked_is_refused_with_what_to_set(tmp_path: Path) -> None:
    (tmp_path / ".key.lock").symlink_to(tmp_path / "victim")
    said = r"cache folder .* cannot be written \(Too many levels.*set IDLM_CACHE"
    with pytest.raises(UserError, match=said), cache.packing(tmp_path, "key"):
        pass
    assert not (tmp_path / "victim").exists()
