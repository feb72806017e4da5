"""Generated programs: what they may do, and that nothing else gets out or stays behind."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from idlm.errors import UserError
from idlm.sandbox import FAILURES, Limits, Outcome, child, isolation, run, run_program

SHORT = Limits(seconds=0.4, memory_mb=256, output=10_000)

# Every way to the operating system begins like one of these, without an import statement.
POSIX = "random = __import__('random'); os = random._os\n"
LOADER = (
    "def load(name):\n"
    "    kinds = object.__subclasses__()\n"
    "    return [k for k in kinds if k.__name__ == 'BuiltinImporter'][0].load_module(name)\n"
)
FILE_IO = (
    "def below(k):\n"
    "    return [k] + [x for s in type.__subclasses__(k) for x in below(s)]\n"
    "raw = [k for k in below(object) if k.__name__ == 'FileIO'][0]\n"
)

# program, the outcomes that are right, and a part of the reason
HOSTILE = {
    "endless loop": ("while True: pass", {"time"}, "limit"),
    "endless loop inside C": ("x = 10 ** 10 ** 10", {"time", "memory"}, ""),
    "sleep": ("import time; time.sleep(60)", {"time"}, "limit"),
    "loop that swallows everything": (
        "while True:\n try:\n  while True: pass\n except BaseException: pass",
        {"time"},
        "limit",
    ),
    "memory bomb": ("x = 'a' * 10 ** 12", {"memory"}, "MemoryError"),
    "slow memory bomb": ("x = []\nwhile True: x.append(bytes(10 ** 6))", {"memory"}, ""),
    "read a file": ("open('/etc/passwd').read()", {"forbidden"}, "open()"),
    "read a file below open": (FILE_IO + "raw('/etc/passwd')", {"forbidden"}, "open"),
    "write a file": ("open('left.txt', 'w').write('x')", {"forbidden"}, "open()"),
    "write a file below open": (FILE_IO + "raw('left.txt', 'w')", {"forbidden"}, "open"),
    "write a file through os": (
        POSIX + "os.open('left.txt', os.O_CREAT | os.O_WRONLY)",
        {"forbidden"},
        "open",
    ),
    "make a folder": (POSIX + "os.mkdir('left')", {"forbidden"}, "os.mkdir"),
    "remove a file": (POSIX + "os.remove('/tmp/x')", {"forbidden"}, "os.remove"),
    "list a folder": (POSIX + "os.listdir('/')", {"forbidden"}, "os.listdir"),
    "import os": ("import os", {"import"}, "os"),
    "import os by __import__": ("__import__('os').system('id')", {"import"}, "os"),
    "import os inside eval": ("eval('__import__(\"os\")')", {"import"}, "os"),
    "import os by importlib": ("import importlib", {"import"}, "importlib"),
    "import of what is installed": ("import numpy", {"import"}, "numpy"),
    "import of this package": ("import idlm", {"import"}, "idlm"),
    "os.system": (POSIX + "os.system('touch left.txt')", {"forbidden"}, "os.system"),
    "os through object": (LOADER + "load('posix').system('id')", {"forbidden"}, "os.system"),
    "subprocess": ("import subprocess", {"import"}, "subprocess"),
    "exec of another program": (POSIX + "os.execv('/bin/ls', ['ls'])", {"forbidden"}, "os.exec"),
    "fork bomb": (POSIX + "while True: os.fork()", {"forbidden"}, "os.fork"),
    "spawn": (LOADER + "load('posix').posix_spawn('/bin/ls', ['ls'], {})", {"forbidden"}, ""),
    "signal to the parent": (POSIX + "os.kill(os.getppid(), 9)", {"forbidden"}, ""),
    "signal to everyone": (LOADER + "load('posix').killpg(0, 9)", {"forbidden"}, "os.killpg"),
    "socket": ("import socket", {"import"}, "socket"),
    "ctypes": ("import ctypes", {"import"}, "ctypes"),
    "ctypes of the process": (
        "import random\nrandom._os.sys.modules['ctypes'].CDLL(None).fork()",
        {"forbidden"},
        "ctypes",
    ),
    "threads": ("import threading", {"import"}, "threading"),
    "threads through object": (
        LOADER + "load('_thread').start_new_thread(print, ())",
        # without the filter Python before 3.12 starts it, and it dies with its process
        {"forbidden", "error", "no_answer"},
        "",
    ),
    "garbage collector's objects": (LOADER + "load('gc').get_objects()", {"forbidden"}, "gc"),
    "huge output": ("while True: print('x' * 1000)", {"output"}, "too much"),
    "huge output below print": (
        POSIX + "while True: os.write(1, b'x' * 10 ** 5)",
        {"output", "crash"},
        "",
    ),
    "sys.exit": ("import sys; sys.exit(0)", {"import"}, "sys"),
    "SystemExit": ("raise SystemExit(0)", {"exit"}, "SystemExit"),
    "os._exit": (POSIX + "os._exit(0)", {"crash"}, "without a word"),
    "abort": (POSIX + "os.abort()", {"crash"}, "SIG"),
    "deep recursion": ("def f(): return f()\nf()", {"error"}, "RecursionError"),
    "deeper recursion": (
        POSIX + "os.sys.setrecursionlimit(10 ** 9)\ndef f(x): return max([x], key=f)\nf(1)",
        {"error", "crash", "memory", "time"},
        "",
    ),
    "deep syntax": ("x = " + "(" * 10 ** 5, {"syntax", "memory", "crash"}, ""),
    "keyboard": ("input()", {"forbidden"}, "input()"),
    "debugger": ("breakpoint()", {"forbidden"}, "breakpoint()"),
    "replaced print": (POSIX + "os.sys.stdout.write = None\nprint(1)", {"error"}, ""),
    "number that is too long to print": ("result = 10 ** 10 ** 5", {"no_answer"}, ""),
    "a class that claims to be a number": (
        "class N(int):\n def __repr__(self): return '42'\n __str__ = __repr__\nresult = N(1)",
        {"no_answer"},
        "",
    ),
    "not Python": ("The answer is 42.", {"syntax"}, "line 1"),
    "null byte": ("x = 1\0", {"syntax", "error"}, ""),
    "half a character": ("x = '\udc80'; result = 1; print(result); 1/0", {"error"}, "Zero"),
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the private folders of programs are made."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("kernel", ["all layers", "guards and limits alone"])
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_programs_fail_with_a_reason_and_leave_nothing(
    name: str, kernel: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kernel != "all layers":
        off = {"seccomp": False, "network_namespace": False}
        monkeypatch.setattr(run, "isolation", lambda: off)
    elif not isolation()["seccomp"]:
        pytest.skip("this kernel has no system call filter")
    groups: list[int] = []
    popen = subprocess.Popen

    def remember(*args: object, **options: object) -> object:
        process = popen(*args, **options)  # type: ignore[call-overload]
        groups.append(process.pid)
        return process

    monkeypatch.setattr(run.subprocess, "Popen", remember)
    program, outcomes, reason = HOSTILE[name]
    started = time.monotonic()
    found = run_program(program, limits=SHORT, weak=True)
    assert found.outcome in outcomes & set(FAILURES), found
    assert reason in found.detail, found
    assert found.answer is None
    assert time.monotonic() - started < 20  # the limit, and what a busy machine makes of it
    assert list(folder.iterdir()) == []
    for group in groups:
        with pytest.raises(ProcessLookupError):
            os.killpg(group, 0)


DATES = """
from datetime import datetime as d
result = (d.strptime('3 May 2021', '%d %B %Y') - d(2021, 5, 1)).days
"""
LIBRARY = """
from dataclasses import dataclass
from collections import Counter, namedtuple
import re, statistics, itertools, typing
@dataclass
class Box:
    n: int
