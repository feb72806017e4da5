"""Utilisation: what an update computes, over what the device could in that time.

It is logged as ``mfu`` and counts executed FLOPs; with gradient checkpointing, which computes parts
twice, the field calls that number hardware FLOPs utilisation (HFU).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

# Peak FLOP per second of dense products in bf16 and in fp32 without TF32, by a part of the device's
# name, from NVIDIA's data sheets (which print twice the bf16 number, for sparse matrices). The
# first part that fits counts; a device that is not here gets no utilisation, not a guess.
_PEAKS: dict[str, tuple[float, float]] = {
    "H200": (989e12, 67e12),
    "H100 PCIe": (756e12, 51e12),
    "H100 NVL": (835e12, 60e12),
    "H100": (989e12, 67e12),
    "A100": (312e12, 19.5e12),
}


class Utilisation:
    """FLOPs of each kind of update, counted in the first one, and the device's peak.

    What counts are products of matrices, forward and backward, as they are executed, so also what
    gradient checkpointing and chunks of a loss repeat, and attention in the CUDA kernels that
    PyTorch's registry knows. How many positions are masked differs from update to update; the
    first one stands for all. Under bf16 autocast the heads stay in fp32, for which the peak of
    bf16 is out of reach.
    """

    def __init__(self) -> None:
        self._flops: dict[int, float] = {}

    @contextmanager
    def counting(self, which: int) -> Iterator[None]:
        """Count the whole update inside, if it is the first of its kind.

        Args:
            which: number of the optimiser.
        """
        if which in self._flops:
            yield
            return
        with _Products() as products:
            yield
        self._flops[which] = products.flops

    def rates(
        self, which: int, seconds: float, device: torch.device, precision: str
    ) -> dict[str, float]:
        """``tflops``, TFLOP per second of one process; ``mfu`` in [0, 1] where the peak is known.

        Args:
            which: number of the optimiser.
            seconds: of the update.
            device: its device.
            precision: of the trainer, which decides the peak.
        """
        rate = self._flops[which] / max(seconds, 1e-9)
        limit = peak(device, precision)
        return {"tflops": rate / 1e12} | ({"mfu": rate / limit} if limit else {})


class _Products(TorchDispatchMode):
    """Adds up what PyTorch's registry says of every kernel.

    ``FlopCounterMode`` also follows modules by hooks, which no gradient inside of an autograd
    function survives.
    """

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        count = flop_registry.get(func._overloadpacket)
        if count is not None:
            self.flops += count(*args, **kwargs, out_val=out)
        return out


def peak(device: torch.device, precision: str) -> float | None:
    """FLOP per second that a device is sold with; None for one that is not known."""
    if device.type != "cuda" or precision.startswith("64"):
        return None
    name = torch.cuda.get_device_name(device)
    half = precision.startswith("bf16")
    found = (peaks for part, peaks in _PEAKS.items() if part in name)
    return next((bf16 if half else fp32 for bf16, fp32 in found), None)
