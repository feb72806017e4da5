"""``idlm evaluate``: generative perplexity and entropy of samples, with their conditions."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from idlm.cli.shared import Parser, check_writable
from idlm.errors import UserError
from idlm.locks import alone_writing

if TYPE_CHECKING:
    from idlm.metrics.perplexity import GenerativePerplexity
    from idlm.metrics.report import SampleSet


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="idlm evaluate", description=__doc__, allow_abbrev=False)
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
        default="gpt2-large",
        help="folder or Hugging Face id of a causal language model (default: gpt2-large)",
    )
    judge.add_argument("--evaluator-revision", help="hub revision of the evaluator")
    judge.add_argument(
        "--evaluator-dtype", default="float32", choices=["float32", "float16", "bfloat16"]
    )
    judge.add_argument(
        "--eos",
        default="published",
        choices=["published", "strict"],
        help="which tokens count after an end of text (docs/metrics.md)",
    )
    judge.add_argument("--no-retokenize", action="store_true", help="score the tokens as they are")
    judge.add_argument("--max-length", type=int, help="tokens scored of a sample")
    judge.add_argument("--batch-size", type=int, default=8, help="rows per forward pass")
    judge.add_argument("--device", help="cpu, cuda, cuda:1, ...; a GPU if there is one")
    judge.add_argument("--device-map", help="auto: spread a large evaluator over devices")
    parser.add_argument("--output", metavar="FILE", help="write everything as JSON")
    return parser


def run(argv: list[str]) -> None:
    """Measure, print a table, and write JSON when asked.

    Args:
        argv: the arguments after ``evaluate``.

    Raises:
        UserError: for bad usage or input.
    """
    args = _parser().parse_args(argv)
    _check(args)
    remedy = "wait for it to end, or name another file with --output"
    with alone_writing(args.output, remedy=remedy) if args.output else nullcontext():
        _measure(args, argv)


def _measure(args: argparse.Namespace, argv: list[str]) -> None:
    from rich.console import Console
    from rich.progress import Progress

    from idlm.metrics.perplexity import GenerativePerplexity
    from idlm.metrics.report import measure, summarize, write_json

    # Files are read, and the evaluator is opened, before hours of generation.
    read = [_read(path, needs_text=not args.no_retokenize) for path in args.samples or []]
    perplexity = GenerativePerplexity(
        args.evaluator,
        retokenize=not args.no_retokenize,
        eos=args.eos,
        max_length=args.max_length,
        batch_size=args.batch_size,
        device=args.device,
        device_map=args.device_map,
        revision=args.evaluator_revision,
        dtype=args.evaluator_dtype,
    )
    sets = read or list(_generated(args))
    if args.reference:
        sets.append(_reference(args, sets))
    results = []
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("scoring", total=sum(len(s.texts) for s in sets))
        for samples in sets:
            results.append(measure(samples, perplexity, advance=lambda n: bar.advance(task, n)))
    summary = summarize(results)
    _print(results, summary, perplexity)
    if args.output:
        print(f"written: {write_json(args.output, _document(argv, results, summary))}")


def _check(args: argparse.Namespace) -> None:
    if args.raw and not args.checkpoint:
        raise UserError("--raw chooses weights of --checkpoint, and there is none; leave it out")
    if bool(args.samples) == bool(args.checkpoint):
        raise UserError(
            "give either --samples FILE... (from `idlm generate`) or --checkpoint X to generate "
            "first; type `idlm evaluate --help` for the options"
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
            "themselves with --no-retokenize, or generate again without --no-text"
        )
    return SampleSet(path, [r["text"] or "" for r in rows], [r["tokens"] for r in rows], header)


def _generated(args: argparse.Namespace) -> Iterator[SampleSet]:
    """One sample set for every checkpoint, step count, temperature and seed."""
    import torch

    import idlm
    from idlm.evaluation.cells import weights_revision
    from idlm.metrics.report import SampleSet
    from idlm.models import decode, load_tokenizer
    from idlm.samples import write_samples
    from idlm.sampling.generate import SAMPLING_DTYPE

    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    for checkpoint in args.checkpoint:
        model = idlm.load(checkpoint, revision=args.revision, device=device, raw=args.raw)
        tokenizer = load_tokenizer(
            args.tokenizer or checkpoint, revision=None if args.tokenizer else args.revision
        )
        revision = args.revision or weights_revision(checkpoint)
        grid = [(s, t, r) for s in args.steps for t in args.temperature for r in args.seed]
        for steps, temperature, seed in grid:
            made = idlm.generate(
                model,
                args.num_samples,
                args.length,
                steps,
                seed=seed,
                temperature=temperature,
                top_p=args.top_p,
                progress=sys.stderr.isatty(),
            )
            header = {
                "checkpoint": checkpoint,
                "revision": revision,
                "raw": args.raw,
                "steps": steps,
                "nfe": made.nfe,
                "length": made.tokens.shape[1],
                "temperature": temperature,
                "top_p": args.top_p,
                "sampling_dtype": SAMPLING_DTYPE,
                "seconds": made.seconds,
                "num_samples": args.num_samples,
                "seed": seed,
            }
            texts, tokens = decode(tokenizer, made.tokens), made.tokens.tolist()
            if args.save_samples:
                name = f"{Path(checkpoint).name}-{steps}steps-t{temperature:g}-seed{seed}.jsonl"
                rows = [
                    {"text": text, "tokens": row, "seed": seed, "index": index}
                    for index, (text, row) in enumerate(zip(texts, tokens, strict=True))
                ]
                write_samples(Path(args.save_samples) / name, header, rows)
            yield SampleSet(checkpoint, texts, tokens, header)


def _reference(args: argparse.Namespace, sets: list[SampleSet]) -> SampleSet:
    """Rows of real text: as long as the samples, tokenised alike, and at most as many.

    Entropy depends on all three, so nothing else would compare.
    """
    import numpy as np
    import torch

    from idlm.data import tokenize_and_pack
    from idlm.metrics.report import SampleSet
    from idlm.models import decode

    name = args.tokenizer or next((s.header.get("checkpoint") for s in sets), None)
    tokenizer = _reference_tokenizer(name, args.revision if args.tokenizer is None else None)
    length = max(len(row) for row in sets[0].tokens)  # with a stop rule they differ
    rows = tokenize_and_pack(_documents(args.reference), tokenizer, length)
    wanted = min(len(rows), max(len(s.texts) for s in sets))
    chosen = rows[np.linspace(0, len(rows) - 1, wanted).round().astype(int)].astype(np.int64)
    return SampleSet(
        f"reference: {args.reference}",
        decode(tokenizer, torch.from_numpy(chosen)),
        chosen.tolist(),
        {"length": length, "tokenizer": str(name), "rows_available": len(rows)},
    )


def _reference_tokenizer(name: str | None, revision: str | None) -> Any:
    from idlm.models import load_tokenizer

    hint = "to tokenise --reference as the samples are, give --tokenizer FOLDER"
    if name is None:
        raise UserError(f"the samples name no checkpoint: {hint}")
    try:
        return load_tokenizer(name, revision=revision)
    except UserError as error:
        raise UserError(f"{error} ({hint})") from error


def _documents(reference: str) -> Iterator[str]:
    """A file or folder whole, since it is named as held-out; a corpus by its validation split."""
    from idlm.data.corpora import LocalText
    from idlm.data.registry import open_corpus

    if Path(reference).exists():
        return LocalText(reference, validation=reference).documents("validation")
    return open_corpus(reference).documents("validation")


def _document(
    argv: list[str], results: list[dict[str, Any]], summary: list[dict[str, Any]]
) -> dict[str, Any]:
    import torch
    import transformers

    from idlm import __version__

    return {
        "command": ["idlm", "evaluate", *argv],
        "idlm": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "results": results,
        "summary": summary,
    }


def _print(
    results: list[dict[str, Any]],
    summary: list[dict[str, Any]],
    perplexity: GenerativePerplexity,
) -> None:
    from idlm.cli.evaluate_table import print_table

    print_table(results, summary, perplexity.conditions())
