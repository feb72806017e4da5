"""``idlm evaluate --gsm8k``: exact match on the problems of GSM8K, the question as the prompt."""

from __future__ import annotations

import argparse
import functools
import itertools
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from idlm.cli.launch import meeting
from idlm.cli.shared import Parser, hold_output, require_bundled
from idlm.errors import UserError
from idlm.paths import check_writable

if TYPE_CHECKING:
    from idlm.data.problems import Problem
    from idlm.evaluation.gsm8k import Protocol
    from idlm.metrics.exact_match import ExactMatch
    from idlm.models import DiffusionLM
    from idlm.sampling.sharded import Processes

_PLAIN_WIDTH = 160
# Of the real test set, 1,319 problems: fewer have an error that hides most differences.
_FEW = 500


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="idlm evaluate --gsm8k", description=__doc__, allow_abbrev=False)
    parser.add_argument(
        "--gsm8k",
        required=True,
        metavar="FILE|DATASET",
        help="the published test.jsonl, a folder of the parquet files, or a dataset of the hub "
        "such as openai/gsm8k:main",
    )
    parser.add_argument("--split", default="test", help="of a dataset (default: test)")
    parser.add_argument("--problems", type=int, metavar="N", help="only the first N")
    parser.add_argument(
        "--checkpoint", nargs="+", required=True, metavar="X", help="folders, names, hub ids, .ckpt"
    )
    parser.add_argument("--revision", help="hub revision of the checkpoint")
    parser.add_argument(
        "--raw", action="store_true", help="of a Lightning file the raw weights, not their average"
    )
    parser.add_argument("--tokenizer", metavar="T", help="of the problems; the checkpoint's own")
    made = parser.add_argument_group("generation")
    made.add_argument("--steps", nargs="+", type=int, default=[16])
    made.add_argument("--length", type=int, help="tokens, question included; the model's context")
    made.add_argument(
        "--template",
        default=r"{question}\n",
        help=r"of the prompt; \n is a line break (default: %(default)s, as TinyGSM's rows)",
    )
    made.add_argument(
        "--bos",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="begin the prompt with the tokenizer's bos token (default: yes)",
    )
    made.add_argument("--temperature", type=float, default=1.0)
    made.add_argument("--top-p", type=float, default=1.0)
    made.add_argument("--seed", nargs="+", type=int, default=[0])
    made.add_argument("--batch-size", type=int, help="problems in flight")
    made.add_argument("--device", help="cpu, cuda, cuda:1, ...; a GPU if there is one")
    judged = parser.add_argument_group("answers")
    judged.add_argument(
        "--answer",
        default="auto",
        choices=["auto", "marker", "program", "last"],
        help="where the number is: behind ####, returned by a program, the last one; auto is "
        "#### if there is one, else a program (docs/gsm8k.md)",
    )
    judged.add_argument("--program-seconds", type=float, default=5.0)
    judged.add_argument("--program-memory", type=int, default=512, metavar="MB")
    judged.add_argument(
        "--weak-sandbox",
        action="store_true",
        help="run programs even where the kernel offers no system call filter",
    )
    parser.add_argument("--output", metavar="FILE", help="write everything as JSON, answers too")
    return parser


def run(argv: list[str]) -> None:
    """Answer, judge, print a table, and write JSON when asked.

    The file is written as answers come; those of a run that is not over stand in ``unfinished``.

    Args:
        argv: the arguments after ``evaluate``.

    Raises:
        UserError: for bad usage or input.
    """

    def prepare() -> argparse.Namespace:
        args = _parser().parse_args(argv)
        _check(args)
        return args

    with ExitStack() as output, meeting(prepare, lambda args: args.device) as (args, processes):
        processes.together(lambda: hold_output(output, args.output, processes))
        results = processes.together(lambda: _answered(args, argv, processes))
        if processes.index > 0:
            return
        _print(results)
        if args.output:
            print(f"written: {args.output}")


def _answered(
    args: argparse.Namespace, argv: list[str], processes: Processes
) -> list[dict[str, Any]]:
    """All results; the main process writes them as they come."""
    from idlm.evaluation.conditions import document
    from idlm.metrics.report import write_json

    results: list[dict[str, Any]] = []

    def write(**unfinished: Any) -> None:
        if args.output and processes.index == 0:
            write_json(args.output, document(argv, results=results, **unfinished))

    def keep(so_far: dict[str, Any]) -> None:
        processes.together(lambda: write(unfinished=so_far))

    for result in _results(args, keep, processes):
        results.append(result)
        processes.together(write)
    return results


