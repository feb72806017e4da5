"""The process a generated program runs in: lock the doors, run it, say what it answered.

Started by :mod:`idlm.sandbox.run` as ``python -I -S -B child.py LIMITS`` in an empty private
folder, with an empty environment, and the program on stdin. It imports nothing of idlm. What it
writes on stdout is :data:`READY` and one JSON object: ``outcome``, ``detail`` and ``answer``.

One file, and so a long one, because nothing else of the package is there to import.

The order matters: imports and the program's text first, then limits, then the kernel's filter,
after which no file, process or socket can be had by any means, then Python's own guards.
"""

from __future__ import annotations

import builtins
import contextlib
import io
import json
import os
import resource
import sys
import types
from typing import Any, NoReturn

# What a program may import: the standard library's arithmetic, dates, text and containers.
ALLOWED = (
    "bisect",
    "calendar",
    "cmath",
    "collections",
    "collections.abc",
    "copy",
    "dataclasses",
    "datetime",
    "decimal",
    "enum",
    "fractions",
    "functools",
    "heapq",
    "itertools",
    "math",
    "numbers",
    "operator",
    "random",
    "re",
    "statistics",
    "string",
    "time",
    "typing",
)
# Imported by the above only when they are used, which would be too late; through the program's
# own `__import__`, so that they count as allowed.
_LAZY = ("_strptime", "_pydatetime", "locale")

READY = b"ready\n"

# Audit events that harmless code raises; every other one ends the program.
_HARMLESS = frozenset(
    [
        "compile",
        "exec",
        "builtins.id",
        "object.__getattr__",
        "object.__setattr__",
        "object.__delattr__",
        "sys._getframe",
        "sys.unraisablehook",
        "time.sleep",
    ]
)
_FORBIDDEN_NAMES = ("open", "input", "breakpoint", "help", "exit", "quit", "copyright", "credits")


# Freed when memory runs out, so that there is some to say so.
_BALLAST = [bytes(1 << 20)]


