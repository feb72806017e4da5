"""The likelihood of corpora under a model: rows, their conditions, and one result for each corpus.

Zero-shot perplexity is this on corpora that the model was not trained on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from idlm.data import cache
from idlm.data.corpora import Corpus, LocalText
from idlm.data.recipes import recipe_file
from idlm.data.registry import open_corpus
from idlm.data.rows import RowStore
from idlm.errors import UserError
from idlm.metrics.likelihood import NelboPerplexity
from idlm.metrics.sharing import kept_apart, update_shared

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from idlm.sampling.sharded import Processes

DETOKENIZED = "none: the text as the corpus stores it"


@dataclass(frozen=True)
class HeldOut:
    """The rows that a likelihood is measured on, and how they were made.

    Attributes:
        name: what the user calls the corpus.
        rows: int64-compatible array ``[N, L]``.
        conditions: split, wrapping, tokenizer and counts, ready for JSON.
    """

    name: str
    rows: np.ndarray
    conditions: dict[str, Any]


def held_out_rows(
    name: str,
    tokenizer: PreTrainedTokenizerBase,
    length: int,
    *,
    tokenizer_name: str,
    special_ends: bool | None = None,
    text_field: str | None = None,
    max_rows: int | None = None,
) -> HeldOut:
    """The packed held-out rows of a corpus.

    Args:
        name: a local text or JSONL file or folder of them, which is measured whole; else anything
            that ``docs/data.md`` allows as a corpus, of which the validation split is.
        tokenizer: of the checkpoint.
        length: tokens of a row.
        tokenizer_name: for the conditions.
        special_ends: whether rows carry bos and eos at their ends; the recipe's rule if not given.
        text_field: the field of JSON lines or of a dataset that holds the text.
        max_rows: at most so many, evenly spaced.

    Raises:
        UserError: if there is no such corpus, or it fills no row.
    """
    corpus, split = _open(name, text_field)
    ends = corpus.special_ends if special_ends is None else special_ends
    store = RowStore(
        corpus,
        name,
        tokenizer,
        length=length,
        special_ends=ends,
        folder=cache.cache_folder(),
    )
    rows, metadata = store.open("validation")
    available = len(rows)
    if max_rows is not None and max_rows < available:
        rows = rows[np.arange(max_rows) * available // max_rows]
    wrapping = f"documents joined with an eos after each, cut into rows of {length}"
    conditions = {
        "split": split,
        "content": corpus.content("validation"),
        "tokenizer": tokenizer_name,
        "tokenizer_sha256": metadata["tokenizer"],
        "length": length,
        "wrapping": wrapping + (", bos and eos at the ends of each" if ends else ""),
        "special_ends": ends,
        "detokenized": DETOKENIZED,
        "documents": metadata["documents"],
        "rows_available": available,
        "dropped_tokens": metadata["dropped_tokens"],
    }
    return HeldOut(name, rows, conditions)


def measure_likelihood(
    held_out: HeldOut,
    metric: NelboPerplexity,
    *,
    advance: Callable[[int], None] | None = None,
    processes: Processes | None = None,
) -> dict[str, Any]:
    """The value of one corpus with its error and all conditions, ready for JSON.

    Args:
        held_out: the rows.
        metric: reset here and used.
        advance: told how many rows were just scored.
        processes: of a launch, which share the rows; each gets the value that one alone would.
    """
    size, rows = metric.batch_size, held_out.rows

    def batch(number: int) -> tuple[torch.Tensor, torch.Tensor]:
        piece = rows[number * size : (number + 1) * size]
        numbers = torch.arange(number * size, number * size + len(piece))
        return torch.from_numpy(piece.astype(np.int64)), numbers

    if processes is not None:
        kept_apart(metric)
    update_shared(metric, -(-len(rows) // size), batch, processes=processes, advance=advance)
    found = {key: value if np.isfinite(value) else None for key, value in metric.details().items()}
    return {"corpus": held_out.name, **found, **held_out.conditions, **metric.conditions()}


def _open(name: str, text_field: str | None) -> tuple[Corpus, str]:
    """The corpus, and which part of it is measured."""
    path = Path(name).expanduser()
    is_dataset = path.is_dir() and any(path.rglob("*.parquet"))
    if path.exists() and recipe_file(name) is None and not is_dataset:
        return LocalText(path, validation=path, text_field=text_field or "text"), "the whole text"
    try:
        return open_corpus(name, text_field=text_field), "validation"
    except UserError as error:
        raise UserError(f"--corpus {name}: {error}") from error
