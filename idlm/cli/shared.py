"""What several commands check before they start."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from idlm.errors import UserError
from idlm.locks import alone_writing
from idlm.paths import BUNDLED_MODELS, repo_dir, resolve

if TYPE_CHECKING:
    from idlm.sampling.sharded import Processes

_LONGEST_MESSAGE = 400


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one sentence.

    An option given twice counts as given last, as for every command of a shell, so that a script's
    own options can be overruled; but one that takes several values is refused, because its values
    would seem to add up.
    """

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.register("action", None, _Store)

    def error(self, message: str) -> NoReturn:
        """Raise ``UserError`` instead of printing the usage."""
        if len(message) > _LONGEST_MESSAGE:
            message = f"{message[:_LONGEST_MESSAGE]} ..."
        hint = self._hint(message)
        raise UserError(f"{message}; {hint}type `{self.prog} --help` for the options")

    def _hint(self, message: str) -> str:
        """The option that an unknown one most looks like."""
        unknown = message.removeprefix("unrecognized arguments: ")
        if unknown == message or not unknown.startswith("-"):
            return ""
        known = [name for name in _options(self) if name.startswith("--")]
        typed = unknown.split()[0].partition("=")[0]
        close = difflib.get_close_matches(typed, known, n=1)
        return f"did you mean {close[0]}? " if close else ""


class _Store(argparse.Action):
    """What argparse does by default, but a list of values is not silently replaced by another."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        held = getattr(namespace, self.dest, self.default)
        if option_string is not None and self.nargs == "+" and held is not self.default:
            parser.error(f"{option_string} is given twice; name all of its values behind one")
        setattr(namespace, self.dest, values)


def _options(parser: argparse.ArgumentParser) -> Iterator[str]:
    """The names of all options of a parser and of its commands."""
    for action in parser._actions:  # argparse has no public list of them
        yield from action.option_strings
        if isinstance(action.choices, dict):
            for command in action.choices.values():
                yield from _options(command)


def hold_output(output: ExitStack, path: str | None, processes: Processes) -> None:
    """Let the main process alone make the file that a command writes, until ``output`` ends.

    Args:
        output: what lets go of it.
        path: the value of ``--output``; None if there is none.
        processes: of the launch.

    Raises:
        UserError: naming the process that makes the file already.
    """
    if path is not None and processes.index == 0:
        remedy = "wait for it to end, or name another file with --output"
        output.enter_context(alone_writing(path, remedy=remedy))


def require_bundled(name: str) -> str:
    """The folder of a bundled model; any other name is returned as it is.

    Raises:
        UserError: if the model should be bundled and is not there.
    """
    found = resolve(name)
    if name in BUNDLED_MODELS and found == name and not Path(name).is_dir():
        raise UserError(
            f"the bundled model {name!r} is not in {repo_dir() / 'data' / 'models'}; run idlm from "
            "a complete checkout, or make it with scripts/make_models.sh"
        )
    return found
