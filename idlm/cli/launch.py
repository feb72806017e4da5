"""Several processes of one launch: how they are recognised, how they meet, and who of them speaks.

Launchers tell a process its number and how many there are by environment variables: torchrun and
accelerate, MPI's, and SLURM's ``srun``, whose names are translated here. Nothing here imports
torch before the command line is read.
"""

from __future__ import annotations

import io
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, redirect_stdout
from typing import TYPE_CHECKING, TypeVar

from idlm.errors import UserError

if TYPE_CHECKING:
    from idlm.sampling.sharded import Processes

T = TypeVar("T")

# torchrun and accelerate set the first name, MPI's launchers the others.
_COUNT = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
_INDEX = ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK", "LOCAL_RANK")
# Of these Lightning sets the last one alone, for processes that it starts by itself.
_OF_LAUNCHERS = _INDEX[:-1]
# Steps of SLURM's own, such as the batch script and the shell of salloc, are numbered from here.
_NO_STEP = 0xFFFF0000
_FIRST_PORT, _PORTS = 15000, 10000
# Processes of one launch reach the same line of code less than this apart, and a launcher then has
# ended the others, also on a busy machine.
_PATIENCE = 10.0


def launched_processes() -> int:
    """How many processes this one was launched with, itself included."""
    return max(1, _number(_environment(), _COUNT, 1))


def process_index() -> int:
    """The number of this process in its launch; 0 is the main one."""
    return _number(_environment(), _INDEX, 0) if launched_processes() > 1 else 0


def has_launcher() -> bool:
    """Whether a launcher started the processes of this run, and not one of them the others."""
    environment = _environment()
    return any(name in environment for name in _OF_LAUNCHERS)


def check_count(wanted: int) -> None:
    """Refuse a trainer of fewer processes than a launcher started: each would train by itself.

    Args:
        wanted: devices of the trainer, on all nodes.

    Raises:
        UserError: if they are not as many.
    """
    count = launched_processes()
    if has_launcher() and count not in (1, wanted):
        raise UserError(
            f"a launcher started {count} processes, and the trainer is made for {wanted}; give "
            "--trainer.devices (of a node) and --trainer.num_nodes that multiply to as many"
        )


def named(sentence: str) -> str:
    """An error's sentence with the process that has it, unless that is the main one."""
    index = process_index()
    return sentence if index == 0 else f"{sentence} (process {index} of {launched_processes()})"


def let_main_process_speak() -> None:
    """Wait where processes cannot ask each other who else failed.

    If the main one did, too, its launcher ends this one in the meantime.
    """
    if process_index() > 0:
        time.sleep(_PATIENCE)


def slurm_step(environment: Mapping[str, str]) -> dict[str, str]:
    """What torchrun would say to a task of ``srun``; nothing for any other process.

    A batch script, and a shell in an allocation (salloc, ``srun --pty``), also have SLURM's
    variables and are single processes: only a task knows its number and that of its step.

    Args:
        environment: of the process; ``MASTER_ADDR`` and ``MASTER_PORT`` are taken where they are
            set, and another launcher inside srun (``RANK``) has precedence.
    """
    index, step = environment.get("SLURM_PROCID", ""), _step(environment)
    count = environment.get("SLURM_STEP_NUM_TASKS") or environment.get("SLURM_NTASKS", "")
    if "RANK" in environment or "SLURM_PTY_PORT" in environment or step is None:
        return {}
    if not (index.isdecimal() and count.isdecimal() and int(count) > 1):
        return {}
    job = _number(environment, ("SLURM_JOB_ID", "SLURM_JOBID"), 0)
    return {
        "RANK": index,
        "WORLD_SIZE": count,
        "LOCAL_RANK": str(_local_index(environment)),
        "MASTER_ADDR": environment.get("MASTER_ADDR") or _first_host(environment),
        "MASTER_PORT": environment.get("MASTER_PORT") or str(_FIRST_PORT + (job + step) % _PORTS),
    }


@contextmanager
def meeting(
    prepare: Callable[[], T], device: Callable[[T], str | None]
) -> Iterator[tuple[T, Processes]]:
    """Read a command line in every process of the launch, and let them meet.

    Args:
        prepare: reads and checks the command line; where it fails in several processes, one says
            so.
        device: that a prepared command asks for.

    Yields:
        What ``prepare`` returns, and the processes; a single one without a launcher.

    Raises:
        UserError: what ``prepare`` raises; if the device is unknown, not here, or named by number
            for several processes; if the processes cannot meet.
        SystemExit: where another process of the launch says what is wrong.
    """
    count = launched_processes()
    if count == 1:
        prepared = prepare()
        from idlm.sampling.sharded import join

        with join(1, device(prepared)) as alone:
            yield prepared, alone
        return
    found: list[T] = []
    failure: UserError | None = None
    try:
        # --help is for one reader
        with redirect_stdout(io.StringIO()) if process_index() else nullcontext():
            found.append(prepare())
    except UserError as error:
        failure = error
    from idlm.cli.team import met

    wanted = device(found[0]) if found else None
    with torchrun_environment(), met(count, wanted, failure) as team:
        yield found[0], team


@contextmanager
def torchrun_environment() -> Iterator[None]:
    """While the block runs, a task of ``srun`` has the variables that torchrun would set."""
    added = slurm_step(os.environ)
    before = {name: os.environ.get(name) for name in added}
    os.environ.update(added)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def lightning_environment() -> Iterator[None]:
    """While the block runs, Lightning takes nothing but a task of ``srun`` for one.

    It goes by the number of tasks alone, which a shell in an allocation has, too: there it would
    refuse, or wait for tasks that nobody started. The name of the job is how it is told.
    """
    job = os.environ.get("SLURM_JOB_NAME")
    inside = _step(os.environ) is not None and "SLURM_PTY_PORT" not in os.environ
    if "SLURM_NTASKS" not in os.environ or inside:
        yield
        return
    os.environ["SLURM_JOB_NAME"] = "interactive"
    try:
        yield
    finally:
        if job is None:
            os.environ.pop("SLURM_JOB_NAME", None)
        else:
            os.environ["SLURM_JOB_NAME"] = job


def _environment() -> Mapping[str, str]:
    return {**os.environ, **slurm_step(os.environ)}


def _number(environment: Mapping[str, str], names: tuple[str, ...], default: int) -> int:
    for name in names:
        value = environment.get(name, "")
        if value.isdecimal():
            return int(value)
    return default


def _step(environment: Mapping[str, str]) -> int | None:
    step = _number(environment, ("SLURM_STEP_ID", "SLURM_STEPID"), _NO_STEP)
    return step if step < _NO_STEP else None


def _local_index(environment: Mapping[str, str]) -> int:
    """The task's number on its node, which is that of its GPU unless SLURM shows it only some."""
    local = _number(environment, ("SLURM_LOCALID",), 0)
    visible = environment.get("CUDA_VISIBLE_DEVICES", "")
    return local % len(visible.split(",")) if visible else local


def _first_host(environment: Mapping[str, str]) -> str:
    """Where task 0 runs: the first of a list such as ``gpu[007-009,12],login1``."""
    if _number(environment, ("SLURM_STEP_NUM_NODES", "SLURM_NNODES"), 1) == 1:
        return "127.0.0.1"
    names = ("SLURM_STEP_NODELIST", "SLURM_NODELIST", "SLURM_JOB_NODELIST")
    nodes = next((environment[name] for name in names if environment.get(name)), "127.0.0.1")
    return re.sub(r"\[(\w+)[^\]]*\]", r"\1", nodes).split(",")[0]
