"""One run per output, and a lock that outlives nobody."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from idlm import locks
from idlm.errors import UserError
from idlm.locks import RUN_LOCK, alone_in, alone_writing, awaited, held, tried
from idlm.paths import repo_dir

REMEDY = "wait for it"
HOLD = (
    "import sys, time; from idlm.locks import alone_in\n"
    "with alone_in([sys.argv[1]], remedy=''): print('held', flush=True); time.sleep(60)"
)


def test_a_second_run_in_a_folder_is_refused_with_the_process_that_has_it(tmp_path: Path) -> None:
    with alone_in([tmp_path / "run"], remedy=REMEDY):
        said = rf"run is in use by process {os.getpid()} on .*, since .*; wait for it"
        with pytest.raises(UserError, match=said), alone_in([tmp_path / "run"], remedy=REMEDY):
            pass
    with alone_in([tmp_path / "run"], remedy=REMEDY):
        pass


def test_runs_that_share_one_of_their_folders_refuse_each_other(tmp_path: Path) -> None:
    shared = tmp_path / "checkpoints"
    with (
        alone_in([tmp_path / "a", shared], remedy=REMEDY),
        pytest.raises(UserError, match="checkpoints is in use"),
        alone_in([shared, tmp_path / "b"], remedy=REMEDY),
    ):
        pass
    # what the refused one had taken by then is free again
    with alone_in([tmp_path / "a", tmp_path / "b", shared], remedy=REMEDY):
        pass


def test_one_folder_under_two_names_is_one_folder(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    with alone_in([tmp_path, tmp_path / "link", tmp_path / "link" / "."], remedy=REMEDY):
        assert (tmp_path / RUN_LOCK).exists()


def test_the_lock_of_a_killed_process_is_free(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)],
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(repo_dir())},
    ) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        with pytest.raises(UserError, match=f"process {holder.pid} on"):
            alone_in([tmp_path], remedy=REMEDY).__enter__()
        holder.kill()
    assert (tmp_path / RUN_LOCK).exists()
    with alone_in([tmp_path], remedy=REMEDY):
        pass


def test_nothing_is_left_behind(tmp_path: Path) -> None:
    with alone_writing(tmp_path / "samples.jsonl", remedy=REMEDY):
        assert [p.name for p in tmp_path.iterdir()] == [".samples.jsonl.lock"]
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_made_by_one_process_and_a_device_by_any(tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"
    with (
        alone_writing(path, remedy=REMEDY),
        pytest.raises(UserError, match=r"samples\.jsonl is in use"),
        alone_writing(path, remedy=REMEDY),
    ):
        pass
    with alone_writing("/dev/null", remedy=REMEDY), alone_writing("/dev/null", remedy=REMEDY):
        pass


def test_the_longest_name_can_be_locked_and_is_one_lock(tmp_path: Path) -> None:
    for length in (249, 250, 255):
        path = tmp_path / ("n" * length)
        with alone_writing(path, remedy=REMEDY):
            path.write_text("x")
            with pytest.raises(UserError, match="in use"), alone_writing(path, remedy=REMEDY):
                pass
            with alone_writing(tmp_path / ("m" * length), remedy=REMEDY):
                pass
    assert sorted(len(left.name) for left in tmp_path.iterdir()) == [249, 250, 255]


def test_a_name_that_leads_nowhere_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "circle").symlink_to("circle")
    for name in (tmp_path / "circle", Path("a\0b")):
        for lock in (alone_writing(name, remedy=REMEDY), alone_in([name], remedy=REMEDY)):
            with pytest.raises(UserError, match=r" cannot be written \(.+\); name a place"), lock:
                pass
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with (
        pytest.raises(UserError, match=r"x cannot be written \(No such file or directory\)"),
        alone_writing("x", remedy=REMEDY),
    ):
        pass


def test_a_lock_whose_file_was_removed_in_between_is_taken_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock, calls = tmp_path / "lock", []
    real = fcntl.flock

    def slow(file: object, how: int) -> None:
        calls.append(how)
        if len(calls) == 1:
            lock.unlink()  # its last holder, between our opening and our locking
        real(file, how)  # type: ignore[arg-type]

    monkeypatch.setattr(fcntl, "flock", slow)
    with held(lock, subject="it", remedy=REMEDY):
        assert len(calls) == 2
        with pytest.raises(UserError, match="it is in use"):
            held(lock, subject="it", remedy=REMEDY).__enter__()


def test_a_file_system_without_locks_is_said_aloud(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def none(*args: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", none)
    with alone_in([tmp_path], remedy=REMEDY):
        assert "file system without locks" in capsys.readouterr().err


def test_folders_made_for_a_lock_go_with_it_unless_something_was_written(tmp_path: Path) -> None:
    for written in (False, True):
        target = tmp_path / "a" / "b" / "out.json"
        with alone_writing(target, remedy="wait"):
            assert target.parent.is_dir()
            if written:
                target.write_text("{}")
        assert target.parent.is_dir() is written
        assert (tmp_path / "a").is_dir() is written
    assert [path.name for path in target.parent.iterdir()] == ["out.json"]


def test_a_child_that_outlives_the_run_holds_no_lock(tmp_path: Path) -> None:
    """A loader's worker lives a few seconds longer than a run that is killed."""
    script = (
        "import os, sys, time\n"
        "from idlm.locks import alone_in\n"
        f"with alone_in([{str(tmp_path)!r}], remedy='wait'):\n"
        "    if os.fork() == 0:\n"
        "        print('ready', flush=True)\n"
        "        time.sleep(30)\n"
        "        os._exit(0)\n"
        "    time.sleep(30)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(repo_dir())}
    command = [sys.executable, "-c", script]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=environment, start_new_session=True
    ) as run:
        assert run.stdout is not None
        assert run.stdout.readline() == "ready\n"
        run.kill()  # the child goes on
        run.wait()
        with alone_in([tmp_path], remedy="wait"):
            pass
        os.killpg(run.pid, 9)


