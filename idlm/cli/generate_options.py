"""The options of ``idlm generate`` and which of them go together."""

from __future__ import annotations

import argparse

from idlm.cli.given import Given, read_given
from idlm.cli.shared import Parser, require_bundled
from idlm.errors import UserError
from idlm.paths import check_writable

DTYPES = ("float32", "bfloat16", "float16")
ORDERS = ("random", "confidence", "entropy", "margin")
TAILS = ("ancestral", "greedy")
SAMPLES, SAMPLES_OF_EACH = 4, 1
MOST_SAMPLES = 100_000_000
WATCH_DELAY = 0.1
LONGEST_DELAY = 60


def parse(argv: list[str]) -> tuple[argparse.Namespace, Given]:
    """Read the command line and the files it names; nothing heavy is imported.

    Raises:
        UserError: for bad usage, combinations that make no sense, and files that cannot be read
            or, in the case of ``--output``, written.
    """
    args = _parser().parse_args(argv)
    given = read_given(args)
    _check(args, given)
    if args.output is not None:
        check_writable("--output", args.output)
    require_bundled(args.checkpoint)
    if args.num_samples is None:
        args.num_samples = SAMPLES_OF_EACH if args.watch or len(given.pieces) > 1 else SAMPLES
    return args, given


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="idlm generate",
        description="Text from a checkpoint, printed or written to samples.jsonl. "
        "docs/generation.md explains every option.",
        allow_abbrev=False,
    )
    model = parser.add_argument_group("model")
    model.add_argument(
        "--checkpoint",
        default="python-docs-student-16step",
        metavar="X",
        help="folder, Lightning .ckpt, bundled name or Hugging Face id (default: %(default)s)",
    )
    model.add_argument("--revision", help="hub revision of the checkpoint")
    model.add_argument(
        "--raw", action="store_true", help="the raw weights of a Lightning .ckpt, not their EMA"
    )
    model.add_argument(
        "--tokenizer", metavar="X", help="folder or Hugging Face id; the checkpoint's own"
    )
    model.add_argument("--device", help="cpu, cuda or cuda:1; a GPU if there is one")
    model.add_argument(
        "--dtype",
        choices=DTYPES,
        default="float32",
        help="of the network; draws are always float64 (default: %(default)s)",
    )
    model.add_argument(
        "--compile",
        action="store_true",
        help="compile the network for its first shape; pays for many samples of one length. On a "
        "GPU it becomes a CUDA graph that every step replays",
    )
    _add_given(parser.add_argument_group("what is given (one of these, or none)"))
    _add_sampling(parser.add_argument_group("sampling"))
    _add_result(parser.add_argument_group("result"))
    return parser


def _add_given(group: argparse._ArgumentGroup) -> None:
    given = group.add_mutually_exclusive_group()
    given.add_argument(
        "--prompt", action="append", metavar="TEXT", help="begin with this; may be repeated"
    )
    given.add_argument(
        "--prompt-file",
        metavar="FILE",
        help="one prompt, the whole text; or of a .jsonl one from each line: a string, a list of "
        'token ids, or an object whose "prompt" is one of them',
    )
    given.add_argument(
        "--infill",
        action="append",
        metavar="TEXT",
        help="keep this and write its slots: [MASK] is one token, [MASK:12] twelve; "
        "may be repeated",
    )
    given.add_argument(
        "--infill-file",
        metavar="FILE",
        help='likewise; in a .jsonl the key is "infill" and null is a slot among token ids',
    )


def _add_sampling(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--num-samples",
        type=int,
        metavar="N",
        help=f"of each prompt or infill (default: {SAMPLES}; {SAMPLES_OF_EACH} if there are "
        "several or with --watch)",
    )
    group.add_argument(
        "--length", type=int, help="tokens per sample with its prompt; the model's context"
    )
    group.add_argument(
        "--steps",
        type=int,
        default=16,
        help="sampler steps, each at most one network call (default: %(default)s)",
    )
    group.add_argument("--seed", type=int, help="sample i depends on seed and i alone; random")
    group.add_argument("--temperature", type=float, default=1.0, help="(default: 1)")
    group.add_argument("--top-p", type=float, default=1.0, help="nucleus (default: 1, all tokens)")
    group.add_argument(
        "--order",
        choices=ORDERS,
        default=ORDERS[0],
        help="which positions are written first; all but random were not trained and tend to "
        "repeat (default: %(default)s)",
    )
    group.add_argument(
        "--tail",
        choices=TAILS,
        default=TAILS[0],
        help="how a uniform process ends: with a draw, or with one more network call and the "
        "likeliest token everywhere (default: %(default)s)",
    )
    group.add_argument(
        "--stride",
        type=int,
        help="write window after window, this many new tokens each, so that --length may exceed "
        "the model's context; --steps is then of each window",
    )
    group.add_argument(
        "--stop",
        nargs="+",
        metavar="ID",
        help="end a sample at the first of these tokens it writes: eos, or token ids",
    )
    group.add_argument("--batch-size", type=int, help="samples in flight; chosen from the length")


def _add_result(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--output",
        metavar="FILE",
        help="write samples.jsonl instead of printing; an existing file is replaced once the new "
        "one is complete, a pipe such as /dev/stdout is written to",
    )
    group.add_argument(
        "--no-text", action="store_true", help="token ids only, for a model without tokenizer"
    )
    group.add_argument(
        "--progress",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="a progress bar on stderr (default: if stderr is a terminal)",
    )
    group.add_argument(
        "--watch",
        action="store_true",
        help="see the first sequence of every batch being denoised, on stderr",
    )
    group.add_argument(
        "--watch-delay",
        type=float,
        metavar="SECONDS",
        help=f"how long each step stays visible (default: {WATCH_DELAY})",
    )


def _check(args: argparse.Namespace, given: Given) -> None:
    if args.num_samples is not None and args.num_samples < 1:
        raise UserError(f"num_samples is {args.num_samples}; it must be at least 1")
    if args.num_samples is not None and args.num_samples > MOST_SAMPLES:
        raise UserError(
            f"num_samples is {args.num_samples}; one run makes at most {MOST_SAMPLES}, and further "
            "ones with another seed"
        )
    if args.watch_delay is not None and not args.watch:
        raise UserError("--watch-delay says how slowly to show what --watch shows; add --watch")
    if args.watch_delay is not None and not 0 <= args.watch_delay <= LONGEST_DELAY:
        raise UserError(f"--watch-delay is {args.watch_delay}; give seconds, 0 to {LONGEST_DELAY}")
    if args.watch and args.progress:
        raise UserError("--watch and --progress draw on the same lines; give one of them")
    if args.watch and args.no_text:
        raise UserError("--watch shows text and --no-text asks for none; give one of them")
    if args.tokenizer is not None and args.no_text and not given.is_text and args.stop != ["eos"]:
        raise UserError("--tokenizer has nothing to do with --no-text; give one of them")
    if args.length is not None and given.kind == "infill":
        raise UserError(
            f"--length is {args.length}, but an infill is as long as its text and slots; "
            "leave --length out"
        )
    if args.stop is not None:
        args.stop = _stop(args.stop)


def _stop(values: list[str]) -> str | list[int]:
    if values == ["eos"]:
        return "eos"
    # no vocabulary has ids of more digits than fit 63 bits
    if not all(value.isdecimal() and len(value) < 19 for value in values):
        raise UserError(
            f"--stop is {' '.join(values)[:60]}; give eos, or token ids such as 0 50256"
        )
    return [int(value) for value in values]
