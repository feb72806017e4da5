"""Run a generated program in a process that can compute and print, and nothing else.

What holds a program, and what each layer is worth, is in ``docs/gsm8k.md``. In short: resource
limits and a system call filter of the kernel are the wall; an allow-list of imports, builtins
without ``open`` and an audit hook are guards that give a clear reason in the common cases; the
parent's clock ends whatever is left.
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from idlm.errors import UserError
from idlm.sandbox.child import READY

_CHILD = Path(__file__).with_name("child.py")
# The line that reports is shorter; a program that finds stdout itself gets no further than this.
_MOST_BYTES = 1 << 16
_LONGEST_TEXT = 1000
_STARTUP_SECONDS = 60.0

FAILURES = (
    "time",
    "memory",
    "output",
    "import",
    "forbidden",
    "syntax",
    "error",
    "exit",
    "crash",
    "no_answer",
)
"""Outcomes other than ``answered``: over a limit, an import or act that is not allowed, Python that
does not parse, an exception, SystemExit, a death of the interpreter, no value."""


@dataclass(frozen=True)
class Limits:
    """What a program may use.

    Attributes:
        seconds: of time by the clock; processor time is limited a second or two above it.
        memory_mb: address space of its process, the interpreter's 60 MB included.
        output: characters it may print.
    """

    seconds: float = 5.0
    memory_mb: int = 512
    output: int = 65536

    def __post_init__(self) -> None:
        if not 0 < self.seconds <= 3600:
            raise UserError(f"the time limit is {self.seconds} seconds; give more than 0 to 3600")
        if self.memory_mb < 128:
            raise UserError(f"the memory limit is {self.memory_mb} MB; Python needs 128 or more")
        if self.output < 1:
            raise UserError(f"the output limit is {self.output} characters; give 1 or more")


@dataclass(frozen=True)
class Outcome:
    """How a program ended.

    Attributes:
        outcome: "answered" or one of :data:`FAILURES`.
        detail: what it was: an exception's name, the import, the limit.
        answer: what it returned or printed, as text; None unless it answered.
    """

    outcome: str
    detail: str = ""
    answer: str | None = None


@functools.cache
def isolation() -> dict[str, bool]:
    """What this machine's kernel can enforce; found out once, with a program that does nothing.

    Returns:
        ``seccomp``: the system call filter; ``network_namespace``: a network of its own.
    """
    found = {}
    for name in ("seccomp", "network_namespace"):
        wanted = {"seccomp": False, "network_namespace": False, name: True}
        found[name] = _run("result = 1", Limits(), "", wanted).outcome == "answered"
    return found


def run_program(
    source: str,
    *,
    entry: str = "simple_math_problem",
    limits: Limits | None = None,
    weak: bool = False,
) -> Outcome:
    """Run a program and say what it answered.

    Args:
        source: Python.
        entry: a function that is called without arguments if the program defines it, as TinyGSM's
            programs do; else the value of ``result`` or ``answer``, else the last line printed.
        limits: of time, memory and output.
        weak: run it even where the kernel offers no system call filter, see ``docs/gsm8k.md``.

    Raises:
        UserError: without that filter, unless ``weak``.
    """
    available = isolation()
    require_isolation(weak=weak)
    outcome = _run(source, limits or Limits(), entry, available)
    if outcome.outcome == "setup":
        raise RuntimeError(f"the sandbox could not be set up: {outcome.detail}")
    return outcome


def require_isolation(*, weak: bool) -> None:
    """Refuse to run programs where the kernel cannot hold them.

    Raises:
        UserError: without a system call filter, unless ``weak``.
    """
    if not isolation()["seccomp"] and not weak:
        raise UserError(
            "this machine offers no system call filter (seccomp, Linux on x86-64 or arm64), so "
            "generated programs would be held by Python's guards and resource limits alone; run "
            "this on Linux, or accept that with --weak-sandbox"
        )


def _run(source: str, limits: Limits, entry: str, kernel: dict[str, bool]) -> Outcome:
    settings = {
        "cpu": math.ceil(limits.seconds) + 1,  # behind the clock, in case the parent dies
        "memory": limits.memory_mb << 20,
        "output": limits.output,
        "entry": entry,
        **kernel,
    }
    command = [sys.executable, "-I", "-S", "-B", str(_CHILD), json.dumps(settings)]
    with tempfile.TemporaryDirectory(prefix="idlm-program-") as folder:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=folder,
            env={},
            close_fds=True,
            start_new_session=True,
        )
        try:
            said, why, ran = _converse(process, source, limits.seconds)
        finally:
            _end(process)
        return _outcome(said, why, process.returncode, ran=ran)


def _converse(
    process: subprocess.Popen[bytes], source: str, seconds: float
) -> tuple[bytes, str | None, bool]:
    """Hand the program over and listen until it ends or breaks a limit, which is returned.

    Returns:
        What was said, the limit that was broken, and whether the program ran at all.
    """
    assert process.stdin is not None  # a pipe
    try:
        process.stdin.write(source.encode("utf-8", "replace"))
        process.stdin.close()
    except BrokenPipeError:  # it died before it read
        return b"", None, False
    said, why = _listen(process, _STARTUP_SECONDS, lambda said: READY in said)
    if why is not None or READY not in said:
        return said, why, False
    # the program's own time: a busy machine may take seconds to start Python
    more, why = _listen(process, seconds, lambda said: False)
    return said.partition(READY)[2] + more, why, True


def _listen(
    process: subprocess.Popen[bytes], seconds: float, enough: Callable[[bytes], bool]
) -> tuple[bytes, str | None]:
    """What it writes until it ends, has said enough, or breaks a limit, which is returned."""
    assert process.stdout is not None
    deadline = time.monotonic() + seconds
    said = b""
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while (left := deadline - time.monotonic()) > 0:
            if not selector.select(left):
                continue
            piece = os.read(process.stdout.fileno(), _MOST_BYTES)
            said += piece
            if not piece or enough(said):
                return said, None
            if len(said) > _MOST_BYTES:
                return said, "output"
    return said, "time"


def _end(process: subprocess.Popen[bytes]) -> None:
    """Leave no process: the whole group is killed, and waited for."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            stream.close()


def _outcome(said: bytes, broken: str | None, code: int, *, ran: bool) -> Outcome:
    """What the child said, or what its end means.

    A program that ran and found stdout can say anything at all in its place.
    """
    if broken is not None:
        return Outcome(broken, "over the limit")
    try:
        found = json.loads(said)
        outcome, detail, answer = found["outcome"], found["detail"], found["answer"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return _death(code)
    if outcome not in ("answered", *FAILURES) and (ran or outcome != "setup"):
        return Outcome("crash", "an outcome that there is none of")
    if not isinstance(detail, str) or isinstance(answer, str) is not (outcome == "answered"):
        return Outcome("crash", "a report that is none")
    return Outcome(outcome, _written(detail), None if answer is None else _written(answer))


def _written(text: str) -> str:
    """As much as the child would say, without halves of characters, which no file takes."""
    return text[:_LONGEST_TEXT].encode("utf-8", "replace").decode("utf-8")


def _death(code: int) -> Outcome:
    if code == -signal.SIGXCPU:
        return Outcome("time", "processor time")
    if code < 0:
        known = -code in {*map(int, signal.Signals)}  # most real-time signals have no name
        return Outcome("crash", signal.Signals(-code).name if known else f"signal {-code}")
    return Outcome("crash", f"exit code {code} without a word")