P = namedtuple('P', 'x')
result = statistics.mean([Box(2).n, P(4).x, Counter('aaa')['a']])
"""
EGGS = """def simple_math_problem() -> int:
    'Eggs.'
    eggs = 16
    return eggs - 7
"""


@pytest.mark.parametrize(
    ("program", "answer"),
    [
        (EGGS, "9"),
        ("def simple_math_problem():\n    return 7 / 2", "3.5"),
        ("def simple_math_problem():\n    print(5)", "5"),
        ("import math\nresult = math.ceil(2.1) * 10**20", "3" + "0" * 20),
        ("answer = 3", "3"),
        ("print('first')\nprint('The answer is', 4)\n\n", "The answer is 4"),
        ("from fractions import Fraction\nresult = Fraction(1, 3) * 3", "1"),
        ("from decimal import *\nresult = Decimal('1.10')", "1.10"),
        (DATES, "2"),
        (LIBRARY, "3"),
        ("import collections.abc\nresult = isinstance([], collections.abc.Sized) + 0", "1"),
        ("x = 5\ndef simple_math_problem():\n    return sum(x for _ in range(3))", "15"),
        ("result = eval('1 + 1')", "2"),
        (EGGS + "Question: and now?", "9"),
    ],
)
def test_honest_programs_answer(program: str, answer: str) -> None:
    assert run_program(program, weak=True) == Outcome("answered", "", answer)


@pytest.mark.parametrize(
    "program",
    ["", "x = 3", "result = None", "result = float", "def simple_math_problem():\n    return [1]"],
)
def test_a_program_without_a_value_has_no_answer(program: str) -> None:
    assert run_program(program, weak=True).outcome == "no_answer"


# What a program writes on the stdout it has found, in the place of the report, and what is made of
# that.
FORGED = {
    "a list as the answer": ('{"outcome":"answered","detail":"","answer":[1]}', "crash", None),
    "no answer": ('{"outcome":"answered","detail":"","answer":null}', "crash", None),
    "a failure with an answer": ('{"outcome":"error","detail":"","answer":"1"}', "crash", None),
    "a number as the reason": ('{"outcome":"error","detail":3,"answer":null}', "crash", None),
    "a list as the outcome": ('{"outcome":[],"detail":"","answer":null}', "crash", None),
    "a sandbox that failed": ('{"outcome":"setup","detail":"","answer":null}', "crash", None),
    "nothing but brackets": ("[" * 60_000, "crash", None),
    "an endless answer": (
        '{"outcome":"answered","detail":"","answer":"' + "9" * 60_000 + '"}',
        "answered",
        "9" * 1000,
    ),
}


@pytest.mark.parametrize("name", FORGED)
def test_a_program_that_forges_the_report_fails_no_one_but_itself(name: str) -> None:
    report, outcome, answer = FORGED[name]
    program = f"import random\nos = random._os\nos.write(1, {report.encode()!r})\nos._exit(0)"
    found = run_program(program, weak=True)
    assert (found.outcome, found.answer) == (outcome, answer)


def test_half_a_character_in_an_answer_can_be_written_to_a_file() -> None:
    assert run_program(r"result = 'x\udc80'", weak=True).answer == "x?"


def test_a_signal_without_a_name_is_a_crash() -> None:
    assert run._death(-40) == Outcome("crash", "signal 40")
    assert run._death(-9) == Outcome("crash", "SIGKILL")


def test_another_entry_can_be_named() -> None:
    program = "def solution():\n    return 1\nresult = 2"
    assert run_program(program, entry="solution", weak=True).answer == "1"
    assert run_program(program, weak=True).answer == "2"


def test_programs_share_nothing_with_this_process_or_one_another(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET", "of the parent")
    peek = "import random\nresult = repr(sorted(random._os.environ))"
    assert "SECRET" not in str(run_program(peek, weak=True).answer)
    here = "import random\nresult = random._os.path.basename(random._os.environ.get('PWD', ''))"
    assert run_program(here, weak=True).outcome == "answered"
    run_program("import random\nrandom.shared = 1", weak=True)
    assert run_program("import random\nrandom.shared", weak=True).detail == "AttributeError"


# What the kernel itself refuses, with none of Python's guards in place.
RAW = """
import ctypes, errno, importlib.util, os, socket, threading, _thread, signal
spec = importlib.util.spec_from_file_location("child", {child!r})
child = importlib.util.module_from_spec(spec)
spec.loader.exec_module(child)
libc = ctypes.CDLL(None, use_errno=True)
assert child.install_filter(ctypes) == ""
acts = dict(
    read=lambda: os.open("/etc/passwd", os.O_RDONLY),
    write=lambda: os.open("left.txt", os.O_CREAT | os.O_WRONLY),
    fork=os.fork,
    execute=lambda: os.execv("/bin/true", ["true"]),
    socket=socket.socket,
    unlink=lambda: os.unlink("left.txt"),
    kill=lambda: os.kill(os.getppid(), 0),
    limits=lambda: __import__("resource").setrlimit(9, (1 << 40, 1 << 40)),
    listdir=lambda: os.listdir("/"),
)
for name, act in acts.items():
    try:
        act()
    except OSError as error:
        print(name, errno.errorcode[error.errno])
    except ValueError as error:
        print(name, "EPERM" if "not allowed" in str(error) else error)
    else:
        print(name, "passed")
