"""Does a long process grow? Memory and open files over thousands of updates and generations.

``python -m idlm.reliability.endurance --output eval/results/reliability.json`` makes 2,000 updates
of a real ``idlm fit``, with its checkpoints and validations, and 500 runs of ``idlm generate``, all
in one process, and measures as it goes.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import time
from argparse import ArgumentParser
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from lightning.pytorch.callbacks import Callback

from idlm.errors import UserError
from idlm.reliability.record import record, told
from idlm.reliability.tiny import Tiny, make_tiny

# What counts as flat: the median of the last quarter over that of the second quarter. The first is
# warm-up: allocators and caches fill.
MEMORY_SHARE = 0.01
MEMORY_BYTES = 4 << 20
_POINTS = 40  # measurements of a series

Gauge = dict[str, int]


def gauge() -> Gauge:
    """Resident memory in bytes, open file handles and threads of this process (Linux)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return {
        "rss": pages * os.sysconf("SC_PAGE_SIZE"),
        # less the one that lists them
        "handles": len(os.listdir("/proc/self/fd")) - 1,
        "threads": len(os.listdir("/proc/self/task")),
    }


def growth(values: Sequence[int]) -> float:
    """Median of the last quarter of a series less that of its second quarter."""
    quarter = len(values) // 4
    if quarter < 1:
        raise UserError(f"{len(values)} measurements have no quarters; make more of them")
    return statistics.median(values[-quarter:]) - statistics.median(values[quarter : 2 * quarter])


def is_flat(series: Sequence[Gauge]) -> bool:
    """Whether memory grows by at most 1 % or 4 MiB, and handles and threads not at all."""
    rss = [point["rss"] for point in series]
    allowed = max(MEMORY_BYTES, MEMORY_SHARE * statistics.median(rss))
    counts = [[point[name] for point in series] for name in ("handles", "threads")]
    return growth(rss) <= allowed and all(growth(values) <= 0 for values in counts)


class GaugeCallback(Callback):
    """Appends a measurement to a file after every so many updates.

    Args:
        path: a line of JSON for each.
        every: updates between two.
    """

    def __init__(self, path: str, every: int) -> None:
        self.path, self.every = path, every

    def on_train_batch_end(self, trainer: Any, *args: Any, **kwargs: Any) -> None:
        """Measure, if it is time."""
        if trainer.global_step % self.every == 0:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps(gauge()) + "\n")


def train(tiny: Tiny, folder: Path, updates: int) -> list[Gauge]:
    """Measurements over a training of at least so many updates of either network."""
    from idlm.cli.main import main

    path = folder / "gauge.jsonl"
    arguments = {"path": str(path), "every": max(1, updates // _POINTS)}
    home = "idlm.reliability.endurance.GaugeCallback"
    callbacks = [{"class_path": home, "init_args": arguments}]
    student = -(-updates // 3)  # two of the fake model beside each of the student
    main(tiny.command(folder, updates=student, save_every=25, callbacks=callbacks))
    return [json.loads(line) for line in path.read_text().splitlines()]


def generate(checkpoint: Path, folder: Path, count: int) -> list[Gauge]:
    """Measurements over so many runs of ``idlm generate``."""
    from idlm.cli.main import main

    output = folder / "samples.jsonl"
    command = ["generate", f"--checkpoint={checkpoint}", "--steps=4", "--num-samples=2"]
    series = []
    for number in range(count):
        main([*command, f"--seed={number}", f"--output={output}"])
        if number % max(1, count // _POINTS) == 0:
            series.append(gauge())
    return series


def endure(folder: Path, *, updates: int, generations: int) -> dict[str, Any]:
    """Train and generate in this process, and say whether it stayed flat.

    Args:
        folder: an empty one.
        updates: of either network.
        generations: runs of ``idlm generate``.
    """
    import torch

    torch.set_num_threads(1)
    started = time.monotonic()
    tiny = make_tiny(folder / "tiny")
    run = folder / "run"
    with open(os.devnull, "w") as quiet, redirect_stdout(quiet):
        training = train(tiny, run, updates)
        seconds = time.monotonic() - started
        generating = generate(run / "export", folder, generations)
    parts = {"training": (updates, training), "generation": (generations, generating)}
    return {
        **{name: {"count": n, **_figures(series)} for name, (n, series) in parts.items()},
        "criterion": "median of the last quarter less that of the second quarter: memory at most "
        f"{MEMORY_SHARE:.0%} or {MEMORY_BYTES >> 20} MiB, handles and threads 0",
        "flat": all(is_flat(series) for _, series in parts.values()),
        "seconds_training": round(seconds, 1),
        "seconds_generation": round(time.monotonic() - started - seconds, 1),
    }


def _figures(series: list[Gauge]) -> dict[str, Any]:
    names = ("rss", "handles", "threads")
    return {
        "flat": is_flat(series),
        **{f"{name}_growth": int(growth([p[name] for p in series])) for name in names},
        **{f"{name}_over_time": [p[name] for p in series] for name in names},
    }


def main(argv: Sequence[str] | None = None) -> None:
    """The command line: exit code 0 if everything stayed flat, 1 if not."""
    parser = ArgumentParser(prog="python -m idlm.reliability.endurance", description=__doc__)
    parser.add_argument("--updates", type=int, default=2000, help="of either network (2000)")
    parser.add_argument("--generations", type=int, default=500, help="`idlm generate`s (500)")
    parser.add_argument("--output", metavar="JSON", help="put the figures under `endurance` here")
    args = parser.parse_args(argv)
    for name in ("updates", "generations"):
        if getattr(args, name) < 8:
            raise UserError(f"--{name} is {getattr(args, name)}; it must be at least 8")
    if not Path("/proc/self/statm").exists():
        raise UserError("memory is read from /proc/self, which this system does not have")
    with tempfile.TemporaryDirectory(prefix="idlm-endurance-") as folder:
        figures = endure(Path(folder), updates=args.updates, generations=args.generations)
    said = f"--updates {args.updates} --generations {args.generations}"
    figures = {"command": f"python -m idlm.reliability.endurance {said}", **figures}
    for name in ("training", "generation"):
        part = figures[name]
        print(
            f"{name}: {part['count']}, memory {part['rss_growth'] / (1 << 20):+.1f} MiB, handles "
            f"{part['handles_growth']:+d}, threads {part['threads_growth']:+d}: "
            f"{'flat' if part['flat'] else 'GROWS'}"
        )
    if args.output:
        print(f"written: {record(args.output, 'endurance', figures)}")
    if not figures["flat"]:
        sys.exit(1)


if __name__ == "__main__":
    told(main)
