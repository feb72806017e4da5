"""``idlm generate``: text from a checkpoint, printed or written to ``samples.jsonl``."""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from idlm.cli.generate_options import WATCH_DELAY, parse
from idlm.cli.given import Given
from idlm.cli.launch import meeting
from idlm.cli.shared import hold_output
from idlm.errors import UserError

if TYPE_CHECKING:
    from idlm.cli.watch import Watch
    from idlm.models import DiffusionLM
    from idlm.sampling import GenerationOutput
    from idlm.sampling.sharded import Processes


def run(argv: list[str]) -> None:
    """Generate, then print the texts or write them; under a launcher, the main process does.

    Args:
        argv: the arguments after ``generate``.

    Raises:
        UserError: for bad usage or input.
    """
    with ExitStack() as output:
        with meeting(lambda: parse(argv), lambda found: found[0].device) as (found, processes):
            args, given = found
            opened = processes.together(lambda: _open(args, given, processes, output))
            out = processes.together(lambda: _generate(args, given, opened, processes))
        if processes.index == 0:
            _deliver(args, given, opened, out)


@dataclass(frozen=True)
class _Opened:
    """What is read before any network call.

    Attributes:
        model: on this process's device.
        tokenizer: None if nothing is text.
        prompt_lengths: tokens of each prompt.
        revision: of the weights, for the header of a file.
    """

    model: DiffusionLM
    tokenizer: Any
    prompt_lengths: list[int]
    revision: str | None


def _open(
    args: argparse.Namespace, given: Given, processes: Processes, output: ExitStack
) -> _Opened:
    """Read the model and all else that can be wrong, before hours of work and not after."""
    written = args.output is not None and processes.index == 0
    hold_output(output, args.output, processes)
    import torch

    import idlm
    from idlm.cli.generate_file import checkpoint_revision
    from idlm.sampling import compile_for_sampling
    from idlm.sampling.requests import make_canvas

    model = idlm.load(
        args.checkpoint,
        revision=args.revision,
        device=processes.device,
        dtype=getattr(torch, args.dtype),
        raw=args.raw,
    )
    if args.compile:
        compile_for_sampling(model)
    text = not args.no_text or given.is_text or args.stop == "eos"
    tokenizer = _tokenizer(args, model) if text else None
    lengths: list[int] = []
    if given.pieces:
        canvas = make_canvas(
            model,
            len(given.pieces),
            args.length,
            **{given.kind: given.pieces[0] if len(given.pieces) == 1 else list(given.pieces)},
            tokenizer=tokenizer,
            stride=args.stride,
        )
        lengths = (~canvas.write).sum(1).tolist()
    return _Opened(model, tokenizer, lengths, checkpoint_revision(args) if written else None)


def _tokenizer(args: argparse.Namespace, model: DiffusionLM) -> Any:
    from idlm.models import load_tokenizer
    from idlm.models.tokenizers import check_tokenizer

    if args.tokenizer is not None:
        tokenizer = load_tokenizer(args.tokenizer)
        check_tokenizer(tokenizer, model.config, args.tokenizer)
        return tokenizer
    try:
        return load_tokenizer(args.checkpoint, revision=args.revision)
    except UserError as error:
        hint = "name one with --tokenizer, or ask for token ids alone with --no-text"
        raise UserError(f"{error}; {hint}") from error


def _generate(
    args: argparse.Namespace, given: Given, opened: _Opened, processes: Processes
) -> GenerationOutput:
    from idlm.sampling.sharded import generate_sharded

    # the samples of one prompt follow each other
    pieces = [piece for piece in given.pieces for _ in range(args.num_samples)]
    samples = len(pieces) or args.num_samples
    rows: dict[str, Any] = {given.kind: pieces} if pieces else {}
    with _watching(args, opened, processes) as watch:
        out = generate_sharded(
            processes,
            opened.model,
            samples,
            args.length,
            args.steps,
            **rows,
            temperature=args.temperature,
            top_p=args.top_p,
            seed=args.seed,
            order=args.order,
            tail=args.tail,
            stride=args.stride,
            stop=args.stop,
            tokenizer=opened.tokenizer,
            batch_size=args.batch_size,
            callback=watch,
            progress=_progress(args, processes),
        )
    # being watched takes time too, but not the model's
    return replace(out, seconds=out.seconds - (0.0 if watch is None else watch.seconds))


@contextmanager
def _watching(
    args: argparse.Namespace, opened: _Opened, processes: Processes
) -> Iterator[Watch | None]:
    """The step callback of ``--watch``, in the main process."""
    if processes.index > 0 or not args.watch:
        yield None
        return
    from idlm.cli.watch import Watch
    from idlm.sampling.requests import blank_id

    delay = WATCH_DELAY if args.watch_delay is None else args.watch_delay
    with Watch(opened.tokenizer, blank_id(opened.model.process), delay=delay) as watch:
        yield watch


def _progress(args: argparse.Namespace, processes: Processes) -> bool:
    """Whether this process shows a bar: the main one does, if it may or a terminal is there."""
    if processes.index > 0 or args.watch:
        return False
    return sys.stderr.isatty() if args.progress is None else args.progress


def _deliver(
    args: argparse.Namespace, given: Given, opened: _Opened, out: GenerationOutput
) -> None:
    """Print or write the samples, each as long as it is."""
    import torch

    from idlm.models import decode

    ends = out.lengths.tolist()
    tokens = [row[:end] for row, end in zip(out.tokens.tolist(), ends, strict=True)]
    texts: list[str | None] = [None] * len(tokens)
    if not args.no_text:
        texts = [decode(opened.tokenizer, torch.tensor([row]))[0] for row in tokens]
    if args.output is None:
        _print(
            [" ".join(map(str, r)) if t is None else t for r, t in zip(tokens, texts, strict=True)],
            out,
        )
        return
    from idlm.cli.generate_file import sample_header, sample_rows
    from idlm.samples import write_samples

    rows = sample_rows(args, given, out, tokens, texts, opened.prompt_lengths)
    write_samples(args.output, sample_header(args, given, out, rows, opened.revision), rows)
    # a pipe may be stdout itself, whose reader wants the samples alone
    told = sys.stdout if Path(args.output).is_file() else sys.stderr
    print(f"{args.output}: {_summary(out)}", file=told)


def _print(samples: list[str], out: GenerationOutput) -> None:
    """Samples on stdout, what they cost on stderr, so that a pipe gets the samples alone."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        # text of a model holds any character; one that stdout's encoding lacks shows as its number
        sys.stdout.reconfigure(errors="backslashreplace")
    for number, sample in enumerate(samples):
        if len(samples) > 1:
            print(f"--- sample {number}")
        print(sample)
    sys.stdout.flush()
    print(_summary(out), file=sys.stderr)


def _summary(out: GenerationOutput) -> str:
    count, shortest, longest = len(out.tokens), int(out.lengths.min()), int(out.lengths.max())
    size = f"{longest}" if shortest == longest else f"{shortest} to {longest}"
    return (
        f"{count} {'sample' if count == 1 else 'samples'} of {size} tokens in {out.nfe} network "
        f"calls each, {out.tokens_per_call:.4g} tokens per call, {out.seconds:.1f} s, "
        f"seed {out.seed}"
    )
