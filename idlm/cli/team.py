"""The processes of a launch at work on one command: they fail together, with one sentence."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from typing import TypeVar

from idlm.cli.faults import is_out_of_memory
from idlm.errors import UserError
from idlm.sampling.sharded import Processes, check_device, join

T = TypeVar("T")

# The first process that ends makes a launcher end the others: the one that speaks has so long.
_FAREWELL = 1.0


@dataclass(frozen=True)
class Team(Processes):
    """Processes of which one speaks for all when something is wrong.

    Attributes:
        told: errors that all processes know of.
    """

    told: list[Exception] = field(default_factory=list)

    def together(self, work: Callable[[], T]) -> T:
        """Do ``work`` in every process, and fail in all of them if it fails in one.

        The first process that failed raises its error; the others leave in silence. May be nested:
        what can fail in one process alone, before the others are needed again, stands in one of
        its own.

        Returns:
            This process's own result.

        Raises:
            SystemExit: where another process speaks, with the same exit code.
        """
        if self.count == 1:
            return work()
        failure: Exception | None = None
        result: list[T] = []
        try:
            result.append(work())
        except Exception as error:
            if any(error is known for known in self.told):
                raise
            failure = error
        codes = self.gather(_exit_code(failure))
        first = next((index for index, code in enumerate(codes) if code), None)
        if first is None:
            return result[0]
        if first == self.index and failure is not None:
            self.told.append(failure)
            raise failure
        with suppress(Exception):  # ends when the other process has left
            self.gather(0)
        time.sleep(_FAREWELL)
        raise SystemExit(codes[first])


@contextmanager
def met(count: int, device: str | None, failure: UserError | None) -> Iterator[Team]:
    """Meet the other processes of the launch.

    Args:
        count: of processes.
        device: that was asked for.
        failure: of this process, so far.

    Raises:
        UserError: the failure; if the device is unknown, not here, or named by number; if the
            processes cannot meet.
        SystemExit: where another process of the launch says what is wrong.
    """
    with ExitStack() as stack:
        try:
            # what may be wrong with the device is told below, by one process
            found = stack.enter_context(join(count, "cpu" if device == "cpu" else None))
        except UserError as error:
            raise failure or error from None
        team = Team(found.index, found.count, found.device)
        team.together(lambda: _check(team, count, device, failure))
        yield team


def _check(team: Team, count: int, device: str | None, failure: UserError | None) -> None:
    if failure is not None:
        raise failure
    check_device(device, count)
    if team.count != count:
        raise UserError(
            f"the environment tells of {count} processes and {team.count} met; start them with "
            "accelerate launch or torchrun"
        )


def _exit_code(error: Exception | None) -> int:
    if error is None:
        return 0
    return 2 if isinstance(error, UserError) or is_out_of_memory(error) else 1
