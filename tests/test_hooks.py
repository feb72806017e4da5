"""An action that waits for another module's import."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

from idlm.hooks import when_imported


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module that nobody has imported yet."""
    name = f"awaited_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text("value = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    monkeypatch.delitem(sys.modules, name, raising=False)
    return name


def test_the_action_runs_once_after_the_module_and_before_the_import_returns(module: str) -> None:
    seen: list[int] = []
    finders = len(sys.meta_path)
    when_imported(module, lambda: seen.append(sys.modules[module].value))
    when_imported(module, lambda: seen.append(2))
    assert module not in sys.modules
    assert seen == []
    imported = importlib.import_module(module)
    assert sorted(seen) == [1, 2]
    assert imported.__spec__ is not None
    assert len(sys.meta_path) == finders
    importlib.reload(imported)
    assert len(seen) == 2


def test_the_action_runs_at_once_for_a_module_that_is_there(module: str) -> None:
    importlib.import_module(module)
    seen: list[int] = []
    when_imported(module, lambda: seen.append(1))
    assert seen == [1]


def test_a_module_that_does_not_exist_still_fails_as_it_should() -> None:
    when_imported("no_such_module_anywhere", lambda: pytest.fail("never imported"))
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("no_such_module_anywhere")
