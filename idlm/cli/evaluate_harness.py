"""``idlm evaluate --lm-eval``: the LM Evaluation Harness with the model ``idlm`` known to it."""

from __future__ import annotations

import sys

from idlm.cli.launch import launched_processes, meeting
from idlm.errors import UserError

_FLAG = "--lm-eval"


def run(argv: list[str]) -> None:
    """Hand the rest of the line to the harness's own command line.

    Args:
        argv: the arguments after ``evaluate``: ``--lm-eval`` first, then the harness's own, such as
            ``--model idlm --model_args checkpoint=X --tasks lambada_openai``.

    Raises:
        UserError: if the harness is not installed, ``--lm-eval`` does not come first, or several
            processes were launched.
    """
    with meeting(lambda: _check(argv), lambda _: None):
        pass
    from idlm.evaluation.harness import register

    register()
    from lm_eval.__main__ import cli_evaluate

    rest = argv[1:] or ["--help"]
    before = sys.argv
    try:
        # the harness reads the process's own line
        sys.argv = ["lm_eval", *rest]
        cli_evaluate()
    finally:
        sys.argv = before


def _check(argv: list[str]) -> None:
    if argv[0] != _FLAG:
        raise UserError(f"{_FLAG} comes first; everything behind it goes to the harness")
    if (count := launched_processes()) > 1:
        raise UserError(
            f"{_FLAG} runs in one process and there are {count}, each of which would do all of it; "
            "start it without a launcher"
        )
