"""What goes wrong in ``idlm fit|validate|test``, as one sentence."""

from __future__ import annotations

import re
import signal
import time
import traceback
from argparse import ArgumentError
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import SIGTERMException
from omegaconf.errors import OmegaConfBaseException

from idlm.cli import launch
from idlm.cli.missing import missing
from idlm.cli.near import hint
from idlm.errors import Stopped, UserError

_DEAD_WORKER = re.compile(r"DataLoader worker \(pid.*?\) (is killed by signal: \w+|exited \w+)")
_PLACES = re.compile(r"Parser key \"([\w.]+)\"|class_path '([\w.]+)'")
_OF_TRAINER = re.compile(r"(?:Parser key \"|--)trainer\.")

# seconds until the main process has spoken: launchers kill it when another process fails
_LAST_WORDS = 1.0


@contextmanager
def in_sentences(argv: list[str]) -> Iterator[None]:
    """Turn what LightningCLI, Lightning and PyTorch say about a run into sentences.

    Args:
        argv: the command line, whose first word is the subcommand.

    Raises:
        UserError: for arguments and settings that are wrong, for what cannot be reached or does
            not fit, for a training that diverged, and for a loader process that died.
        Stopped: for a run that a signal ended, when it is saved.
    """
    try:
        yield
    except UnpicklingError as error:
        wanted = re.search(r"GLOBAL (\S+)", str(error))
        what = f"its pickle wants to call {wanted[1]}" if wanted else "it is no checkpoint"
        raise UserError(
            f"the checkpoint of --ckpt_path was not loaded: {what}; give the .ckpt that a run wrote"
        ) from error
    except OmegaConfBaseException as error:
        where = f" in {error.full_key}" if error.full_key else ""
        raise UserError(f"{str(error).splitlines()[0]}{where}; correct the reference") from error
    except (Stopped, SIGTERMException) as stopped:
        if getattr(rank_zero_only, "rank", 0) > 0:  # one process tells it
            raise SystemExit(_code_of_others(stopped)) from stopped
        if isinstance(stopped, Stopped):
            raise
        raise Stopped(
            "stopped by SIGTERM outside of a training's updates; nothing was saved anew",
            signal.SIGTERM,
        ) from stopped
    except FloatingPointError as error:
        if getattr(rank_zero_only, "rank", 0) > 0:  # all have the same words
            time.sleep(_LAST_WORDS)
            raise SystemExit(2) from error
        raise UserError(one_line(error)) from error
    except (ArgumentError, MisconfigurationException) as error:
        raise _cause(error) or missing(error) or UserError(_sentence(error, argv)) from error
    except (RuntimeError, OSError, EOFError) as error:
        if (dead := _dead_loader(error)) is None:
            raise
        raise UserError(
            f"a process that loads data died ({dead}), perhaps for want of memory; continue "
            "from the last checkpoint with --ckpt_path, and with --data.init_args.num_workers 0 "
            "if it happens again"
        ) from error
    except (ValueError, ModuleNotFoundError) as error:
        # jsonargparse wraps what a constructor says about its arguments
        if (cause := _cause(error) or missing(error)) is None:
            raise
        raise cause from error


def _code_of_others(stopped: BaseException) -> int:
    """What the other processes end with: the main one's code, as soon as it has spoken."""
    if not launch.has_launcher():
        # Lightning kills the process that started this one if its end looks like a failure
        return 0
    time.sleep(_LAST_WORDS)
    return stopped.exit_code if isinstance(stopped, Stopped) else 128 + signal.SIGTERM


def _dead_loader(error: BaseException) -> str | None:
    """How PyTorch says that a process of a DataLoader died; None if it says something else."""
    if found := _DEAD_WORKER.search(str(error)):
        return found[0]
    # a batch that had arrived is fetched from the memory of the process that made it
    frames = traceback.extract_tb(error.__traceback__)
    fetching = any(Path(f.filename).name == "resource_sharer.py" for f in frames)
    return f"{type(error).__name__} while its batch was fetched" if fetching else None


def _cause(error: BaseException | None) -> UserError | None:
    """The UserError among an exception and its causes."""
    while error is not None and not isinstance(error, UserError):
        error = error.__cause__ or error.__context__
    return error


def _sentence(error: Exception, argv: list[str]) -> str:
    """One line of a message of jsonargparse or Lightning, less the alternatives nobody meant."""
    if not isinstance(error, ArgumentError):
        return one_line(error)
    drop = (
        *("Does not validate", "Subtypes:", "Errors:", "Given"),
        *("Expected a <class 'NoneType'>", "Expected a path but"),
    )
    lines = [line.strip().removeprefix("- ") for line in str(error).splitlines()]
    said = " ".join(line for line in lines if not line.startswith(drop)).rstrip(".")
    return f"{said}; {hint(said)}`idlm {argv[0]} {_help(said)}` lists what there is"


def _help(message: str) -> str:
    """The options that list the keys which a message of jsonargparse is about."""
    keys: list[str] = []
    owners: list[tuple[str, str]] = []  # a key and the class that is built from it
    for key, name in _PLACES.findall(message):
        if key:
            keys.append(key)
        else:
            owners.append((".".join(keys), name))
    if not owners:
        if keys and keys[0] in ("model", "data"):
            return f"--{keys[0]}.help CLASS"
        return "--help=all" if _OF_TRAINER.search(message) else "--help"
    (outer, its_class), (inner, kind) = owners[0], owners[-1]
    given = "" if inner == outer else f"--{outer} {its_class} "
    return f"{given}--{inner}.help {'CLASS' if 'has no attribute' in message else kind}"


def one_line(error: Exception) -> str:
    """The message of an error without its line breaks."""
    return " ".join(str(error).split())
