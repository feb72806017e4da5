"""``idlm evaluate --lm-eval``: the LM Evaluation Harness with the model ``idlm`` known to it."""

from __future__ import annotations

import sys

from idlm.errors import UserError

_FLAG = "--lm-eval"


def run(argv: list[str]) -> None:
    """Hand the rest of the line to the harness's own command line.

    Args:
        argv: the arguments after ``evaluate``: ``--lm-eval`` first, then the harness's own, such as
            ``--model idlm --model_args checkpoint=X --tasks lambada_openai``.

    Raises:
        UserError: if the harness is not installed, or ``--lm-eval`` does not come first.
    """
    if argv[0] != _FLAG:
        raise UserError(f"{_FLAG} comes first; everything behind it goes to the harness")
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