def test_a_link_in_the_place_of_a_lock_is_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("dear")
    (tmp_path / ".o.json.lock").symlink_to(victim)
    with (
        pytest.raises(UserError, match=r"o\.json cannot be written \(Too many levels"),
        alone_writing(tmp_path / "o.json", remedy="wait"),
    ):
        pass
    assert victim.read_text() == "dear"


def test_trying_says_whether_the_lock_is_held_and_runs_the_block_either_way(tmp_path: Path) -> None:
    lock = tmp_path / "folder" / "x.lock"
    with tried(lock, subject="it") as one, tried(lock, subject="it") as other:
        assert (one, other) == (True, False)
    with tried(lock, subject="it") as again:
        assert again
    assert list(tmp_path.iterdir()) == []


def test_who_waits_says_for_what_and_gets_the_lock_when_its_holder_dies(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lock = tmp_path / RUN_LOCK
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)],
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(repo_dir())},
    ) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        timer = threading.Timer(0.3, holder.kill)
        timer.start()
        with awaited(lock, subject="the table", patience=0.05):
            assert lock.read_text().startswith(f"process {os.getpid()} ")
        timer.join()
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"idlm: waiting for the table, in use by process {holder.pid} on ")


def test_a_wait_that_is_soon_over_says_nothing_and_one_without_end_is_ended(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lock = tmp_path / "x.lock"
    said = rf"it is still in use by process {os.getpid()} .* after 0\.05 s; try later"
    with (
        held(lock, subject="it", remedy=REMEDY),
        pytest.raises(UserError, match=said),
        awaited(lock, subject="it", timeout=0.05, remedy="try later"),
    ):
        pass
    with awaited(lock, subject="it", timeout=0.05):
        pass
    assert capsys.readouterr().err == ""


MODES: dict[str, Callable[[Path], AbstractContextManager[object]]] = {
    "refusing": lambda lock: held(lock, subject="it", remedy=REMEDY),
    "waiting": lambda lock: awaited(lock, subject="it"),
    "trying": lambda lock: tried(lock, subject="it"),
}


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_goes_on_aloud_without_locks_and_follows_no_link(
    mode: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    victim, link = tmp_path / "victim", tmp_path / "link"
    link.symlink_to(victim)
    with (
        pytest.raises(UserError, match=r"it cannot be written \(Too many levels"),
        MODES[mode](link),
    ):
        pass
    assert not victim.exists()

    def none(*args: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", none)
    monkeypatch.setattr(locks, "_SAID", set())
    for _ in range(2):  # said once for a folder
        with MODES[mode](tmp_path / "x.lock") as mine:
            assert mine in (None, True)
    [line] = capsys.readouterr().err.splitlines()
    assert "it is on a file system without locks (No locks available)" in line


@pytest.mark.parametrize("mode", MODES)
def test_a_lock_that_fails_otherwise_is_one_sentence(
    mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(fcntl, "flock", broken)
    with (
        pytest.raises(UserError, match=r"it cannot be locked \(Input/output error\); name a place"),
        MODES[mode](tmp_path / "x.lock"),
    ):
        pass


@pytest.mark.parametrize("mode", MODES)
def test_a_forked_child_that_leaves_the_block_does_not_remove_its_parents_lock(
    mode: str, tmp_path: Path
) -> None:
    lock = tmp_path / "x.lock"
    held_here = MODES[mode](lock)
    with held_here:
        child = os.fork()
        if child == 0:
            held_here.__exit__(None, None, None)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        assert lock.exists()
        with tried(lock, subject="it") as other:
            assert not other
    assert not lock.exists()


@pytest.mark.parametrize("mode", MODES)
def test_a_folder_that_cannot_be_made_is_refused_though_the_system_says_that_nothing_is_there(
    mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries: list[Path] = []

    def nowhere(folder: Path, *args: object, **options: object) -> None:
        tries.append(folder)  # what /proc answers to everyone
        assert len(tries) < 1000, "it never ends"
        raise FileNotFoundError(errno.ENOENT, "No such file or directory", str(folder))

    monkeypatch.setattr(Path, "mkdir", nowhere)
    with (
        pytest.raises(UserError, match=r"it cannot be written \(No such file or directory\); name"),
        MODES[mode](tmp_path / "new" / "x.lock"),
    ):
        pass
