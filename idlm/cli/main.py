"""Entry point of ``idlm`` and ``lightning``: find the command, run it, turn errors into exit codes.

Exit codes: 0 done, 2 bad usage or bad input (one sentence on stderr), 1 a fault of this program
(a traceback), 130 interrupted, 143 a training that SIGTERM stopped after it was saved, 141 when the
reader of stdout went away.

Nothing here imports torch: ``idlm --help`` and a mistyped command answer at once, and each command
module is imported only when its command runs.
"""

from __future__ import annotations

import difflib
import errno
import importlib
import os
import select
import signal
import sys
import traceback
from typing import NoReturn

from idlm.cli import early, faults, launch
from idlm.errors import Stopped, UserError

# name: (module with ``run(argv)``, help line). The first three share LightningCLI, which wants
# the subcommand as its first argument.
COMMANDS: dict[str, tuple[str, str]] = {
    "fit": ("idlm.cli.fit", "train or distil what a YAML file describes"),
    "validate": ("idlm.cli.fit", "measure a checkpoint on the validation split"),
    "test": ("idlm.cli.fit", "the same as validate: a corpus here has no third split"),
    "generate": ("idlm.cli.generate", "write text with a checkpoint, in as many calls as you ask"),
    "evaluate": ("idlm.cli.evaluate", "measure generated text: perplexity, entropy, diversity"),
    "export": ("idlm.cli.export", "write a checkpoint as a Hub-ready folder, and push it"),
    "inspect": ("idlm.cli.inspect", "what a checkpoint is, and whether it predicts text"),
    "bench": ("idlm.cli.bench", "methods against a known truth, and speed: toys, oracle, speed"),
    "report": ("idlm.cli.report", "one page, figures and tables of runs and measurements"),
    "demo": ("idlm.cli.demo", "a page where checkpoints write side by side, call by call"),
    "quickstart": ("idlm.cli.quickstart", "the whole story on a laptop CPU in minutes"),
}
LIGHTNING_SUBCOMMANDS = ("fit", "validate", "test")
# Their processes, where a launcher started several, agree on who speaks.
MEETING_COMMANDS = ("generate", "evaluate")

# A path that the user named, and that the system does not let this program use.
_REFUSALS = (
    errno.EACCES,
    errno.EISDIR,
    errno.ELOOP,
    errno.ENAMETOOLONG,
    errno.ENOTDIR,
    errno.EPERM,
    errno.EROFS,
)

EXIT_FAULT = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 128 + signal.SIGINT
EXIT_PIPE_CLOSED = 128 + signal.SIGPIPE


