"""The sample sets that ``idlm evaluate --checkpoint`` makes before it measures them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from idlm.metrics.report import SampleSet
    from idlm.models import DiffusionLM
    from idlm.sampling import GenerationOutput
    from idlm.sampling.sharded import Processes


def generated(args: argparse.Namespace, processes: Processes) -> Iterator[SampleSet]:
    """One sample set for every checkpoint, step count, temperature and seed.

    Args:
        args: of the command.
        processes: of the launch, which share the samples of each set; all get the whole set.

    Raises:
        UserError: if a checkpoint cannot be loaded, or not asked for this.
    """
    from idlm.metrics.report import SampleSet
    from idlm.models import decode
    from idlm.sampling.generate import SAMPLING_DTYPE
    from idlm.sampling.sharded import generate_sharded

    for checkpoint in args.checkpoint:
        model, tokenizer, revision = processes.together(lambda: _open(args, checkpoint))  # noqa: B023
        grid = [(s, t, r) for s in args.steps for t in args.temperature for r in args.seed]
        for steps, temperature, seed in grid:
            made = generate_sharded(
                processes,
                model,
                args.num_samples,
                args.length,
                steps,
                seed=seed,
                temperature=temperature,
                top_p=args.top_p,
                progress=sys.stderr.isatty() and processes.index == 0,
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
            texts = decode(tokenizer, made.tokens)
            if args.save_samples:
                processes.together(lambda: _keep(args, processes, made, texts, header))  # noqa: B023
            yield SampleSet(checkpoint, texts, made.tokens.tolist(), header)


def _open(args: argparse.Namespace, checkpoint: str) -> tuple[DiffusionLM, Any, str]:
    """Model, tokenizer and revision of the weights."""
    import idlm
    from idlm.devices import pick_device
    from idlm.evaluation.cells import weights_revision
    from idlm.models import load_tokenizer

    model = idlm.load(
        checkpoint, revision=args.revision, device=pick_device(args.device), raw=args.raw
    )
    tokenizer = load_tokenizer(
        args.tokenizer or checkpoint, revision=None if args.tokenizer else args.revision
    )
    return model, tokenizer, args.revision or weights_revision(checkpoint)


def _keep(
    args: argparse.Namespace,
    processes: Processes,
    made: GenerationOutput,
    texts: list[str],
    header: dict[str, Any],
) -> None:
    from idlm.evaluation.keep import file_name, keep_samples

    if processes.index == 0:
        name = file_name({**header, "tokenizer": args.tokenizer})
        keep_samples(Path(args.save_samples) / name, made.tokens, texts, header=header)
