"""What a ``fit`` line can be answered before Lightning takes seconds to load: help, mistakes."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from pathlib import Path

from idlm.errors import UserError

# the first parts of LightningCLI's options; the tests compare them with its parser's
ROOTS = (
    *("help", "config", "print_config", "seed_everything", "trainer", "model", "data"),
    *("optimizer", "lr_scheduler", "ckpt_path", "verbose", "weights_only", "deterministic"),
)

# options of the line without a value
_FLAGS = ("--deterministic", "--print_config")
_YAML = (".yaml", ".yml", ".json")

_WORK = {
    "fit": "Train a teacher, or distil one, as a YAML file describes (configs/ has some).",
    "validate": "Measure a checkpoint of `idlm fit` on the validation split.",
    "test": "The same as `idlm validate`: a corpus here has no third split.",
}


def help_text(command: str, arguments: list[str]) -> str | None:
    """What ``idlm fit --help`` prints at once; None if that was not asked for.

    Args:
        command: ``fit``, ``validate`` or ``test``.
        arguments: what follows it.
    """
    if not {"-h", "--help"} & set(arguments):
        return None
    return f"""usage: idlm {command} --config RUN.yaml [--KEY VALUE ...]

{_WORK[command]}

  -c, --config FILE       YAML; a further one overrides the ones before it
  --print_config          print the whole configuration, defaults filled in, and stop
  --ckpt_path FILE        the checkpoint to {"go on from" if command == "fit" else "measure"}
  --seed_everything N     seed of all random numbers
  --deterministic         the same bits when run again (short for --trainer.deterministic true)
  --trainer.KEY VALUE     Lightning's Trainer: accelerator, devices, strategy, precision, max_time,
                          default_root_dir, logger, callbacks, ...
  --model CLASS           idlm.training.DistillationModule, and others of that package
  --model.init_args.KEY VALUE, --data.init_args.KEY VALUE
                          any other value of the YAML, overridden on the line

more, in a few seconds each:
  --help=all              every key of the trainer with its meaning
  --model.help CLASS, --data.help CLASS
                          what a class takes: idlm.training.DistillationModule,
                          idlm.data.PackedDataModule, ...
  --model idlm.training.DistillationModule --model.objective.help CLASS
                          the same for its objective: idlm.objectives.DMMD, ...

Examples and what the keys do: docs/training.md"""


def check(command: str, arguments: list[str]) -> None:
    """Refuse a configuration file that is not there, and options that nothing can begin.

    Args:
        command: ``fit``, ``validate`` or ``test``, for the message.
        arguments: what follows it.

    Raises:
        UserError: for the first of them. Everything else is LightningCLI's to judge.
    """
    for path in config_files(arguments):
        if not path.is_file():
            what = "a folder" if path.is_dir() else "where there is no file"
            raise UserError(
                f"--config is {path}, {what}; name a YAML file, for instance "
                "configs/owt_16step.yaml"
            )
    if (word := _bare_file(arguments)) is not None:
        raise UserError(
            f"{word} is given without the name of an option; write `idlm {command} --config {word}`"
        )
    for argument in arguments:
        name = argument.partition("=")[0]
        if name.startswith("--") and name != "--config":
            root = name[2:].split(".")[0].rstrip("+")
            # argparse takes the beginning of a name for the name
            if root and not any(known.startswith(root) for known in ROOTS):
                close = difflib.get_close_matches(root, ROOTS, n=1)
                hint = f"did you mean --{close[0]}?" if close else "there is no such option"
                raise UserError(
                    f"--{root} begins no option; {hint}; `idlm {command} --help` lists them"
                )


def _bare_file(arguments: list[str]) -> str | None:
    """A YAML file that no option before it takes as its value."""
    before = ""
    for argument in arguments:
        value = before.startswith("-") and "=" not in before and before not in _FLAGS
        if not value and not argument.startswith("-") and Path(argument).suffix in _YAML:
            return argument
        before = argument
    return None


def config_files(arguments: list[str]) -> Iterator[Path]:
    """The files that ``--config`` names; text with a colon is YAML itself or an address."""
    for number, argument in enumerate(arguments):
        name, sign, value = argument.partition("=")
        if name in ("-c", "--config"):
            path = value if sign else "".join(arguments[number + 1 : number + 2])
            if path and "\n" not in path and ":" not in path:
                yield Path(path).expanduser()
