"""Generated tokens to ``samples.jsonl``, with the header every reader relies on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from idlm.samples import write_samples
from idlm.sampling.generate import SAMPLING_DTYPE


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
