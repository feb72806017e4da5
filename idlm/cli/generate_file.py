"""What ``idlm generate --output`` writes (docs/generation.md describes the file)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import argparse

    from idlm.cli.given import Given
    from idlm.sampling import GenerationOutput


def checkpoint_revision(args: argparse.Namespace) -> str:
    """The revision that was asked for, else a digest of the weights.

    Raises:
        UserError: if the checkpoint cannot be found.
    """
    if args.revision is not None:
        return args.revision
    from idlm.evaluation.cells import weights_revision

    return weights_revision(args.checkpoint)


def sample_rows(
    args: argparse.Namespace,
    given: Given,
    out: GenerationOutput,
    tokens: list[list[int]],
    texts: list[str | None],
    prompt_lengths: list[int],
) -> list[dict[str, Any]]:
    """One row for each sample.

    Args:
        args: of the command line.
        given: prompts or infills.
        out: what was generated.
        tokens: ids of every sample, each as long as the sample.
        texts: the same as text, or None for each with ``--no-text``.
        prompt_lengths: tokens of each prompt.
    """
    rows = []
    for index, (row, text) in enumerate(zip(tokens, texts, strict=True)):
        sample = {"text": text, "tokens": row, "seed": out.seed, "index": index}
        if given.pieces:
            number = index // args.num_samples
            sample[given.kind] = given.pieces[number]
            if given.kind == "prompt":
                sample["prompt_length"] = prompt_lengths[number]
        if given.pieces or args.stop is not None:
            sample["length"] = len(row)
        rows.append(sample)
    return rows


def sample_header(
    args: argparse.Namespace,
    given: Given,
    out: GenerationOutput,
    rows: list[dict[str, Any]],
    revision: str | None,
) -> dict[str, Any]:
    """Every condition the samples were made under."""
    from idlm.sampling.generate import SAMPLING_DTYPE

    return {
        "checkpoint": args.checkpoint,
        "revision": revision,
        "raw": args.raw,
        "tokenizer": args.tokenizer,
        "given": given.kind,
        "steps": args.steps,
        "nfe": out.nfe,
        "length": out.tokens.shape[1],
        "temperature": args.temperature,
        "top_p": args.top_p,
        "order": args.order,
        "tail": args.tail,
        "stride": args.stride,
        "stop": args.stop,
        "sampling_dtype": SAMPLING_DTYPE,
        "network_dtype": args.dtype,
        "compiled": args.compile,
        "tokens_per_call": out.tokens_per_call,
        "seconds": out.seconds,
        "num_samples": len(rows),
        "seed": out.seed,
        "decoded": not args.no_text,
    }
