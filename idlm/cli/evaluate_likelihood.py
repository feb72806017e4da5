"""``idlm evaluate --likelihood``: perplexity of checkpoints on corpora by the NELBO."""

from __future__ import annotations

import argparse
import functools
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from idlm.cli.launch import meeting
from idlm.cli.shared import Parser, hold_output, require_bundled
from idlm.errors import UserError
from idlm.paths import check_writable

if TYPE_CHECKING:
    from idlm.evaluation.likelihood import HeldOut
    from idlm.models import DiffusionLM
    from idlm.sampling.sharded import Processes

_PLAIN_WIDTH = 160
_DEFAULT_CORPUS = "python_docs"
_STRATA = 64


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="idlm evaluate --likelihood", description=__doc__, allow_abbrev=False)
    parser.add_argument("--likelihood", action="store_true", help="what chooses this mode")
    parser.add_argument(
        "--checkpoint", nargs="+", required=True, metavar="X", help="folders, names, hub ids, .ckpt"
    )
    parser.add_argument("--revision", help="hub revision of the checkpoint")
    parser.add_argument(
        "--raw", action="store_true", help="of a Lightning file the raw weights, not their average"
    )
    parser.add_argument(
        "--corpus",
        nargs="+",
        default=[_DEFAULT_CORPUS],
        metavar="FILE|CORPUS",
        help="a .txt or .jsonl file or a folder of them, measured whole; or recipes and hub "
        "datasets, their validation split; several for zero-shot perplexity "
        f"(default: {_DEFAULT_CORPUS})",
    )
    parser.add_argument("--text-field", metavar="NAME", help="field that holds the text")
    parser.add_argument("--tokenizer", metavar="T", help="of the text; the checkpoint's own")
    parser.add_argument("--length", type=int, help="tokens of a row; the model's context")
    parser.add_argument(
        "--special-ends",
        action=argparse.BooleanOptionalAction,
        help="bos and eos at the ends of each row; as the corpus's recipe says by default",
    )
    parser.add_argument("--rows", type=int, help="at most so many, evenly spaced; all by default")
    parser.add_argument(
        "--draws", type=int, default=4, help="how often each row is noised, 2 or more (default: 4)"
    )
    parser.add_argument(
        "--strata",
        type=int,
        help=f"rows that share out the times (default: {_STRATA}, or all rows if they are fewer)",
    )
    parser.add_argument(
        "--interval",
        default="published",
        choices=["published", "whole"],
        help="times integrated: the published ones, or all, a strict bound (docs/likelihood.md)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of times and corruptions")
    parser.add_argument("--batch-size", type=int, default=8, help="rows per forward pass")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ...; a GPU if there is one")
    parser.add_argument("--output", metavar="FILE", help="write everything as JSON")
    return parser


