"""What counts as flat, and that the measurement measures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from idlm.cli.main import main
from idlm.errors import UserError
from idlm.reliability import endurance
from idlm.reliability.compare import same
from idlm.reliability.endurance import Gauge, gauge, growth, is_flat
from idlm.reliability.record import record
from idlm.reliability.tiny import make_tiny

MB = 1 << 20


def series(rss: list[float], handles: int = 9) -> list[Gauge]:
    return [{"rss": int(m * MB), "handles": handles, "threads": 3} for m in rss]


def test_growth_is_the_last_quarter_over_the_second() -> None:
    assert growth([9, 9, 1, 2, 5, 5, 7, 8]) == 7.5 - 1.5
    with pytest.raises(UserError, match="3 measurements"):
        growth([1, 2, 3])


def test_a_leak_is_no_noise_and_warming_up_is_no_leak() -> None:
    noise = [400 + (-1) ** n for n in range(40)]
    assert is_flat(series(noise))
    assert is_flat(series([300 + 10 * n for n in range(10)] + noise[10:]))
    # 10 kB at each of 2,000 updates
    leak = [400 + 50 * n * 0.01 for n in range(40)]
    assert is_flat(series([400.0] * 40))
    assert not is_flat(series([m + n * 0.3 for n, m in enumerate(leak)]))
    growing = series([400.0] * 40)
    for number, point in enumerate(growing):
        point["handles"] += number // 10
    assert not is_flat(growing)


def test_a_file_that_stays_open_and_memory_that_is_kept_are_seen(tmp_path: Path) -> None:
    before = gauge()
    with (tmp_path / "file").open("w"):
        kept = bytearray(64 * MB)
        kept[:] = b"x" * len(kept)
        after = gauge()
    assert after["handles"] == before["handles"] + 1
    assert after["rss"] - before["rss"] > 50 * MB
    assert gauge()["handles"] == before["handles"]


def test_training_and_generation_are_measured_in_one_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endurance, "_POINTS", 8)
    found = endurance.endure(tmp_path, updates=24, generations=8)
    for name in ("training", "generation"):
        assert len(found[name]["rss_over_time"]) == 8
        assert min(found[name]["rss_over_time"]) > 50 * MB
        assert found[name]["handles_growth"] <= 0


def test_a_section_leaves_the_others_of_the_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "reliability.json"
    record(path, "kills", {"moments": 20})
    record(path, "endurance", {"flat": True})
    record(path, "kills", {"moments": 3})
    found = json.loads(path.read_text())
    assert found["kills"]["moments"] == 3
    assert found["endurance"]["flat"] is True
    assert found["kills"]["torch"]
    path.write_text("[]")
    with pytest.raises(UserError, match="holds no object of sections"):
        record(path, "kills", {})


def test_two_deterministic_runs_are_equal_bit_by_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    asked = []
    real = torch.use_deterministic_algorithms
    monkeypatch.setattr(
        torch,
        "use_deterministic_algorithms",
        lambda mode, **more: (asked.append(mode), real(mode, **more)),
    )
    torch.set_num_threads(1)
    tiny = make_tiny(tmp_path / "tiny")
    runs = [tmp_path / "first", tmp_path / "second"]
    for run in runs:
        main([*tiny.command(run, updates=2), "--deterministic"])
    assert asked.count(True) == 2
    a, b = (torch.load(run / "checkpoints" / "last.ckpt") for run in runs)
    assert len(a["state_dict"]) > 30
    for key in ("state_dict", "optimizer_states", "lr_schedulers", "PackedDataModule"):
        assert same(a[key], b[key]), key
    # and the setting is in the configuration that is kept with the run
    assert "deterministic: true" in (runs[0] / "logs" / "version_0" / "config.yaml").read_text()