class _Printed(io.StringIO):
    """What the program prints; more than the limit ends it."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self._left = limit

    def write(self, text: str) -> int:
        self._left -= len(text)
        if self._left < 0:
            finish("output", "printed too much")
        return super().write(text)


def finish(outcome: str, detail: str = "", answer: str | None = None) -> NoReturn:
    """Tell the parent and end at once, whatever the program would still do."""
    # read back by the parent; the length keeps the line within its limit
    said = {"outcome": outcome, "detail": detail[:200], "answer": answer and answer[:1000]}
    os.write(1, json.dumps(said).encode())
    os._exit(0)


def main() -> None:
    """Read the program, lock, run, report."""
    limits = json.loads(sys.argv[1])
    source = sys.stdin.buffer.read().decode("utf-8", "replace")
    modules = _import_allowed()
    import ctypes  # for the kernel's filter; not among the allowed ones

    _limit(limits)
    if limits["network_namespace"]:
        _leave_network(ctypes)
    if limits["seccomp"] and (error := install_filter(ctypes)):
        finish("setup", error)
    del ctypes
    printed = _Printed(limits["output"])
    sys.stdout = sys.stderr = printed
    namespace = _guarded_namespace(modules)
    code = _compiled(source)
    os.write(1, READY)  # the parent's clock starts
    _forbid_events()
    _run(code, namespace, printed, limits["entry"])


def _import_allowed() -> dict[str, types.ModuleType]:
    import importlib
    import time

    found = {name: importlib.import_module(name) for name in ALLOWED}
    for name in _LAZY:
        with contextlib.suppress(ImportError):  # some exist only in some versions of Python
            found[name] = importlib.import_module(name)
    time.localtime()  # reads the time zone's file, once
    return found


def _limit(limits: dict[str, Any]) -> None:
    """Resource limits, hard ones: what is set here cannot be raised again without privileges."""
    # the hard limit is what kills; the soft one comes a second earlier, with a signal of its own
    resource.setrlimit(resource.RLIMIT_CPU, (limits["cpu"], limits["cpu"] + 1))
    for name, value in (
        ("RLIMIT_AS", limits["memory"]),
        ("RLIMIT_FSIZE", 0),  # no byte into any file
        ("RLIMIT_CORE", 0),
        ("RLIMIT_NPROC", 0),  # no process or thread; the kernel does not apply it to root
        ("RLIMIT_NOFILE", 0),  # no new descriptor: no file, socket, pipe
    ):
        resource.setrlimit(getattr(resource, name), (value, value))


def _leave_network(ctypes: Any) -> None:
    """A user, network and IPC namespace of its own, with no interface that is up."""
    user, net, ipc = 0x10000000, 0x40000000, 0x08000000
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(user | net | ipc):
        finish("setup", f"unshare: {os.strerror(ctypes.get_errno())}")


# The kernel's filter

# What stays, with its number on x86-64 and on arm64: memory, time, stdin and stdout, the end.
_CALLS = {
    "read": (0, 63),
    "write": (1, 64),
    "close": (3, 57),
    "fstat": (5, 80),
    "lseek": (8, 62),
    "mmap": (9, 222),
    "mprotect": (10, 226),
    "munmap": (11, 215),
    "brk": (12, 214),
    "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139),
    "sched_yield": (24, 124),
    "mremap": (25, 216),
    "madvise": (28, 233),
    "nanosleep": (35, 101),
    "getpid": (39, 172),
    "exit": (60, 93),
    "gettimeofday": (96, 169),
    "sigaltstack": (131, 132),
    "futex": (202, 98),
    "restart_syscall": (219, 128),
    "clock_gettime": (228, 113),
    "clock_getres": (229, 114),
    "clock_nanosleep": (230, 115),
    "exit_group": (231, 94),
    "getrandom": (318, 278),
    "rseq": (334, 293),
}
# The kernel's number of the architecture, and its column above.
MACHINES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}


def filter_program(machine: str) -> bytes:
    """The classic BPF program: listed system calls pass, others fail with EPERM.

    Args:
        machine: a key of :data:`MACHINES`.

    Returns:
        ``struct sock_filter`` entries of 8 bytes each.
    """
    architecture, column = MACHINES[machine]
    numbers = [both[column] for both in _CALLS.values()]
    load, jump_equal, give = 0x20, 0x15, 0x06
    allow, deny, kill = 0x7FFF0000, 0x00050001, 0x80000000

    def entry(code: int, yes: int, no: int, value: int) -> bytes:
        return (
            code.to_bytes(2, sys.byteorder)
            + bytes((yes, no))
            + (value & 0xFFFFFFFF).to_bytes(4, sys.byteorder)
        )

    head = [
        entry(load, 0, 0, 4),  # the architecture: another one has other numbers
        entry(jump_equal, 1, 0, architecture),
        entry(give, 0, 0, kill),
        entry(load, 0, 0, 0),  # the number of the call
    ]
    left = len(numbers)
    checks = [entry(jump_equal, left - i, 0, number) for i, number in enumerate(numbers)]
    return b"".join([*head, *checks, entry(give, 0, 0, deny), entry(give, 0, 0, allow)])


def install_filter(ctypes: Any) -> str:
    """Install the filter in this process, for good; returns why it could not be, or ""."""
    machine = os.uname().machine
    if sys.platform != "linux" or machine not in MACHINES:
        return f"no system call filter for {sys.platform} on {machine}"
    code = filter_program(machine)
    buffer = ctypes.create_string_buffer(code, len(code))
    # struct sock_fprog: a short, padding, a pointer
    program = (ctypes.c_uint64 * 2)(len(code) // 8, ctypes.addressof(buffer))
    if sys.byteorder != "little":
        return "no system call filter for big-endian machines"
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl.argtypes = [ctypes.c_int] + [ctypes.c_ulong] * 4
    no_new_privileges, seccomp, with_filter = 38, 22, 2
    if libc.prctl(no_new_privileges, 1, 0, 0, 0):
        return f"prctl: {os.strerror(ctypes.get_errno())}"
    if libc.prctl(seccomp, with_filter, ctypes.addressof(program), 0, 0):
        return f"seccomp: {os.strerror(ctypes.get_errno())}"
    return ""


# Python's own guards: clear words for the common cases, no wall


def _guarded_namespace(modules: dict[str, types.ModuleType]) -> dict[str, Any]:
    """Globals of the program, with builtins that have no way out by name."""

    def guarded_import(
        name: str, globals: Any = None, locals: Any = None, fromlist: Any = (), level: int = 0
    ) -> types.ModuleType:
        if level or name not in modules:
            finish("import", str(name))
        if fromlist or "." not in name:
            return modules[name]
        return modules[name.partition(".")[0]]

    def refuse(name: str) -> Any:
        def refused(*_: Any, **__: Any) -> NoReturn:
            finish("forbidden", f"{name}()")

        return refused

    safe = {name: value for name, value in vars(builtins).items() if name != "__loader__"}
    safe.update({name: refuse(name) for name in _FORBIDDEN_NAMES}, __import__=guarded_import)
    return {"__name__": "__main__", "__builtins__": safe}


def _forbid_events() -> None:
    """End the program at the first audit event that is not known to be harmless."""
    harmless = _HARMLESS

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event not in harmless:
            name = str(args[0]) if event == "import" and args else event
            finish("import" if event == "import" else "forbidden", name)

    sys.addaudithook(hook)


def _run(
    code: types.CodeType, namespace: dict[str, Any], printed: _Printed, entry: str
) -> NoReturn:
    try:
        exec(code, namespace)
        value = _value(namespace, printed, entry)
    except MemoryError:
        _BALLAST.clear()
        finish("memory", "MemoryError")
    except PermissionError as error:  # what the kernel's filter answers
        finish("forbidden", f"system call refused: {type(error).__name__}")
    except SyntaxError as error:
        finish("syntax", f"{type(error).__name__}: {error.msg}, line {error.lineno}")
    except SystemExit:
        finish("exit", "SystemExit")
    except BaseException as error:  # noqa: BLE001 - whatever it is, it is the program's
        finish("error", type(error).__name__)
    if value is None:
        finish("no_answer", "no number or text returned, named result or answer, or printed")
    finish("answered", answer=value)


def _compiled(source: str) -> types.CodeType:
    """Code of the program, or its end: before the audit hook, which a syntax error would alarm."""
    try:
        return _longest_program(source)
    except SyntaxError as error:
        finish("syntax", f"{error.msg}, line {error.lineno}")
    except (MemoryError, RecursionError) as error:
        finish("memory", f"{type(error).__name__} of the parser")
    except ValueError as error:  # a null byte
        finish("syntax", str(error))


def _longest_program(source: str) -> types.CodeType:
    """The program, without lines at its end that do not parse: a model may write on behind it.

    Raises:
        SyntaxError: of the whole source, if no beginning of it is a program.
    """
    first: SyntaxError | None = None
    lines = source.strip("\n").split("\n")
    for end in range(len(lines), 0, -1):
        try:
            return compile("\n".join(lines[:end]), "<program>", "exec")
        except SyntaxError as error:
            first = first or error
    raise first or SyntaxError("nothing")


def _value(namespace: dict[str, Any], printed: _Printed, entry: str) -> str | None:
    """What the program answers as text: the entry's return value, a named result, the last line."""
    function = namespace.get(entry)
    values = [function()] if callable(function) else []
    values += [namespace.get(name) for name in ("result", "answer")]
    for value in values:
        if (text := _as_text(value)) is not None:
            return text
    lines = [line for line in printed.getvalue().splitlines() if line.strip()]
    return lines[-1] if lines else None


def _as_text(value: Any) -> str | None:
    """A number or a string as text; anything else is no answer. No method of the program's runs."""
    from decimal import Decimal
    from fractions import Fraction

    kind = type(value)
    if kind is int and abs(value) >= 10**300:
        return None
    if kind is bool or kind not in (int, float, str, Decimal, Fraction):
        return None
    return repr(value) if kind is float else str(value)


if __name__ == "__main__":
    main()