def run(argv: list[str]) -> None:
    """Measure, print a table, and write JSON when asked.

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
        results = processes.together(lambda: list(_results(args, processes)))
        if processes.index > 0:
            return
        from idlm.evaluation.conditions import document
        from idlm.metrics.report import write_json

        _print(results)
        if args.output:
            print(f"written: {write_json(args.output, document(argv, results=results))}")


def _check(args: argparse.Namespace) -> None:
    from idlm.metrics.likelihood import check_settings

    for name in ("rows", "length"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise UserError(f"--{name} is {value}: it must be 1 or more")
    check_settings(
        draws=args.draws,
        strata=_STRATA if args.strata is None else args.strata,
        interval=args.interval,
        batch_size=args.batch_size,
    )
    if args.output is not None:
        check_writable("--output", args.output)
    for checkpoint in args.checkpoint:
        require_bundled(checkpoint)


def _results(args: argparse.Namespace, processes: Processes) -> Iterator[dict[str, Any]]:
    """One result for every checkpoint and corpus; processes of a launch share the rows."""
    from rich.console import Console
    from rich.progress import Progress

    from idlm.evaluation.likelihood import measure_likelihood
    from idlm.metrics.likelihood import NelboPerplexity

    for checkpoint in args.checkpoint:
        model, source = processes.together(lambda: _open(args, checkpoint, processes))  # noqa: B023
        # every corpus is opened before hours are spent on the first
        texts = _opened_texts(args, checkpoint, model, processes)
        hidden = processes.index > 0
        with Progress(console=Console(stderr=True), transient=True, disable=hidden) as bar:
            task = bar.add_task("scoring", total=sum(len(text.rows) for text in texts))
            advance = functools.partial(bar.advance, task)
            for text in texts:
                metric = NelboPerplexity(
                    model,
                    draws=args.draws,
                    strata=args.strata or min(_STRATA, len(text.rows)),
                    interval=args.interval,
                    seed=args.seed,
                    batch_size=args.batch_size,
                )
                found = measure_likelihood(text, metric, advance=advance, processes=processes)
                yield {**source, **found}


def _open(
    args: argparse.Namespace, checkpoint: str, processes: Processes
) -> tuple[DiffusionLM, dict[str, Any]]:
    """The model, and which it is."""
    import idlm
    from idlm.evaluation.cells import weights_revision

    model = idlm.load(checkpoint, revision=args.revision, device=processes.device, raw=args.raw)
    return model, {
        "checkpoint": checkpoint,
        "revision": args.revision or weights_revision(checkpoint),
        "raw": args.raw,
    }


def _opened_texts(
    args: argparse.Namespace, checkpoint: str, model: DiffusionLM, processes: Processes
) -> list[HeldOut]:
    """The main process packs what is not in the cache yet, and the others find it there."""
    texts: list[HeldOut] = []
    for turn in (processes.index == 0, processes.index > 0):
        texts += processes.together(
            lambda: list(_texts(args, checkpoint, model)) if turn else []  # noqa: B023
        )
    return texts


def _texts(args: argparse.Namespace, checkpoint: str, model: DiffusionLM) -> Iterator[HeldOut]:
    from idlm.evaluation.likelihood import held_out_rows
    from idlm.models import load_tokenizer

    longest = model.config.model_length
    if args.length is not None and args.length > longest:
        raise UserError(
            f"--length is {args.length} and the context of {checkpoint} is {longest} tokens; give "
            "at most that"
        )
    name = args.tokenizer or checkpoint
    tokenizer = load_tokenizer(name, revision=None if args.tokenizer else args.revision)
    for corpus in args.corpus:
        yield held_out_rows(
            corpus,
            tokenizer,
            args.length or longest,
            tokenizer_name=name,
            special_ends=args.special_ends,
            text_field=args.text_field,
            max_rows=args.rows,
        )


def _print(results: Sequence[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    if not console.is_terminal:
        console = Console(width=_PLAIN_WIDTH)
    table = Table(caption=_caption(results), caption_justify="left", caption_style="")
    for title in ("checkpoint", "corpus"):
        table.add_column(title, overflow="fold")
    for title in ("rows", "length", "tokens", "nats per token", "perplexity"):
        table.add_column(title, justify="right")
    for row in results:
        table.add_row(
            row["checkpoint"],
            f"{row['corpus']} ({row['split']})",
            f"{row['rows']} of {row['rows_available']}",
            str(row["length"]),
            str(row["tokens"]),
            _shown(row, "nats_per_token", 4),
            _shown(row, "perplexity", 2),
        )
    console.print(table)


def _shown(row: dict[str, Any], name: str, digits: int) -> str:
    value, error = row[name], row[f"{name}_stderr"]
    if value is None or error is None:
        return "not finite"
    return f"{value:.{digits}f} ± {error:.{digits}f}"


def _caption(results: Sequence[dict[str, Any]]) -> str:
    first = results[0]
    noise = (
        f"± is the Monte-Carlo error over {first['draws']} draws of times and corruptions "
        f"(seed {first['seed']}, {first['network_dtype']} network), not that of another text."
    )
    rows = (
        f"Rows: {first['wrapping']}; detokenised: {first['detokenized']}. Perplexities compare "
        "only at equal tokenizer, length and wrapping."
    )
    what = f"exp of nats per token, over all tokens of all rows. {first['statement']}."
    lines = [what, noise, rows]
    if failed := sum(row["failed_rows"] for row in results):
        lines.append(
            f"{failed} rows have a value that is not finite (a real token of probability 0, or "
            "overflow), and so has the perplexity they are part of."
        )
    if any(row["generator"] for row in results):
        lines.append(
            "A generator with noise input is trained for few steps, not for this bound: its value "
            "says little about its samples."
        )
    return "\n".join(lines)
