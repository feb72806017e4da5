"""Processes: how clean tokens become noise and back."""

from __future__ import annotations

from collections.abc import Callable

from idlm.errors import UserError
from idlm.processes.absorbing import LOG_ZERO, Absorbing
from idlm.processes.base import Process
from idlm.processes.gaussian import (
    CosineVP,
    Gaussian,
    LinearLogSNR,
    VariancePreserving,
    ddpm_sample,
    ddpm_states,
)
from idlm.processes.relaxation import GaussianRelaxation
from idlm.processes.uniform import Uniform
from idlm.schedules import Schedule, make_schedule

__all__ = [
    "LOG_ZERO",
    "Absorbing",
    "CosineVP",
    "Gaussian",
    "GaussianRelaxation",
    "LinearLogSNR",
    "Process",
    "Uniform",
    "VariancePreserving",
    "ddpm_sample",
    "ddpm_states",
    "make_process",
]

_PROCESSES: dict[str, Callable[[int, Schedule], Process]] = {
    Absorbing.name: Absorbing,
    Uniform.name: Uniform,
}


def make_process(
    name: str, vocab_size: int, *, schedule: str = "log-linear", eps: float = 1e-3
) -> Process:
    """Build a process over tokens by the name that configs and checkpoints carry.

    Raises:
        UserError: if the name is unknown.
    """
    if name not in _PROCESSES:
        raise UserError(f"process is {name!r}; choose one of {', '.join(sorted(_PROCESSES))}")
    return _PROCESSES[name](vocab_size, make_schedule(schedule, eps))
