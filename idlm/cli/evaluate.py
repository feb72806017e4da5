"""``idlm evaluate``: perplexity, entropy and other numbers of samples, with their conditions."""

from __future__ import annotations

import argparse
import importlib
import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from idlm.cli.evaluate_metrics import EVALUATOR, add_options, check_options, open_judges, reads_text
from idlm.cli.launch import launched_processes, meeting
from idlm.cli.shared import Parser, hold_output
from idlm.errors import UserError
from idlm.paths import check_writable

if TYPE_CHECKING:
    from idlm.cli.evaluate_metrics import Judges
    from idlm.metrics.report import SampleSet
    from idlm.sampling.sharded import Processes


# First words of other measurements, each with options and a --help of its own.
MODES = {
    "--protocol": ("idlm.cli.evaluate_protocol", "what a file describes, with sweeps and gains"),
    "--likelihood": ("idlm.cli.evaluate_likelihood", "NELBO perplexity of checkpoints on corpora"),
    "--gsm8k": ("idlm.cli.evaluate_gsm8k", "exact match on the problems of GSM8K"),
    "--lm-eval": ("idlm.cli.evaluate_harness", "tasks of the LM Evaluation Harness"),
}


def _parser() -> argparse.ArgumentParser:
    modes = "; ".join(f"`idlm evaluate {name} --help`: {what}" for name, (_, what) in MODES.items())
    parser = Parser(
        prog="idlm evaluate", description=__doc__, epilog=f"also: {modes}", allow_abbrev=False
    )
    source = parser.add_argument_group("what is measured (one of --samples and --checkpoint)")
    source.add_argument("--samples", nargs="+", metavar="FILE", help="samples.jsonl files")
    source.add_argument("--checkpoint", nargs="+", metavar="X", help="generate with these first")
    source.add_argument(
        "--reference",
        metavar="FILE|CORPUS",
        help="held-out text to measure beside: a .txt or .jsonl file or folder, "
        "or a corpus such as python_docs (its validation split)",
    )
    source.add_argument(
        "--tokenizer",
        help="of samples and reference, folder or hub id; the checkpoint's by default",
    )
    made = parser.add_argument_group("generation, with --checkpoint")
    made.add_argument("--revision", help="hub revision of the checkpoint")
    made.add_argument(
        "--raw", action="store_true", help="of a Lightning file the raw weights, not their average"
    )
    made.add_argument("--steps", nargs="+", type=int, default=[16])
    made.add_argument("--num-samples", type=int, default=16)
    made.add_argument("--length", type=int, help="tokens; the model's context by default")
    made.add_argument("--temperature", nargs="+", type=float, default=[1.0])
    made.add_argument("--top-p", type=float, default=1.0)
    made.add_argument("--seed", nargs="+", type=int, default=[0], help="one sample set for each")
    made.add_argument("--save-samples", metavar="FOLDER", help="keep the generated samples here")
    judge = parser.add_argument_group("evaluator")
    judge.add_argument(
        "--evaluator",
        help=f"folder or Hugging Face id of a causal language model (default: {EVALUATOR})",
    )
    judge.add_argument("--evaluator-revision", help="hub revision of the evaluator")
    judge.add_argument(
        "--evaluator-dtype", default="float32", choices=["float32", "float16", "bfloat16"]
    )
    judge.add_argument(
        "--eos",
        default="published",
        choices=["published", "strict", "both"],
        help="which tokens count after an end of text (docs/metrics.md); both: a column for each",
    )
    judge.add_argument("--no-retokenize", action="store_true", help="score the tokens as they are")
    judge.add_argument("--max-length", type=int, help="tokens scored of a sample")
    judge.add_argument("--batch-size", type=int, default=8, help="rows per forward pass")
    judge.add_argument("--device", help="cpu, cuda, cuda:1, ...; a GPU if there is one")
    judge.add_argument("--device-map", help="auto: spread a large evaluator over devices")
    add_options(parser)
    parser.add_argument("--output", metavar="FILE", help="write everything as JSON")
    return parser


def run(argv: list[str]) -> None:
    """Measure, print a table, and write JSON when asked.

    Args:
        argv: the arguments after ``evaluate``.

    Raises:
        UserError: for bad usage or input.
    """
    for name, (module, _) in MODES.items():
        if any(argument.partition("=")[0] == name for argument in argv):
            importlib.import_module(module).run(argv)
            return

    def prepare() -> tuple[argparse.Namespace, tuple[str, ...]]:
        args = _parser().parse_args(argv)
        _check(args)
        return args, check_options(args)

    with (
        ExitStack() as output,
        meeting(prepare, lambda found: found[0].device) as ((args, names), processes),
    ):
        if processes.count > 1:
            args.device = str(processes.device)
        processes.together(lambda: hold_output(output, args.output, processes))
        processes.together(lambda: _evaluate(args, argv, names, processes))


