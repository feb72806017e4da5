"""Two runs side by side: what their updates logged, and what they ended with."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

PER_STUDENT = 2  # updates of the fake model before each of the student, as the tiny run has it
Losses = dict[tuple[int, int], dict[str, str]]


def losses(log: Path) -> Losses:
    """What each update logged about itself: (fake updates, student updates) to names and digits.

    Args:
        log: folder of one life's log; without one nothing was logged.
    """
    found: Losses = {}
    path = log / "metrics.csv"
    whole, newline, _ = (path.read_text() if path.exists() else "").rpartition("\n")
    # what stands behind the last newline was being written when the process was killed
    for row in csv.DictReader((whole + newline).splitlines()):
        if row.get("student_updates") and None not in row.values():
            fake, student = int(float(row["fake_updates"])), int(float(row["student_updates"]))
            # the last value of the other network stands beside it
            own = "student" if fake == PER_STUDENT * student else "fake"
            found[fake, student] = {k: v for k, v in row.items() if k.startswith(f"train/{own}_")}
    return found


def same_end(killed: Path, straight: Path) -> bool:
    """Whether two runs ended with the same state and the same export, bit by bit.

    Args:
        killed: folder of one.
        straight: folder of the other.
    """
    import torch

    a, b = (
        torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
        for folder in (killed, straight)
    )
    keys = ["state_dict", "optimizer_states", "lr_schedulers", "global_step", "PackedDataModule"]
    keys += ["student_updates", "fake_updates"]
    exported = [
        (folder / "export" / "model.safetensors").read_bytes() for folder in (killed, straight)
    ]
    return all(same(a[key], b[key]) for key in keys) and exported[0] == exported[1]


def same(a: Any, b: Any) -> bool:
    """Equality of nested containers of tensors, bit by bit."""
    import torch

    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else bool(a == b)
