"""``idlm export``: write a checkpoint as a Hub-ready folder, and push it if asked."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from idlm.cli.shared import Parser, require_bundled
from idlm.errors import UserError
from idlm.locks import alone_writing
from idlm.paths import check_writable

if TYPE_CHECKING:
    from idlm.models import DiffusionLM

_LAYOUTS = ("idlm", "mdlm", "duo")
_DTYPES = ("float32", "float16", "bfloat16")
# how the authors' code gets at a published layout; their files are not copied
_CODE = {
    "mdlm": "`AutoModelForMaskedLM.from_pretrained(FOLDER, trust_remote_code=True)` runs the files "
    "of kuleshov-group/mdlm-owt, which are written for transformers 4 and flash-attn",
    "duo": "`DUO.from_pretrained(FOLDER)` of s-sahoo/duo's modelling file, which is not copied",
}


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="idlm export", description=__doc__, allow_abbrev=False)
    parser.add_argument(
        "--checkpoint",
        required=True,
        metavar="X",
        help="folder, bundled name, Hugging Face id, or a Lightning .ckpt",
    )
    parser.add_argument(
        "--output",
        required=True,
        metavar="DIR",
        help="the folder to write; a checkpoint that is there is replaced, anything else is kept",
    )
    parser.add_argument("--revision", help="hub revision of the checkpoint")
    parser.add_argument(
        "--raw", action="store_true", help="of a .ckpt, the raw weights instead of the average"
    )
    parser.add_argument(
        "--layout",
        choices=_LAYOUTS,
        default="idlm",
        help="idlm, or what the authors' code reads: mdlm (masked), duo (uniform process) "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--latent",
        choices=("keep", "zero"),
        default="keep",
        help="zero: fix a generator's noise at zero and fold it into the weights, so that mdlm "
        "and duo can hold it; samples lose the diversity that the latent gave",
    )
    parser.add_argument(
        "--dtype", choices=_DTYPES, default="float32", help="of the file (default: %(default)s)"
    )
    words = parser.add_mutually_exclusive_group()
    words.add_argument(
        "--tokenizer", metavar="T", help="folder or Hugging Face id; the checkpoint's own, if any"
    )
    words.add_argument("--no-tokenizer", action="store_true", help="write none")
    card = parser.add_argument_group("model card")
    card.add_argument(
        "--metrics",
        metavar="FILE",
        help="JSON of `idlm evaluate --output` or of a frontier: the numbers of this checkpoint, "
        "with their conditions",
    )
    card.add_argument("--license", metavar="ID", help="such as apache-2.0; the source card's")
    hub = parser.add_argument_group("hub")
    hub.add_argument("--push", metavar="OWNER/NAME", help="upload the folder as one commit")
    hub.add_argument("--private", action="store_true", help="of a new repository")
    return parser


def run(argv: list[str]) -> None:
    """Load, write the folder, and upload it when asked.

    Args:
        argv: the arguments after ``export``.

    Raises:
        UserError: for bad usage or input.
    """
    args = _parser().parse_args(argv)
    if args.private and args.push is None:
        raise UserError("--private is about the repository of --push OWNER/NAME; give both")
    check_writable("--output", args.output, folder=True)
    require_bundled(args.checkpoint)

    import torch

    import idlm
    from idlm.models.export import check_replaceable, export_folder
    from idlm.models.layouts import check_layout, fix_latent_at_zero
    from idlm.models.publish import check_repository, push_folder

    # whatever can be refused is refused before gigabytes are read and written
    check_replaceable(args.output)
    if args.push is not None:
        check_repository(args.push)
    metrics = None if args.metrics is None else _metrics(args)
    model = idlm.load(args.checkpoint, revision=args.revision, device="cpu", raw=args.raw)
    written = fix_latent_at_zero(model) if args.latent == "zero" else model
    check_layout(written.config, args.layout)
    tokenizer = None if args.no_tokenizer else _tokenizer(args, model)
    with alone_writing(args.output, remedy="wait for it to end, or name another folder"):
        folder = export_folder(
            written,
            args.output,
            tokenizer=tokenizer,
            card=_card(args, model, written, metrics, has_tokenizer=tokenizer is not None),
            dtype=getattr(torch, args.dtype),
            layout=args.layout,
        )
    if written is not model:
        print(
            "idlm: the latent is fixed at zero: what is written is one component of the "
            "generator's mixture, and samples are less diverse than the generator's",
            file=sys.stderr,
        )
    size = sum(file.stat().st_size for file in folder.iterdir())
    count = sum(parameter.numel() for parameter in written.parameters())
    print(
        f"{args.output}: layout {args.layout}, {count:,} parameters in {args.dtype}, "
        f"{size / 1e6:.1f} MB"
    )
    if args.push is not None:
        print(f"pushed: {push_folder(folder, args.push, private=args.private)}")


def _metrics(args: argparse.Namespace) -> str:
    """The Metrics section of the card."""
    from idlm.evaluation.cells import weights_revision
    from idlm.models.measurements import metrics_section

    names = [args.checkpoint]
    if not Path(args.checkpoint).is_file():  # a training checkpoint holds more than these weights
        names.append(weights_revision(args.checkpoint, revision=args.revision))
    return metrics_section(args.metrics, names)


def _tokenizer(args: argparse.Namespace, model: DiffusionLM) -> Any:
    """The tokenizer to write, if it can be that of this network; ``None`` if there is none."""
    from idlm.models import load_tokenizer
    from idlm.models.tokenizers import NoTokenizerError, check_tokenizer

    if args.tokenizer is not None:
        found = load_tokenizer(args.tokenizer)
    else:
        try:
            found = load_tokenizer(args.checkpoint, revision=args.revision)
        except NoTokenizerError:
            print(
                f"idlm: warning: {args.checkpoint} has no tokenizer, so the export has none "
                "either; --tokenizer FOLDER adds one",
                file=sys.stderr,
            )
            return None
        except UserError as error:
            raise UserError(
                f"{error} (or give --tokenizer FOLDER, or --no-tokenizer to write none)"
            ) from error
    check_tokenizer(found, model.config, args.tokenizer or args.checkpoint)
    return found


def _card(
    args: argparse.Namespace,
    model: DiffusionLM,
    written: DiffusionLM,
    metrics: str | None,
    *,
    has_tokenizer: bool,
) -> str:
    from idlm import __version__
    from idlm.models.cards import AVERAGED, RAW, UNKNOWN, export_card, is_hub_id
    from idlm.models.provenance import source_card
    from idlm.models.tokenizers import mask_id

    config, hub = written.config, is_hub_id(args.checkpoint)
    mask, trained = mask_id(config), Path(args.checkpoint).is_file()
    source = source_card(args.checkpoint, revision=args.revision, raw=args.raw)
    latent = _latent(model) if written is model else f"fixed at zero (was: {_latent(model)})"
    fixed = "" if written is model else ", before its latent was fixed"
    rows = {
        "layout": args.layout,
        "process": f"{config.process}, {config.schedule} schedule, eps {config.schedule_eps:g}",
        "conditioned on time": "yes" if config.time_conditioning else "no",
        "parameters": f"{sum(p.numel() for p in written.parameters()):,}",
        "dtype": args.dtype,
        "context": f"{config.model_length} tokens",
        "vocabulary": f"{config.vocab_size} states"
        + ("" if mask is None else f", the mask is {mask}"),
        "tokenizer": None if has_tokenizer else "none in this folder",
        "latent": latent,
        "weights": (RAW if args.raw else AVERAGED) if trained else "those of the source",
        "exported from": args.checkpoint if hub else Path(args.checkpoint).name,
        "revision of the source": args.revision or UNKNOWN,
        "measured was": f"the source{fixed}" if metrics or fixed else None,
        "the authors' code": _CODE.get(args.layout),
        "exported by": f"idlm {__version__}",
    }
    return export_card(
        source,
        {name: value for name, value in rows.items() if value is not None},
        name=(args.push or Path(args.output).absolute().name).rpartition("/")[2],
        metrics=metrics,
        license=args.license,
        base_model=args.checkpoint if hub else None,
    )


def _latent(model: DiffusionLM) -> str:
    sizes = {"global": model.config.latent_global, "per position": model.config.latent_position}
    return ", ".join(f"{size} {name}" for name, size in sizes.items() if size) or "none"
