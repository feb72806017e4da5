"""Generated tokens to ``samples.jsonl``, with the header every reader relies on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from idlm.samples import CONDITIONS, write_samples
from idlm.sampling.generate import SAMPLING_DTYPE


def file_name(header: Mapping[str, Any]) -> str:
    """A name of its own for every set of conditions; the same conditions keep theirs.

    Two checkpoints may share a folder's name, and not everything has room in a file's.

    Args:
        header: checkpoint, steps, temperature and seed, and all else that decides the samples.
    """
    decisive = [header.get(name) for name in (*CONDITIONS, "num_samples", "tokenizer")]
    digest = hashlib.sha256(json.dumps(decisive, default=str).encode()).hexdigest()[:8]
    shown = f"{header['steps']}steps-t{header['temperature']:g}-seed{header['seed']}"
    return f"{Path(header['checkpoint']).name}-{shown}-{digest}.jsonl"


def keep_samples(
    path: str | Path, tokens: Tensor, texts: Sequence[str], *, header: dict[str, Any]
) -> Path:
    """Write samples and the conditions they were made under.

    Args:
        path: where; an existing file is replaced once the new one is complete.
        tokens: int64 ``[N, L]``.
        texts: the same samples as text.
        header: checkpoint, revision, steps, nfe, temperature, top_p, seconds, seed and what
            else is known; the counts are added here, and a sampling dtype if it has none.

    Raises:
        UserError: if the file cannot be written.
    """
    count, length = tokens.shape
    counts = {"length": length, "num_samples": count}
    full = {"sampling_dtype": SAMPLING_DTYPE, **header, **counts}
    rows = (
        {"text": text, "tokens": row, "seed": header["seed"], "index": index}
        for index, (text, row) in enumerate(zip(texts, tokens.tolist(), strict=True))
    )
    return write_samples(path, full, rows)
