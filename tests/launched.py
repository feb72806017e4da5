"""Real processes that meet over gloo, forked from the test so that they start fast."""

from __future__ import annotations

import io
import multiprocessing
import os
import pickle
import socket
import traceback
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import torch

from idlm.cli.main import main


def launch(count: int, work: Callable[[int], Any], *, timeout: float = 120) -> list[Any]:
    """What ``work(rank)`` returns in each of ``count`` processes, as torchrun would start them.

    Raises:
        AssertionError: with the traceback of the first process that failed.
    """
    context = multiprocessing.get_context("fork")
    port = _free_port()
    ends, processes = [], []
    for rank in range(count):
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=_run, args=(rank, count, port, work, theirs), daemon=True)
        process.start()
        theirs.close()
        ends.append(ours)
        processes.append(process)
    try:
        results = []
        for rank, end in enumerate(ends):
            assert end.poll(timeout), f"process {rank} said nothing for {timeout} s"
            good, value = pickle.loads(end.recv_bytes())
            assert good, f"process {rank} failed:\n{value}"
            results.append(value)
        return results
    finally:
        for process in processes:
            process.join(5)
            process.kill()


def command(count: int, argv: list[str], **settings: Any) -> list[Said]:
    """Run a command line of ``idlm`` in ``count`` processes.

    Args:
        count: of processes.
        argv: the command line.
        settings: ``before``, called with its rank in each process first.
    """
    before = settings.pop("before", None)

    def work(rank: int) -> Said:
        if before is not None:
            before(rank)
        return spoken(argv)

    return launch(count, work, **settings)


@dataclass(frozen=True)
class Said:
    """How a command ended."""

    code: int
    out: str
    err: str


def spoken(argv: list[str]) -> Said:
    """Run a command line of ``idlm`` in this process."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with redirect_stdout(out), redirect_stderr(err):
        try:
            main(argv)
        except SystemExit as stop:
            code = int(stop.code or 0)
    return Said(code, out.getvalue(), err.getvalue())


def _run(rank: int, count: int, port: int, work: Callable[[int], Any], answer: Connection) -> None:
    torch.set_num_threads(1)
    os.environ |= {
        # a forked process cannot start the threads that the test's own process may have started
        "OMP_NUM_THREADS": "1",
        "TORCHELASTIC_RUN_ID": "test",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "GROUP_RANK": "0",
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
    }
    try:
        # not send(): tensors would be left in memory that goes with this process
        answer.send_bytes(pickle.dumps((True, work(rank))))
    except BaseException:  # noqa: BLE001 - told to the test, which raises it
        answer.send_bytes(pickle.dumps((False, traceback.format_exc())))
    finally:
        answer.close()
        # no exit handlers: they are those of the test's own process
        os._exit(0)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