def help_text() -> str:
    """What ``idlm --help`` prints."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {line}" for name, (_, line) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: idlm COMMAND [options]        (`lightning` is the same program)",
            "",
            "Inverse-distilled diffusion language models: train a masked diffusion teacher, distil",
            "it into a generator of a few steps, generate, and measure.",
            "",
            "commands:",
            *lines,
            "",
            "options:",
            "  -h, --help     this text; `idlm COMMAND --help` has the options of a command",
            "  -V, --version  the version",
            "",
            "IDLM_DEBUG=1 in the environment adds a traceback to every error.",
        ]
    )


def main(argv: list[str] | None = None) -> None:
    """Run one command line.

    Args:
        argv: the arguments after the program's name; those of the process when None.

    Raises:
        SystemExit: for every outcome but success, with the exit codes listed at the top.
    """
    arguments = sys.argv[1:] if argv is None else list(argv)
    try:
        _dispatch(arguments)
        # A closed pipe often shows only at the flush; here it can still be answered quietly.
        sys.stdout.flush()
    except UserError as error:
        if os.environ.get("IDLM_DEBUG") == "1":
            traceback.print_exc()
        if arguments[0] not in MEETING_COMMANDS:
            launch.let_main_process_speak()
        _fail(f"idlm: error: {launch.named(printable(str(error)))}", EXIT_USAGE)
    except Stopped as stopped:
        if launch.process_index() > 0:  # they stop together
            raise SystemExit(stopped.exit_code) from None
        _fail(f"idlm: {stopped}", stopped.exit_code)
    except KeyboardInterrupt:
        _interrupted()
    except SystemExit as stop:
        # Lightning answers Ctrl-C by exit(1) from its `except KeyboardInterrupt`.
        if isinstance(stop.__context__, KeyboardInterrupt):
            _interrupted()
        raise
    except BrokenPipeError:
        if not _stdout_reader_is_gone():
            _report_fault()
        # Python flushes stdout once more at exit; give it somewhere to go.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(EXIT_PIPE_CLOSED) from None
    except OSError as error:
        if error.errno not in _REFUSALS or error.filename is None:
            _report_fault()
        name = printable(os.fsdecode(error.filename))
        shown = name if len(name) <= 120 else f"{name[:120]}..."
        sentence = (
            f"{shown!r} cannot be used ({error.strerror}); check its permissions, or name another "
            "file or folder"
        )
        _fail(f"idlm: error: {launch.named(sentence)}", EXIT_USAGE)
    except Exception:  # noqa: BLE001 - the last line of defence prints what it caught
        _report_fault()


def printable(text: str) -> str:
    """``text`` on one line and without control characters, which names and files may hold.

    A terminal obeys them.
    """
    return "".join(c if c.isprintable() else " " if c.isspace() else ascii(c)[1:-1] for c in text)


def _dispatch(arguments: list[str]) -> None:
    """Answer the options of the program itself, or import and run the command named first."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(help_text())
        return
    name, *rest = arguments
    if name in ("-V", "--version"):
        from idlm import __version__

        print(f"idlm {__version__}")
        return
    if name not in COMMANDS:
        raise UserError(_unknown(name))
    if name in LIGHTNING_SUBCOMMANDS:
        if text := early.help_text(name, rest):
            print(text)
            return
        rest = ["--help" if word == "--help=all" else word for word in rest]
        early.check(name, rest)
    module, _ = COMMANDS[name]
    with faults.explained(name):
        run = importlib.import_module(module).run
        run([name, *rest] if name in LIGHTNING_SUBCOMMANDS else rest)


def _unknown(name: str) -> str:
    """One sentence about a first argument that is no command."""
    if name.startswith("-"):
        return f"{name!r} comes before any command; type `idlm COMMAND {name}` or `idlm --help`"
    close = difflib.get_close_matches(name.lower(), COMMANDS, n=1)
    hint = f"did you mean `idlm {close[0]}`?" if close else "type `idlm --help` for what each does"
    return f"there is no command {name!r} (there are {', '.join(COMMANDS)}); {hint}"


def _stdout_reader_is_gone() -> bool:
    """Whether nobody reads stdout any more; a pipe to a dead worker breaks differently."""
    try:
        watcher = select.poll()
        watcher.register(sys.stdout.fileno(), 0)
    except (OSError, ValueError):  # stdout is an object in memory, no pipe
        return False
    return any(event & select.POLLERR for _, event in watcher.poll(0))


def _report_fault() -> NoReturn:
    """Print the exception being handled and whose fault it is."""
    traceback.print_exc()
    _fail(
        "idlm: this is a fault of idlm, not of your input; please report it, with the command and "
        "the traceback above, in the project's issue tracker",
        EXIT_FAULT,
    )


def _interrupted() -> NoReturn:
    """A terminal interrupts all processes of a launch; one says so."""
    if launch.process_index() > 0:
        raise SystemExit(EXIT_INTERRUPTED) from None
    _fail("idlm: interrupted", EXIT_INTERRUPTED)


def _fail(sentence: str, code: int) -> NoReturn:
    """Print one sentence on stderr and leave."""
    print(sentence, file=sys.stderr)
    raise SystemExit(code) from None


if __name__ == "__main__":
    main()
