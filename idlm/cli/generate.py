"""``idlm generate``: text from a checkpoint, printed or written to ``samples.jsonl``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from idlm.cli.generate_options import WATCH_DELAY, parse
from idlm.cli.given import Given, Piece
from idlm.cli.shared import launched_processes, main_process_speaks
from idlm.errors import UserError

if TYPE_CHECKING:
    from idlm.models import DiffusionLM
    from idlm.sampling import Callback, GenerationOutput, StepState
    from idlm.sampling.sharded import Processes


def run(argv: list[str]) -> None:
    """Generate, then print the texts or write them; under a launcher, the main process does.

    Args:
        argv: the arguments after ``generate``.

    Raises:
        UserError: for bad usage or input.
    """
    with main_process_speaks():
        args, given = parse(argv)

        from idlm.sampling.sharded import join

        with join(launched_processes(), args.device) as processes:
            opened = processes.together(lambda: _open(args, given, processes))
            out = _generate(args, given, opened, processes)
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


def _open(args: argparse.Namespace, given: Given, processes: Processes) -> _Opened:
    """Read the model and all else that can be wrong, before hours of work and not after."""
    import torch

    import idlm
    from idlm.cli.generate_file import checkpoint_revision
    from idlm.sampling.requests import make_canvas

    model = idlm.load(
        args.checkpoint,
        revision=args.revision,
        device=processes.device,
        dtype=getattr(torch, args.dtype),
        raw=args.raw,
    )
    text = not args.no_text or given.is_text or args.stop == "eos"
    tokenizer = _tokenizer(args, model) if text else None
    lengths: list[int] = []
    if given.pieces:
        canvas = make_canvas(
            model,
            len(given.pieces),
            args.length,
            **{given.kind: _rows(given.pieces, model)},
            tokenizer=tokenizer,
            stride=args.stride,
        )
        lengths = (~canvas.write).sum(1).tolist()
    written = args.output is not None and processes.index == 0
    return _Opened(model, tokenizer, lengths, checkpoint_revision(args) if written else None)


def _tokenizer(args: argparse.Namespace, model: DiffusionLM) -> Any:
    from idlm.models import load_tokenizer
    from idlm.models.tokenizers import check_tokenizer

    if args.tokenizer:
        tokenizer = load_tokenizer(args.tokenizer)
        check_tokenizer(tokenizer, model.config, args.tokenizer)
        return tokenizer
    try:
        return load_tokenizer(args.checkpoint, revision=args.revision)
    except UserError as error:
        hint = "name one with --tokenizer, or ask for token ids alone with --no-text"
        raise UserError(f"{error}; {hint}") from error


def _rows(pieces: Sequence[Piece], model: DiffusionLM) -> list[Any]:
    """Pieces as :func:`idlm.generate` wants them: the mask id marks a slot among token ids."""
    slot = getattr(model.process, "mask_id", None)
    return [
        piece if isinstance(piece, str) else [slot if token is None else token for token in piece]
        for piece in pieces
    ]


def _generate(
    args: argparse.Namespace, given: Given, opened: _Opened, processes: Processes
) -> GenerationOutput:
    from idlm.sampling.sharded import generate_sharded

    # the samples of one prompt follow each other
    pieces = [piece for piece in given.pieces for _ in range(args.num_samples)]
    samples = len(pieces) or args.num_samples
    rows = {given.kind: _rows(pieces, opened.model)} if pieces else {}
    with _shown(args, samples, opened, processes) as callback:
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
            stride=args.stride,
            stop=args.stop,
            tokenizer=opened.tokenizer,
            batch_size=args.batch_size,
            callback=callback,
        )
    # being watched takes time too, but not the model's
    return replace(out, seconds=out.seconds - getattr(callback, "seconds", 0.0))


@contextmanager
def _shown(
    args: argparse.Namespace, samples: int, opened: _Opened, processes: Processes
) -> Iterator[Callback | None]:
    """The step callback of what was asked to be seen, in the main process."""
    if processes.index > 0:
        yield None
    elif args.watch:
        from idlm.cli.watch import Watch

        delay = WATCH_DELAY if args.watch_delay is None else args.watch_delay
        mask_id = getattr(opened.model.process, "mask_id", None)
        with Watch(opened.tokenizer, mask_id, delay=delay) as watch:
            yield watch
    else:
        from idlm.sampling.sharded import share

        shown = sys.stderr.isatty() if args.progress is None else args.progress
        steps = len(share(samples, 0, processes.count)) * args.steps
        with _progress(shown, steps * _windows(args, opened.model)) as callback:
            yield callback


def _windows(args: argparse.Namespace, model: DiffusionLM) -> int:
    """Windows of a sample that no stop token ends."""
    beyond = max(0, (args.length or 0) - model.config.model_length)
    return 1 + -(-beyond // max(1, args.stride or 1))


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
    print(f"{args.output}: {_summary(out)}")


def _print(samples: list[str], out: GenerationOutput) -> None:
    """Samples on stdout, what they cost on stderr, so that a pipe gets the samples alone."""
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
