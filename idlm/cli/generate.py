"""``idlm generate``: text from a checkpoint, printed or written to ``samples.jsonl``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from idlm.cli.shared import Parser, check_writable, require_bundled

if TYPE_CHECKING:
    from idlm.sampling.ancestral import Callback, StepState
    from idlm.sampling.generate import GenerationOutput

DTYPES = ("float32", "bfloat16", "float16")


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="idlm generate", description=__doc__, allow_abbrev=False)
    parser.add_argument(
        "--checkpoint",
        default="python-docs-student-16step",
        metavar="X",
        help="folder, bundled name or Hugging Face id (default: %(default)s)",
    )
    parser.add_argument("--revision", help="hub revision of the checkpoint")
    parser.add_argument("--length", type=int, help="tokens per sample; the model's context")
    parser.add_argument(
        "--steps",
        type=int,
        default=16,
        help="sampler steps, each at most one network call (default: %(default)s)",
    )
    parser.add_argument("--num-samples", type=int, default=4, help="(default: %(default)s)")
    parser.add_argument("--seed", type=int, help="sample i depends on seed and i alone; random")
    parser.add_argument("--temperature", type=float, default=1.0, help="(default: 1)")
    parser.add_argument("--top-p", type=float, default=1.0, help="nucleus (default: 1, all tokens)")
    parser.add_argument("--batch-size", type=int, help="samples in flight; chosen from the length")
    parser.add_argument("--device", help="cpu, cuda or cuda:1; a GPU if there is one")
    parser.add_argument(
        "--dtype",
        choices=DTYPES,
        default="float32",
        help="of the network; draws are always float64 (default: %(default)s)",
    )
    parser.add_argument(
        "--output",
        metavar="FILE",
        help="write samples.jsonl instead of printing; "
        "an existing file is replaced once the new one is complete",
    )
    parser.add_argument(
        "--progress",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="a progress bar on stderr (default: if stderr is a terminal)",
    )
    return parser


def run(argv: list[str]) -> None:
    """Generate, then print the texts or write them.

    Args:
        argv: the arguments after ``generate``.

    Raises:
        UserError: for bad usage or input.
    """
    args = _parser().parse_args(argv)
    if args.output is not None:
        check_writable("--output", args.output)
    require_bundled(args.checkpoint)

    import torch

    import idlm
    from idlm.devices import pick_device
    from idlm.models import decode, load_tokenizer
    from idlm.sampling.generate import check_request

    device = pick_device(args.device)
    dtype = getattr(torch, args.dtype)
    model = idlm.load(args.checkpoint, revision=args.revision, device=device, dtype=dtype)
    tokenizer = load_tokenizer(args.checkpoint, revision=args.revision)
    length = model.config.model_length if args.length is None else args.length
    check_request(
        model,
        num_samples=args.num_samples,
        length=length,
        steps=args.steps,
        temperature=args.temperature,
        top_p=args.top_p,
        batch_size=args.batch_size,
    )
    shown = sys.stderr.isatty() if args.progress is None else args.progress
    with _progress(shown, args.num_samples * args.steps) as callback:
        out = idlm.generate(
            model,
            args.num_samples,
            length,
            args.steps,
            seed=args.seed,
            top_p=args.top_p,
            temperature=args.temperature,
            batch_size=args.batch_size,
            callback=callback,
        )
    texts = decode(tokenizer, out.tokens)
    if args.output is None:
        _print(texts, out)
        return
    _write(args, out, texts)
    print(f"{args.output}: {_summary(out)}")


def _write(args: argparse.Namespace, out: GenerationOutput, texts: list[str]) -> None:
    from idlm.evaluation.cells import weights_revision
    from idlm.evaluation.keep import keep_samples

    header: dict[str, Any] = {
        "checkpoint": args.checkpoint,
        "revision": args.revision or weights_revision(args.checkpoint),
        "steps": args.steps,
        "nfe": out.nfe,
        "temperature": args.temperature,
        "top_p": args.top_p,
        "network_dtype": args.dtype,
        "tokens_per_call": out.tokens_per_call,
        "seconds": out.seconds,
        "seed": out.seed,
    }
    keep_samples(args.output, out.tokens, texts, header=header)


def _print(texts: list[str], out: GenerationOutput) -> None:
    """Texts on stdout, what they cost on stderr, so that a pipe gets the text alone."""
    for number, text in enumerate(texts):
        if len(texts) > 1:
            print(f"--- sample {number}")
        print(text)
    sys.stdout.flush()
    print(_summary(out), file=sys.stderr)


def _summary(out: GenerationOutput) -> str:
    count, length = out.tokens.shape
    return (
        f"{count} samples of {length} tokens in {out.nfe} network calls each, "
        f"{out.tokens_per_call:.4g} tokens per call, {out.seconds:.1f} s, seed {out.seed}"
    )


@contextmanager
def _progress(shown: bool, total: int) -> Iterator[Callback | None]:
    """A step callback that moves a bar on stderr, counted in steps of one sample."""
    if not shown:
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress, TimeElapsedColumn

    columns = (*Progress.get_default_columns(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("generating", total=total)

        def moved(state: StepState) -> None:
            bar.advance(task, state.tokens.shape[0])

        yield moved
