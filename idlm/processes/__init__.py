"""Processes: how clean tokens become noise and back."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TypeVar

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
    "process_class",
    "register",
]

# each is built as kind(vocab_size, schedule)
_PROCESSES: dict[str, type[Process]] = {
    Absorbing.name: Absorbing,
    Uniform.name: Uniform,
}
_Kind = TypeVar("_Kind", bound=type[Process])


def register(kind: _Kind) -> _Kind:
    """Make a process of your own known by its ``name``; a class decorator.

    Configs, checkpoints and ``TeacherModule(process=...)`` may name it from then on; who reads such
    a checkpoint registers it first. It has no sampler before :func:`idlm.sampling.register` gives
    it one. A class that is defined again, as by a notebook's cell, takes its own place.

    Args:
        kind: a subclass of :class:`Process`, built as ``kind(vocab_size, schedule)``.

    Returns:
        The class.

    Raises:
        UserError: if it is no process, or its name is malformed or another's.
    """
    if not (isinstance(kind, type) and issubclass(kind, Process)):
        raise UserError(f"{kind!r} is no process; register a subclass of idlm.processes.Process")
    name = getattr(kind, "name", None)
    if not isinstance(name, str) or not re.fullmatch(r"[a-z][a-z0-9_-]*", name):
        raise UserError(
            f"the process {kind.__name__} has the name {name!r}; choose lower-case letters, "
            "digits, - and _, a letter first"
        )
    taken = _PROCESSES.get(name)
    if name == Gaussian.name or (taken is not None and not same_definition(taken, kind)):
        raise UserError(
            f"the name {name!r} of the process {kind.__name__} is taken; choose another"
        )
    _PROCESSES[name] = kind
    return kind


def same_definition(first: object, second: object) -> bool:
    """Whether two classes or functions come from the same place of a program."""
    places = [(getattr(x, "__module__", x), getattr(x, "__qualname__", x)) for x in (first, second)]
    return places[0] == places[1]


def process_class(name: str) -> type[Process]:
    """The process over tokens that configs and checkpoints call so.

    Raises:
        UserError: if the name is unknown.
    """
    if name not in _PROCESSES:
        raise UserError(f"process is {name!r}; choose one of {', '.join(sorted(_PROCESSES))}")
    return _PROCESSES[name]


def make_process(
    name: str, vocab_size: int, *, schedule: str = "log-linear", eps: float = 1e-3
) -> Process:
    """Build a process over tokens by the name that configs and checkpoints carry.

    Raises:
        UserError: if the name is unknown.
    """
    kind: Callable[[int, Schedule], Process] = process_class(name)
    return kind(vocab_size, make_schedule(schedule, eps))
