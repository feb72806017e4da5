"""Processes: how clean tokens become noise and back."""

from __future__ import annotations

from idlm.errors import UserError
from idlm.processes.absorbing import LOG_ZERO, Absorbing
from idlm.processes.base import Process
from idlm.schedules import make_schedule

__all__ = ["LOG_ZERO", "Absorbing", "Process", "make_process"]

_PROCESSES = {Absorbing.name: Absorbing}


def make_process(
    name: str, vocab_size: int, *, schedule: str = "log-linear", eps: float = 1e-3
) -> Process:
    """Build a process by the name that configs and checkpoints carry.

    Raises:
        UserError: if the name is unknown.
    """
    if name not in _PROCESSES:
        raise UserError(f"process is {name!r}; choose one of {', '.join(sorted(_PROCESSES))}")
    return _PROCESSES[name](vocab_size, make_schedule(schedule, eps))
