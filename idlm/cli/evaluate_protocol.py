"""``idlm evaluate --protocol FILE``: every cell of a protocol, and what a student gained."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from idlm.cli.launch import meeting
from idlm.cli.shared import Parser
from idlm.errors import UserError
from idlm.paths import check_writable

_BATCH_SIZE = 16


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = Parser(
        prog=prog,
        description="Measure the cells of a protocol that the output does not have yet. Several "
        "processes, also of accelerate launch, may fill one output.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--protocol",
        default="eval/frontier.yaml",
        metavar="YAML",
        help="models, steps, samplers, seeds, evaluators (%(default)s)",
    )
    parser.add_argument("--output", metavar="JSON", help="(eval/results/ with the protocol's name)")
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="LABEL[:STEPS]",
        help="measure only this now; may be repeated",
    )
    parser.add_argument("--workers", type=int, default=1, help="processes side by side (1)")
    parser.add_argument("--threads", type=int, help="torch threads per process")
    parser.add_argument("--device", help="cpu, cuda or cuda:1; a GPU if there is one")
    parser.add_argument(
        "--batch-size",
        type=int,
        default=_BATCH_SIZE,
        help="sequences generated together (%(default)s)",
    )
    parser.add_argument("--save-samples", metavar="FOLDER", help="keep every cell's samples here")
    return parser


def run(argv: list[str], *, prog: str = "idlm evaluate --protocol FILE") -> dict[str, Any] | None:
    """Measure what is missing, write the results and print the gains.

    Args:
        argv: the arguments after ``evaluate``.
        prog: name of the program in messages.

    Returns:
        What is in the file; None in all processes of a launch but the main one.

    Raises:
        UserError: for bad usage or input.
    """

    def prepare() -> tuple[argparse.Namespace, Path]:
        args = _parser(prog).parse_args(argv)
        output = Path(args.output or Path("eval/results") / f"{Path(args.protocol).stem}.json")
        _check(args, output)
        return args, output

    with meeting(prepare, lambda found: found[0].device) as ((args, output), processes):
        from idlm.evaluation.frontier import Settings
        from idlm.evaluation.frontier import run as measure
        from idlm.evaluation.protocol import read_protocol

        protocol = processes.together(lambda: read_protocol(args.protocol))
        settings = Settings(str(processes.device), args.batch_size, args.save_samples)

        def work() -> dict[str, Any]:
            return measure(
                protocol,
                output,
                only=args.only,
                workers=args.workers,
                threads=args.threads,
                settings=settings,
            )

        content = processes.together(work)  # waits for all
        if processes.index > 0:
            return None
        if processes.count > 1:
            content = work()  # nothing is left to measure: the others' cells come in
    from idlm.cli.gain_table import print_gains
    from idlm.evaluation.guards import say

    print_gains(content["gains"], protocol.teacher)
    say(content["warnings"])
    print(f"written: {output}")
    return content


def _check(args: argparse.Namespace, output: Path) -> None:
    for name in ("workers", "threads", "batch_size"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')} is {value}: it must be 1 or more")
    check_writable("--output", output)
    if args.save_samples is not None:
        check_writable("--save-samples", args.save_samples, folder=True)
