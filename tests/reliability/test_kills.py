"""The programs that disturb runs: they find nothing, and would find something."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from idlm.errors import UserError
from idlm.paths import repo_dir
from idlm.reliability import compare, kills
from idlm.reliability.kills import Moment
from idlm.reliability.tiny import Tiny, make_tiny


def test_a_run_killed_at_random_moments_is_the_undisturbed_run(tmp_path: Path) -> None:
    found = kills.disturb(tmp_path, moments=3, seed=1)
    assert found["equal"]
    assert found["final_state_and_export_equal"]
    assert found["losses_different"] == 0
    assert found["losses_compared"] > 15
    # a checkpoint is written every third update
    assert found["most_updates_made_again"] <= 3
    assert [life["aim"] for life in found["lives"]] == ["update", "update", "writing", "end"]
    assert found["lives"][2]["left_half"]
    assert found["inside_checkpoint_writing"] >= 1


def test_a_life_that_goes_on_from_other_weights_is_found_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The comparison can fail."""
    tiny, real = make_tiny(tmp_path / "tiny"), kills._start
    monkeypatch.setattr(kills, "make_tiny", lambda *_, **__: tiny)

    def start(tiny: Tiny, folder: Path, updates: int, life: str) -> object:
        last = folder / "checkpoints" / "last.ckpt"
        if life == "end" and folder.name == "killed":
            held = torch.load(last)
            name = next(k for k in held["state_dict"] if k.startswith("student."))
            held["state_dict"][name] += 0.01
            torch.save(held, last)
        return real(tiny, folder, updates, life)

    monkeypatch.setattr(kills, "_start", start)
    found = kills.disturb(tmp_path / "runs", moments=1, seed=1)
    assert not found["equal"]
    assert not found["final_state_and_export_equal"]
    assert found["losses_different"] > 0


def log(folder: Path, rows: list[tuple[int, int, str]], end: str = "\n") -> Path:
    folder.mkdir()
    head = "fake_updates,student_updates,train/fake_loss,train/student_loss"
    lines = [f"{f}.0,{s}.0,{value},{value}" for f, s, value in rows]
    (folder / "metrics.csv").write_text("\n".join([head, *lines]) + end)
    return folder


def test_a_loss_that_differs_in_its_last_digit_is_counted(tmp_path: Path) -> None:
    straight = log(tmp_path / "straight", [(1, 0, "0.5"), (2, 0, "0.25"), (2, 1, "0.125")])
    life = log(tmp_path / "life", [(1, 0, "0.5"), (2, 0, "0.2500001")])
    moment = kills._compared(Moment("update", 2, 0.0, False), life, compare.losses(straight))
    assert (moment.equal, moment.different, moment.first, moment.last) == (1, 1, 1, 2)


def test_a_line_that_was_being_written_when_the_process_was_killed_is_no_loss(
    tmp_path: Path,
) -> None:
    whole = log(tmp_path / "whole", [(1, 0, "0.5"), (2, 0, "0.25")])
    cut = log(tmp_path / "cut", [(1, 0, "0.5"), (2, 0, "0.2")], end="")
    assert compare.losses(cut) == {(1, 0): {"train/fake_loss": "0.5"}}
    assert len(compare.losses(whole)) == 2
    assert compare.losses(tmp_path / "none") == {}


def test_states_that_differ_in_one_bit_are_not_the_same() -> None:
    state = {"a": [torch.tensor([1.0, 2.0])], "b": 3}
    other = {"a": [torch.tensor([1.0, 2.0])], "b": 3}
    assert compare.same(state, other)
    other["a"][0][1] = torch.nextafter(torch.tensor(2.0), torch.tensor(3.0))  # type: ignore[index]
    assert not compare.same(state, other)


def test_a_folder_in_use_and_a_senseless_number_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="is not empty"):
        kills.main(["--folder", str(tmp_path)])
    with pytest.raises(UserError, match="--moments is 0"):
        kills.main(["--moments", "0"])


def test_the_figures_of_the_project_say_what_the_page_promises() -> None:
    found = json.loads((repo_dir() / "eval" / "results" / "reliability.json").read_text())
    killed = found["kills"]
    assert killed["moments"] >= 20
    assert killed["inside_checkpoint_writing"] >= 1
    assert killed["losses_different"] == 0
    assert killed["equal"]
    assert found["determinism"]["equal"]
    assert found["endurance"]["flat"]
    assert found["endurance"]["training"]["count"] >= 2000
    assert found["endurance"]["generation"]["count"] >= 500
    for section in ("kills", "determinism", "endurance"):
        assert found[section]["command"].startswith(f"python -m idlm.reliability.{section} ")
