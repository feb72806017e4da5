"""``idlm inspect``: what a checkpoint is, and whether it predicts text at all."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from idlm.cli.shared import Parser, require_bundled
from idlm.errors import UserError

if TYPE_CHECKING:
    from idlm.models import DiffusionLM

_TEXT = "python_docs"
_OURS = ("idlm", "lightning")


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="idlm inspect", description=__doc__, allow_abbrev=False)
    parser.add_argument(
        "checkpoint", metavar="X", help="folder, bundled name, Hugging Face id, or Lightning .ckpt"
    )
    parser.add_argument("--revision", help="hub revision of the checkpoint")
    parser.add_argument(
        "--raw", action="store_true", help="of a .ckpt, the raw weights instead of the average"
    )
    parser.add_argument(
        "--text",
        metavar="FILE|CORPUS",
        help="what the NELBO is measured on: a .txt or .jsonl file or folder, or a corpus (its "
        f"validation split) (default: {_TEXT}, the text inside this Python)",
    )
    parser.add_argument("--rows", type=int, default=4, help="in the batch (default: %(default)s)")
    parser.add_argument("--length", type=int, help="tokens per row; the model's context")
    parser.add_argument("--tokenizer", metavar="T", help="of the text; the checkpoint's own")
    parser.add_argument("--seed", type=int, default=0, help="of the corruption (default: 0)")
    parser.add_argument("--device", help="cpu, cuda or cuda:1; a GPU if there is one")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    return parser


def run(argv: list[str]) -> None:
    """Print what a checkpoint is.

    Args:
        argv: the arguments after ``inspect``.

    Raises:
        UserError: for bad usage or input, a checkpoint that does not load above all.
    """
    args = _parser().parse_args(argv)
    for option in ("rows", "length"):
        value = getattr(args, option)
        if value is not None and value < 1:
            raise UserError(f"--{option} is {value}; it must be 1 or more")
    if not 0 <= args.seed < 1 << 64:
        raise UserError(f"--seed is {args.seed}; it must be 0 or more, below 2^64")
    require_bundled(args.checkpoint)

    import idlm
    from idlm.devices import pick_device
    from idlm.models.describe import (
        describe,
        describe_files,
        kind_of_weights,
        method_of,
        not_finite,
    )
    from idlm.models.provenance import source_card

    device = pick_device(args.device)
    model = idlm.load(args.checkpoint, revision=args.revision, device=device, raw=args.raw)
    _check_length(args, model)
    card = source_card(args.checkpoint, revision=args.revision, raw=args.raw)
    found = {
        "checkpoint": args.checkpoint,
        "revision": args.revision,
        "method": method_of(card),
        **describe_files(args.checkpoint, revision=args.revision, raw=args.raw),
        **describe(model),
        "not_finite": not_finite(model),
        **_text_facts(args, model),
    }
    if not Path(args.checkpoint).is_file():  # a .ckpt holds both, and one was chosen
        found["weights"] = kind_of_weights(card)
    if args.json:
        print(json.dumps(found, indent=2, ensure_ascii=False, allow_nan=False))
    else:
        _print(found)
    if (warning := _warning(found)) is not None:
        print(f"idlm: warning: {warning}", file=sys.stderr)


def _check_length(args: argparse.Namespace, model: DiffusionLM) -> None:
    longest = model.config.model_length
    if args.length is not None and args.length > longest:
        raise UserError(
            f"--length is {args.length} and the context is {longest} tokens; give at most that"
        )


def _text_facts(args: argparse.Namespace, model: DiffusionLM) -> dict[str, Any]:
    """Tokenizer and NELBO; without a tokenizer the reason why there is neither."""
    from idlm.evaluation.sanity import sanity_nelbo, text_rows
    from idlm.models import load_tokenizer
    from idlm.models.tokenizers import mask_id

    name = args.tokenizer or args.checkpoint
    try:
        tokenizer = load_tokenizer(name, revision=None if args.tokenizer else args.revision)
    except UserError as error:
        if args.tokenizer or args.text:
            raise
        return {"tokenizer": None, "nelbo": None, "nelbo_missing": str(error)}
    length = args.length or model.config.model_length
    rows = text_rows(_documents(args.text or _TEXT), tokenizer, rows=args.rows, length=length)
    sanity = sanity_nelbo(model, rows.to(model.device), seed=args.seed)
    finite = math.isfinite(sanity.nelbo)
    states = model.config.vocab_size - (mask_id(model.config) is not None)
    return {
        "tokenizer": {"class": type(tokenizer).__name__, "tokens": len(tokenizer)},
        "nelbo": {
            "nats_per_token": sanity.nelbo if finite else None,
            "uniform_nats_per_token": sanity.uniform,
            "log_states": math.log(states),
            "better_than_uniform": sanity.learned,
            "text": args.text or f"{_TEXT}, validation split",
            "rows": sanity.rows,
            "length": sanity.length,
            "seed": args.seed,
        },
    }


def _documents(text: str) -> Iterator[str]:
    """A file or folder whole; a corpus by its validation split."""
    from idlm.data.corpora import LocalText
    from idlm.data.registry import open_corpus

    if Path(text).exists():
        return LocalText(text, validation=text).documents("validation")
    return open_corpus(text).documents("validation")


def _warning(found: dict[str, Any]) -> str | None:
    """What is wrong with a network that predicts nothing."""
    if broken := found["not_finite"]:
        more = f" and {len(broken) - 1} more" if len(broken) > 1 else ""
        return f"{broken[0]}{more} holds values that are not finite, so the weights are damaged"
    nelbo = found["nelbo"]
    if nelbo is None or nelbo["better_than_uniform"]:
        return None
    shown = nelbo["nats_per_token"]
    said = "not finite" if shown is None else f"{shown:.3f} nats per token"
    known = f"uniform predictions get {nelbo['uniform_nats_per_token']:.3f} on the same batch"
    generator = found["latent_global"] or found["latent_position"]
    why = (
        "a few-step generator may be like that at noise levels it never visits; judge its samples"
        if generator
        else "the weights are untrained or damaged, or the tokenizer or the text is not its own"
    )
    return f"the NELBO is {said}, no better than chance: {known}; {why}"


def _print(found: dict[str, Any]) -> None:
    """A table on a terminal; for files and pipes one unbroken line for each fact."""
    lines = _lines(found)
    if not sys.stdout.isatty():
        width = max(map(len, lines))
        print("\n".join(f"{name:<{width}}  {value}" for name, value in lines.items()))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in lines.items():
        table.add_row(name, Text(value))
    Console().print(table)


def _lines(found: dict[str, Any]) -> dict[str, str]:
    """The facts as a reader wants them."""
    mask = "no mask" if found["mask_id"] is None else f"mask id {found['mask_id']}"
    latent = {"global": found["latent_global"], "per position": found["latent_position"]}
    own = f" ({found['latent_parameters']:,} of the latent)" if found["latent_parameters"] else ""
    tokenizer = found["tokenizer"]
    return {
        "checkpoint": found["checkpoint"]
        + (f" @ {found['revision']}" if found["revision"] else ""),
        "layout": found["layout"] + ("" if found["layout"] in _OURS else ", as published"),
        "method": found["method"],
        "weights": found["weights"],
        "process": f"{found['process']}, {mask}",
        "schedule": f"{found['schedule']}, eps {found['schedule_eps']:g}",
        "time conditioning": "yes" if found["time_conditioning"] else "no",
        "parameters": f"{found['parameters']:,}{own}",
        "dtypes in the file": ", ".join(f"{k} x {n}" for k, n in found["dtype"].items()),
        "size": f"{found['bytes'] / 1e6:.1f} MB",
        "network": f"{found['n_blocks']} blocks of {found['hidden_dim']}, {found['n_heads']} "
        f"heads, conditioning {found['cond_dim']}, dropout {found['dropout']:g}",
        "context": f"{found['model_length']} tokens",
        "vocabulary": f"{found['vocab_size']} states",
        "latent": ", ".join(f"{n} {name}" for name, n in latent.items() if n) or "none",
        "tokenizer": f"{tokenizer['class']}, {tokenizer['tokens']} tokens" if tokenizer else "none",
        "NELBO": _nelbo(found),
        **{f"sha256 {name}": digest for name, digest in found["sha256"].items()},
    }


def _nelbo(found: dict[str, Any]) -> str:
    nelbo = found["nelbo"]
    if nelbo is None:
        return f"not measured: {found['nelbo_missing']}"
    value = nelbo["nats_per_token"]
    return (
        f"{'not finite' if value is None else f'{value:.3f}'} nats per token; uniform predictions "
        f"get {nelbo['uniform_nats_per_token']:.3f} on this batch, log of the clean states is "
        f"{nelbo['log_states']:.3f} ({nelbo['rows']} rows of {nelbo['length']} tokens, "
        f"{nelbo['text']}, seed {nelbo['seed']})"
    )
