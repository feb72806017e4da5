"""Locks between processes of one protocol."""

from __future__ import annotations

from pathlib import Path

import pytest

from idlm.errors import UserError
from idlm.evaluation.locks import hold


def test_a_link_in_the_place_of_a_lock_is_not_followed(tmp_path: Path) -> None:
    victim, lock = tmp_path / "victim", tmp_path / "a.lock"
    lock.symlink_to(victim)
    with pytest.raises(UserError, match=r"a\.lock cannot be made \(Too many levels"), hold(lock):
        pass
    assert not victim.exists()
