"""Real text beside the samples of ``idlm evaluate``, in rows of their length and tokens."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from idlm.errors import UserError

if TYPE_CHECKING:
    from idlm.metrics.report import SampleSet


def reference_sets(
    args: argparse.Namespace, sets: Sequence[SampleSet]
) -> tuple[SampleSet, SampleSet | None]:
    """Rows of real text: as long as the samples, tokenised alike, and at most as many.

    Entropy depends on all three, so nothing else would compare.

    Args:
        args: of the command, with ``reference``.
        sets: the samples; the first gives the length.

    Returns:
        The reference, and other rows of the same text, at most as many, to hold against it; None
        if no row is left.

    Raises:
        UserError: if text or tokenizer cannot be had, or the text fills no row.
    """
    import numpy as np

    from idlm.data import tokenize_and_pack

    name = args.tokenizer or next((s.header.get("checkpoint") for s in sets), None)
    tokenizer = _tokenizer(name, args.revision if args.tokenizer is None else None)
    length = max(len(row) for row in sets[0].tokens)  # with a stop rule they differ
    rows = tokenize_and_pack(_documents(args.reference), tokenizer, length)
    wanted = max(len(s.texts) for s in sets)
    header = {"length": length, "tokenizer": str(name), "rows_available": len(rows)}
    chosen = _spread(len(rows), wanted)
    rest = np.setdiff1d(np.arange(len(rows)), chosen)
    others = rest[_spread(len(rest), wanted)]
    return (
        _set(f"reference: {args.reference}", rows[chosen], tokenizer, header),
        _set(f"other rows of {args.reference}", rows[others], tokenizer, header)
        if len(others)
        else None,
    )


def _spread(available: int, wanted: int) -> Any:
    """At most ``wanted`` places of ``available``, evenly spread."""
    import numpy as np

    return np.linspace(0, available - 1, min(available, wanted)).round().astype(int)


def _set(source: str, rows: Any, tokenizer: Any, header: dict[str, Any]) -> SampleSet:
    import numpy as np
    import torch

    from idlm.metrics.report import SampleSet
    from idlm.models import decode

    tokens = torch.from_numpy(rows.astype(np.int64))
    return SampleSet(source, decode(tokenizer, tokens), tokens.tolist(), dict(header))


def _tokenizer(name: str | None, revision: str | None) -> Any:
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
