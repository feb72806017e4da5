"""How the speed bench measures: where, how often, in turns, and memory at its peak."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from idlm.models import DiffusionLM
from idlm.sampling import compile_for_sampling

Work = Callable[[], Any]


@dataclass(frozen=True)
class Setting:
    """Where a case runs.

    Attributes:
        device: ``cpu`` or ``cuda``.
        dtype: ``float32``, or ``bfloat16`` for autocast on CUDA.
        threads: of the CPU.
        compile: whether the backbone is compiled, on CUDA into a graph that is replayed.
    """

    device: str
    dtype: str = "float32"
    threads: int = 1
    compile: bool = False

    def apply(self) -> None:
        """Make this process run like that."""
        torch.set_num_threads(self.threads)

    def place(self, model: DiffusionLM) -> DiffusionLM:
        """A model on the device, compiled if asked for."""
        model = model.to(self.device)
        if self.compile:
            compile_for_sampling(model)
        return model

    def precision(self) -> Any:
        """The context in which networks are called."""
        if self.dtype == "float32":
            return nullcontext()
        return torch.autocast(self.device, dtype=getattr(torch, self.dtype))

    def wait(self) -> None:
        """Until the device has done what it was given."""
        if self.device == "cuda":
            torch.cuda.synchronize()


def take_turns(works: list[tuple[Work, int]], setting: Setting) -> list[list[float]]:
    """Seconds of every repeat of every work; in a round each that has repeats left runs once."""
    seconds: list[list[float]] = [[] for _ in works]
    for number in range(max(repeats for _, repeats in works)):
        for (work, repeats), found in zip(works, seconds, strict=True):
            if number < repeats:
                setting.wait()
                started = time.perf_counter()
                work()
                setting.wait()
                found.append(time.perf_counter() - started)
    return seconds


def median_ratio(above: list[float], below: list[float]) -> float:
    """Median over rounds of the ratio of two works that took turns."""
    return statistics.median(a / b for a, b in zip(above, below, strict=False))


def peak(work: Work, setting: Setting) -> int | None:
    """Bytes at the peak of some work over what is there before; call it in a fresh process.

    Returns:
        By CUDA's allocator, or of the process, which Linux alone can tell: None elsewhere.
    """
    gc.collect()
    if setting.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        return torch.cuda.max_memory_allocated() - before
    status, reset = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    if not (status.exists() and reset.exists()):
        return None
    try:
        reset.write_text("5")  # forget the peak so far
    except OSError:  # in a sandbox
        return None
    before = _kibibytes(status, "VmRSS")
    work()
    return 1024 * (_kibibytes(status, "VmHWM") - before)


def _kibibytes(status: Path, name: str) -> int:
    line = next(line for line in status.read_text().splitlines() if line.startswith(name))
    return int(line.split()[1])
