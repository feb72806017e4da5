from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

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
