"""The exceptions that are no fault of the program: the user can fix it, or somebody stopped it."""

from __future__ import annotations


class UserError(Exception):
    """Bad usage or bad input: the command line prints it as one sentence and exits with 2.

    The message names the value that was given, what is allowed, and what to do next.
    """


def reason(error: BaseException) -> str:
    """What another library's error says, for a sentence: its kind and its first line, cut short.

    Args:
        error: as it was caught.
    """
    lines = [line.strip() for line in str(error).splitlines()]
    first = next((line for line in lines if line), "").rstrip(".")
    kind = type(error).__name__
    return f"{kind}: {first[:160]}" if first else kind


class Stopped(Exception):  # noqa: N818 - nothing went wrong
    """A signal ended a run in good order, and the run is saved.

    The command line prints the sentence and exits with 128 plus the signal's number.

    Args:
        sentence: what was saved, and how to go on.
        signum: the signal.
    """

    def __init__(self, sentence: str, signum: int) -> None:
        super().__init__(sentence)
        self.signum = signum

    @property
    def exit_code(self) -> int:
        """As a shell reports a process that a signal ended: 143 for SIGTERM, 130 for SIGINT."""
        return 128 + self.signum