try:
    _thread.start_new_thread(print, ())
except RuntimeError:
    print("thread EPERM")
ctypes.set_errno(0)
print("raw", libc.syscall(41, 2, 1, 0), errno.errorcode.get(ctypes.get_errno()))
"""


@pytest.mark.skipif(not isolation()["seccomp"], reason="this kernel has no system call filter")
def test_the_kernel_refuses_files_processes_and_sockets_without_pythons_guards(
    tmp_path: Path,
) -> None:
    code = "import resource\n" + RAW.format(child=child.__file__)
    done = subprocess.run(
        [sys.executable, "-I", "-c", code], capture_output=True, text=True, cwd=tmp_path, timeout=60
    )
    lines = done.stdout.splitlines()
    *refused, raw = [line.split(" ", 1)[1] for line in lines]
    assert len(refused) == 10
    assert set(refused) == {"EPERM"}, done
    if os.uname().machine == "x86_64":  # 41 is socket() there
        assert raw == "-1 EPERM"
    assert list(tmp_path.iterdir()) == []


def test_both_machines_filters_are_complete_and_end_in_a_verdict() -> None:
    for machine, (_, column) in child.MACHINES.items():
        code = child.filter_program(machine)
        entries = [code[i : i + 8] for i in range(0, len(code), 8)]
        numbers = [calls[column] for calls in child._CALLS.values()]
        assert len(set(numbers)) == len(numbers)
        assert len(entries) == 4 + len(numbers) + 2
        # each listed number jumps to the last entry, which allows
        for place, entry in enumerate(entries[4:-2], start=4):
            assert place + 1 + entry[2] == len(entries) - 1
        deny, allow = (int.from_bytes(entry[4:], sys.byteorder) for entry in entries[-2:])
        assert (deny, allow) == (0x00050001, 0x7FFF0000)  # EPERM; pass


def test_without_a_kernel_filter_programs_run_only_when_that_is_accepted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    off = {"seccomp": False, "network_namespace": False}
    monkeypatch.setattr(run, "isolation", lambda: off)
    with pytest.raises(UserError, match=r"offers no system call filter .* --weak-sandbox"):
        run_program("result = 1")
    assert run_program("result = 1", weak=True).answer == "1"


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"seconds": 0.0}, "the time limit is 0.0 seconds; give more than 0"),
        ({"memory_mb": 64}, "the memory limit is 64 MB; Python needs 128"),
        ({"output": 0}, "the output limit is 0 characters; give 1"),
    ],
)
def test_limits_that_let_nothing_run_are_refused(options: dict, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        Limits(**options)
