"""Kill a training again and again, and compare it with one that nobody disturbed.

``python -m idlm.reliability.kills --moments 20 --output eval/results/reliability.json`` starts a
real ``idlm fit``, sends it SIGKILL at a random moment, continues it from its last checkpoint, kills
it again, and so on. At the end an undisturbed run of the same length is made, and every loss and
gradient norm that any of the lives logged must be that run's, to the last digit.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from argparse import ArgumentParser
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from idlm.errors import UserError
from idlm.reliability.compare import Losses, losses, same_end
from idlm.reliability.record import record, told
from idlm.reliability.tiny import Tiny, make_tiny

_ENDLESS = 100_000
_END = "end"  # the life that ends by itself, and its log
_HALT = 0.02  # seconds until a process that is halted has come to rest
_PATIENCE = 120.0  # seconds without the moment coming: the run itself has failed


@dataclass(frozen=True)
class Moment:
    """When a life ended.

    Attributes:
        aim: ``update``, after so many updates, ``writing``, when a checkpoint is being written, or
            ``end`` for the life that nobody killed.
        after: updates, or checkpoints, of this life before the moment that was aimed at.
        delay: seconds to wait beyond it.
        left_half: whether a half-written checkpoint was left: the kill fell into the writing.
        first, last: update numbers (of either network) that this life logged, None if none.
        equal: losses of it that equal the undisturbed run's.
        different: losses of it that do not.
    """

    aim: str
    after: int
    delay: float
    left_half: bool
    first: int | None = None
    last: int | None = None
    equal: int = 0
    different: int = 0


def disturb(folder: Path, *, moments: int, seed: int = 0, hidden: int = 32) -> dict[str, Any]:
    """Kill a run at random moments, let it end, and compare.

    Args:
        folder: an empty one, for both runs.
        moments: how many times to kill it.
        seed: of the moments.
        hidden: width of the networks.

    Returns:
        Figures, with every moment under ``lives``; ``equal`` says whether the killed run is the
        undisturbed one.
    """
    started = time.monotonic()
    tiny = make_tiny(folder / "tiny", hidden=hidden)
    killed, straight = folder / "killed", folder / "straight"
    rng = random.Random(seed)
    lives = [_kill_once(tiny, killed, rng, number) for number in range(moments)]
    until = _student_updates(killed) + 2
    for place in (killed, straight):
        process = _start(tiny, place, until, _END)
        process.join()
        if process.exitcode != 0:
            raise RuntimeError(f"exit code {process.exitcode}: see {place / 'output'}")
    expected = losses(straight / "logs" / _END)
    compared = [
        _compared(life, killed / "logs" / f"life{n}", expected) for n, life in enumerate(lives)
    ]
    last = _compared(Moment(_END, until, 0.0, False), killed / "logs" / _END, expected)
    every = [*compared, last]
    different = sum(life.different for life in every)
    ended_alike = same_end(killed, straight)
    return {
        "moments": moments,
        "seed": seed,
        "inside_checkpoint_writing": sum(life.left_half for life in compared),
        "before_the_first_update_of_a_life": sum(life.first is None for life in compared),
        "updates_of_the_undisturbed_run": max(sum(key) for key in expected),
        "resumes_compared": sum(life.first is not None for life in every),
        "resumes_equal": sum(life.equal > 0 and life.different == 0 for life in every),
        "losses_compared": sum(life.equal + life.different for life in every),
        "losses_different": different,
        "most_updates_made_again": _made_again(every),
        "final_state_and_export_equal": ended_alike,
        "equal": different == 0 and ended_alike and last.equal > 0,
        "seconds": round(time.monotonic() - started, 1),
        "lives": [asdict(life) for life in every],
    }


def _kill_once(tiny: Tiny, folder: Path, rng: random.Random, number: int) -> Moment:
    """One life: start or continue the run, wait for the moment, kill it."""
    # every third is aimed at the writing of a checkpoint; the first one lives until there is one
    aim = "writing" if number % 3 == 2 else "update"
    after = rng.randrange(3 if aim == "writing" else 7) + (4 if number == 0 else 0)
    delay = rng.uniform(0.0, 0.002 if aim == "writing" else 0.06)
    half = folder / "checkpoints" / ".last.ckpt.tmp"
    half.unlink(missing_ok=True)
    end = time.monotonic() + _PATIENCE
    process = _start(tiny, folder, _ENDLESS, f"life{number}")
    try:
        if aim == "writing":
            _stop_in_writing(process, half, after, delay, end)
        else:
            log = folder / "logs" / f"life{number}"
            while process.is_alive() and len(losses(log)) < after:
                _check_patience(end, folder)
                time.sleep(0.005)
            time.sleep(delay)
    finally:
        process.kill()
        process.join()
    if process.exitcode != -signal.SIGKILL:
        raise RuntimeError(f"life {number} ended by itself: see {folder / 'output'}")
    return Moment(aim, after, round(delay, 4), half.exists())


def _stop_in_writing(process: Any, half: Path, skip: int, delay: float, end: float) -> None:
    """Halt the process while it writes a checkpoint, after ``skip`` others.

    Writing takes a few milliseconds and may be over when the signal comes. Then it runs on to the
    next checkpoint, where the signal comes earlier.
    """
    seen = -1
    there = False
    while process.is_alive():
        now = half.exists()  # no pause: there is no time for one
        if now and not there:
            seen += 1
            if seen >= skip:
                time.sleep(delay)
                os.kill(process.pid, signal.SIGSTOP)
                time.sleep(_HALT)
                if half.exists():
                    return
                os.kill(process.pid, signal.SIGCONT)
                delay /= 2
        there = now
        _check_patience(end, half.parent.parent)


def _check_patience(end: float, folder: Path) -> None:
    if time.monotonic() > end:
        raise RuntimeError(f"nothing happened for {_PATIENCE:g} seconds: see {folder / 'output'}")


def _start(tiny: Tiny, folder: Path, updates: int, life: str) -> Any:
    """``idlm fit`` in a process of its own, from the last checkpoint if there is one."""
    command = tiny.command(folder, updates=updates)
    command.append(f"--trainer.logger.init_args.version={life}")
    last = folder / "checkpoints" / "last.ckpt"
    if last.exists():
        command.append(f"--ckpt_path={last}")
    # a server that has imported everything once: a start takes a second instead of ten
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["idlm.cli.fit", "idlm.training.distil", "idlm.data"])
    process = context.Process(target=_fit, args=(command, str(folder / "output")))
    process.start()
    return process


def _fit(command: list[str], output: str) -> None:
    """In the new process: what a shell would run, with its words in a file."""
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    import torch

    from idlm.cli.main import main

    torch.set_num_threads(1)
    main(command)


def _student_updates(folder: Path) -> int:
    from idlm.models.archive import Archive

    with Archive(folder / "checkpoints" / "last.ckpt") as archive:
        return int(archive.root["student_updates"])


def _compared(life: Moment, log: Path, expected: Losses) -> Moment:
    """A life with what its log says."""
    logged = losses(log)
    common = logged.keys() & expected.keys()
    numbers = [sum(key) for key in logged]
    equal = sum(logged[key] == expected[key] for key in common)
    return replace(
        life,
        first=min(numbers, default=None),
        last=max(numbers, default=None),
        equal=equal,
        different=len(common) - equal,
    )


def _made_again(lives: list[Moment]) -> int:
    """The most updates that a life had made and the next one made again."""
    spans = [(life.first, life.last) for life in lives if life.first and life.last]
    return max((a[1] - b[0] + 1 for a, b in itertools.pairwise(spans)), default=0)


def main(argv: Sequence[str] | None = None) -> None:
    """The command line: exit code 0 if the killed run is the undisturbed one, 1 if not."""
    parser = ArgumentParser(prog="python -m idlm.reliability.kills", description=__doc__)
    parser.add_argument("--moments", type=int, default=20, help="how often to kill it (20)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (0)")
    parser.add_argument("--hidden", type=int, default=128, help="width of the networks (128)")
    parser.add_argument("--folder", help="keep both runs here, an empty folder")
    parser.add_argument("--output", metavar="JSON", help="put the figures under `kills` here")
    args = parser.parse_args(argv)
    if args.moments < 1:
        raise UserError(f"--moments is {args.moments}; it must be at least 1")
    with tempfile.TemporaryDirectory(prefix="idlm-kills-") as temporary:
        folder = Path(args.folder or temporary)
        if any(folder.glob("*")):
            raise UserError(f"--folder {folder} is not empty; name a new one")
        options = {"moments": args.moments, "seed": args.seed, "hidden": args.hidden}
        figures = disturb(folder, **options)
    said = " ".join(f"--{name} {value}" for name, value in options.items())
    figures = {"command": f"python -m idlm.reliability.kills {said}", **figures}
    print(
        f"killed at {args.moments} moments ({figures['inside_checkpoint_writing']} inside the "
        f"writing of a checkpoint): {figures['losses_compared']} losses compared, "
        f"{figures['losses_different']} different; final state equal: "
        f"{figures['final_state_and_export_equal']}"
    )
    if args.output:
        print(f"written: {record(args.output, 'kills', figures)}")
    if not figures["equal"]:
        sys.exit(1)


if __name__ == "__main__":
    told(main)
