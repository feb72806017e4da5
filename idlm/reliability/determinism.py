"""The same command twice, in two processes: are the results equal bit by bit?

``python -m idlm.reliability.determinism --output eval/results/reliability.json`` runs ``idlm fit
--deterministic`` twice on the CPU and compares everything in the two last checkpoints, and the
bytes of the exported weights.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from idlm.paths import repo_dir
from idlm.reliability.record import record, told
from idlm.reliability.tiny import make_tiny

# what a checkpoint holds besides names of folders
COMPARED = ("state_dict", "optimizer_states", "lr_schedulers", "global_step", "PackedDataModule")


def twice(folder: Path, *, updates: int, threads: int = 1) -> dict[str, Any]:
    """Two runs of one command and what is equal in them.

    Args:
        folder: an empty one.
        updates: student updates of each.
        threads: of each process; another number may give other last digits.
    """
    import torch

    from idlm.reliability.compare import same

    tiny = make_tiny(folder / "tiny")
    runs = [folder / "first", folder / "second"]
    for run in runs:
        command = [*tiny.command(run, updates=updates), "--deterministic"]
        subprocess.run(
            [sys.executable, "-m", "idlm.cli.main", *command],
            env=os.environ | {"OMP_NUM_THREADS": str(threads), "PYTHONPATH": str(repo_dir())},
            stdout=subprocess.DEVNULL,
            check=True,
        )
    a, b = (torch.load(run / "checkpoints" / "last.ckpt", weights_only=True) for run in runs)
    weights = [(run / "export" / "model.safetensors").read_bytes() for run in runs]
    return {
        "student_updates": updates,
        "threads_of_each": threads,
        "tensors_compared": len(a["state_dict"]),
        "checkpoints_equal": all(same(a[key], b[key]) for key in COMPARED),
        "exports_equal": weights[0] == weights[1],
        "export_sha256": hashlib.sha256(weights[0]).hexdigest(),
    }


def main(argv: Sequence[str] | None = None) -> None:
    """The command line: exit code 0 if the runs are equal, 1 if not."""
    parser = ArgumentParser(prog="python -m idlm.reliability.determinism", description=__doc__)
    parser.add_argument("--updates", type=int, default=20, help="student updates of each run (20)")
    parser.add_argument("--output", metavar="JSON", help="put the figures under `determinism` here")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="idlm-determinism-") as folder:
        figures = twice(Path(folder), updates=args.updates)
    command = f"python -m idlm.reliability.determinism --updates {args.updates}"
    equal = figures["checkpoints_equal"] and figures["exports_equal"]
    print(f"two runs of {args.updates} updates: {'equal bit by bit' if equal else 'DIFFERENT'}")
    if args.output:
        figures = {"command": command, **figures, "equal": equal}
        print(f"written: {record(args.output, 'determinism', figures)}")
    if not equal:
        sys.exit(1)


if __name__ == "__main__":
    told(main)