def _evaluate(
    args: argparse.Namespace, argv: list[str], names: tuple[str, ...], processes: Processes
) -> None:
    """Every process of a launch takes its share and knows all results; the main one tells them."""
    from idlm.cli.evaluate_generate import generated
    from idlm.metrics.report import summarize, write_json

    # Files are read, and the evaluator is opened, before hours of generation; so is the reference,
    # after the first set, whose length it takes.
    def opened() -> tuple[list[SampleSet], Judges]:
        text = reads_text(args, names)
        read = [_read(path, needs_text=text) for path in args.samples or []]
        return read, open_judges(args, names)

    read, judges = processes.together(opened)
    made = iter(read or generated(args, processes))
    sets = read or [next(made)]
    against: list[SampleSet] = []
    others = None
    if args.reference:
        reference, others = processes.together(lambda: _reference(args, sets, judges))
        against = [reference]
    sets = read or [*sets, *made]
    results = _measured(judges, sets, against, others, processes)
    if processes.index > 0:
        return
    summary = summarize(results)
    said = _warnings(args, judges, sets, results)
    _print(args, judges, results, summary)
    for sentence in said:
        print(f"idlm: warning: {sentence}", file=sys.stderr)
    if args.output:
        from idlm.evaluation.conditions import document
        from idlm.metrics.registry import ALL_METRICS

        definitions = {name: ALL_METRICS[name].definition for name in names}
        found = {"definitions": definitions, "warnings": said}
        content = document(argv, **found, results=results, summary=summary)
        print(f"written: {write_json(args.output, content)}")


def _reference(
    args: argparse.Namespace, sets: list[SampleSet], judges: Judges
) -> tuple[SampleSet, SampleSet | None]:
    from idlm.cli.evaluate_reference import reference_sets

    reference, others = reference_sets(args, sets)
    judges.check_reference(sets, reference)
    return reference, others


def _measured(
    judges: Judges,
    sets: list[SampleSet],
    against: list[SampleSet],
    others: SampleSet | None,
    processes: Processes,
) -> list[dict[str, Any]]:
    """Results of all sets, then of the reference, which is held against other rows of its text."""
    from rich.console import Console
    from rich.progress import Progress

    data = against[0] if against else None
    pairs = [(samples, data) for samples in sets]
    pairs += [(reference, judges.control(others)) for reference in against]
    console = Console(stderr=True)
    # into a file or a pipe an interrupted bar would leave an empty line
    hidden = not console.is_terminal or processes.index > 0
    with Progress(console=console, transient=True, disable=hidden) as bar:
        total = judges.passes() * sum(len(samples.texts) for samples, _ in pairs)
        task = bar.add_task("scoring", total=total)
        return [
            judges.measure(
                samples, other, advance=lambda n: bar.advance(task, n), processes=processes
            )
            for samples, other in pairs
        ]


def _warnings(
    args: argparse.Namespace,
    judges: Judges,
    sets: list[SampleSet],
    results: list[dict[str, Any]],
) -> list[str]:
    """What must be said beside the numbers, each sentence once."""
    from idlm.evaluation.guards import family_warnings, result_warnings
    from idlm.metrics.report import refused

    said = []
    if judges.evaluator is not None:
        for checkpoint in dict.fromkeys(s.header.get("checkpoint") for s in sets):
            said += family_warnings(
                checkpoint,
                judges.evaluator,
                tokenizer=args.tokenizer,
                retokenized=judges.retokenize,
            )
    for result in results:
        said += result_warnings(result)
    said += refused(results)
    return list(dict.fromkeys(said))


def _check(args: argparse.Namespace) -> None:
    if args.raw and not args.checkpoint:
        raise UserError("--raw chooses weights of --checkpoint, and there is none; leave it out")
    if bool(args.samples) == bool(args.checkpoint):
        raise UserError(
            "give either --samples FILE... (from `idlm generate`) or --checkpoint X to generate "
            "first; type `idlm evaluate --help` for the options"
        )
    if args.device_map and (count := launched_processes()) > 1:
        raise UserError(
            f"--device-map {args.device_map} spreads one evaluator over all devices and there are "
            f"{count} processes, each with an evaluator; leave it out, or start one process"
        )
    for name, low in (("batch_size", 1), ("max_length", 2), ("num_samples", 1)):
        value = getattr(args, name)
        if value is not None and value < low:
            option = "--" + name.replace("_", "-")
            raise UserError(f"{option} is {value}: it must be {low} or more")
    for option, path in (("--output", args.output), ("--save-samples", args.save_samples)):
        if path is not None:
            check_writable(option, path, folder=option == "--save-samples")


def _read(path: str, *, needs_text: bool) -> SampleSet:
    from idlm.metrics.report import SampleSet
    from idlm.samples import is_decoded, read_samples

    header, rows = read_samples(path)
    if needs_text and not is_decoded(header):
        raise UserError(
            f"{path} holds tokens without text, and re-tokenising needs the text: score the tokens "
            "themselves with --no-retokenize (mauve cannot), or generate again without --no-text"
        )
    return SampleSet(path, [r["text"] or "" for r in rows], [r["tokens"] for r in rows], header)


def _print(
    args: argparse.Namespace,
    judges: Judges,
    results: list[dict[str, Any]],
    summary: list[dict[str, Any]],
) -> None:
    from idlm.cli.evaluate_table import print_table

    print_table(
        results,
        summary,
        None if judges.perplexity is None else judges.perplexity.conditions(),
        metrics=("gen_ppl", "entropy") if args.metrics is None else judges.names,
        both_rules=args.eos == "both",
    )