def _check(args: argparse.Namespace) -> None:
    for name in ("problems", "length", "batch_size"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')} is {value}: it must be 1 or more")
    if args.output is not None:
        check_writable("--output", args.output)
    for checkpoint in args.checkpoint:
        require_bundled(checkpoint)


def _results(
    args: argparse.Namespace, keep: Callable[[dict[str, Any]], None], processes: Processes
) -> Iterator[dict[str, Any]]:
    """One result for every checkpoint, number of steps and seed; ``keep`` gets what one has yet."""
    from rich.console import Console
    from rich.progress import Progress

    from idlm.evaluation.gsm8k import answer_problems

    protocols, metric, problems = processes.together(lambda: _asked(args))
    hidden = processes.index > 0
    if not hidden:
        _warn(problems)
    for checkpoint in args.checkpoint:
        model, tokenizer, source = processes.together(
            lambda: _open(args, checkpoint, processes)  # noqa: B023
        )
        for protocol in protocols:
            run_of = {**source, **asdict(protocol)}
            with Progress(console=Console(stderr=True), transient=True, disable=hidden) as bar:
                task = bar.add_task("answering and judging", total=len(problems))
                found = answer_problems(
                    model,
                    tokenizer,
                    problems,
                    protocol,
                    metric,
                    advance=functools.partial(bar.advance, task),
                    keep=functools.partial(_unfinished, keep, run_of),
                    processes=processes,
                )
            yield {**source, **_finite(found)}


def _asked(args: argparse.Namespace) -> tuple[list[Protocol], ExactMatch, list[Problem]]:
    """How problems are put, how answers are judged, and the problems."""
    from idlm.data.problems import read_problems
    from idlm.evaluation.gsm8k import Protocol
    from idlm.metrics.exact_match import ExactMatch
    from idlm.sandbox import Limits

    limits = Limits(seconds=args.program_seconds, memory_mb=args.program_memory)
    metric = ExactMatch(args.answer, limits=limits, weak=args.weak_sandbox)
    protocols = [
        Protocol(
            steps=steps,
            length=args.length,
            template=args.template.replace("\\n", "\n"),
            bos=args.bos,
            temperature=args.temperature,
            top_p=args.top_p,
            seed=seed,
            batch_size=args.batch_size,
        )
        for steps, seed in itertools.product(args.steps, args.seed)
    ]
    return protocols, metric, read_problems(args.gsm8k, split=args.split, limit=args.problems)


def _open(
    args: argparse.Namespace, checkpoint: str, processes: Processes
) -> tuple[DiffusionLM, Any, dict[str, Any]]:
    """Model, tokenizer, and what was asked of which."""
    import idlm
    from idlm.evaluation.cells import weights_revision
    from idlm.models import load_tokenizer

    model = idlm.load(checkpoint, revision=args.revision, device=processes.device, raw=args.raw)
    tokenizer = load_tokenizer(
        args.tokenizer or checkpoint, revision=None if args.tokenizer else args.revision
    )
    source = {
        "checkpoint": checkpoint,
        "revision": args.revision or weights_revision(checkpoint),
        "raw": args.raw,
        "data": args.gsm8k,
        "split": args.split,
    }
    return model, tokenizer, source


def _unfinished(
    keep: Callable[[dict[str, Any]], None], run_of: dict[str, Any], answers: list[dict[str, Any]]
) -> None:
    keep({**run_of, "answers": answers})


def _warn(problems: Sequence[Problem]) -> None:
    if len(problems) < _FEW:
        print(
            f"idlm: warning: {len(problems)} problems: the standard error of a share is up to "
            f"{0.5 / math.sqrt(len(problems)):.1%}; GSM8K's test set has 1,319",
            file=sys.stderr,
        )


def _finite(found: dict[str, Any]) -> dict[str, Any]:
    """JSON knows no nan: the error of a single problem is null."""
    bad = {k for k, v in found.items() if isinstance(v, float) and not math.isfinite(v)}
    return {key: None if key in bad else value for key, value in found.items()}


def _print(results: Sequence[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    if not console.is_terminal:
        console = Console(width=_PLAIN_WIDTH)
    table = Table(caption=_caption(results[0]), caption_justify="left", caption_style="")
    table.add_column("checkpoint", overflow="fold")
    titles = ("steps", "nfe", "seed", "problems", "exact match", "95 % interval", "wrong")
    for title in titles:
        table.add_column(title, justify="right")
    table.add_column("no answer, by reason", overflow="fold")
    for row in results:
        error = row["exact_match_stderr"]
        low, high = row["exact_match_interval"]
        reasons = ", ".join(f"{name} {count}" for name, count in row["failed_by_reason"].items())
        table.add_row(
            row["checkpoint"],
            *(str(row[name]) for name in ("steps", "nfe", "seed", "problems")),
            f"{row['exact_match']:.2%}" + ("" if error is None else f" ± {error:.2%}"),
            f"{low:.1%} to {high:.1%}",
            str(row["wrong"]),
            reasons or "-",
        )
    console.print(table)


def _caption(first: dict[str, Any]) -> str:
    prompt = f"{'bos + ' * first['bos']}{first['template']!r}"
    how = (
        f"{first['data']}: one completion a problem, prompt {prompt}, length {first['length']}, "
        f"temperature {first['temperature']:g}, top-p {first['top_p']:g}, "
        f"{first['sampling_dtype']} draws; answers by the rule {first['answer_rule']!r}."
    )
    lines = [how]
    if first["too_long"]:
        lines.append(f"{first['too_long']} prompts fill the row and count as not answered.")
    if kernel := first.get("program_isolation"):
        held = [name for name, works in kernel.items() if works]
        lines.append(
            f"Programs: {first['program_seconds']:g} s, {first['program_memory_mb']} MB; held by "
            f"{', '.join(['limits', 'guards', *held])} (docs/gsm8k.md)."
        )
    return "\n".join(lines)
