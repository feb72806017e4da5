"""Documents to rows of tokens: the one tokenise-and-pack function of the project.

Every document is tokenised without special tokens and followed by the end-of-text token; the
stream of all of them is cut into rows. Two rules for the cut:

* plain: a row is the next ``length`` tokens of the stream;
* ``special_ends``: a row is bos, the next ``length - 2`` tokens, eos. This is the rule MDLM
  (Sahoo et al., 2024) applies to OpenWebText. Their code cuts batches of 1,000 documents and
  drops the remainder of each; we cut one stream, so that only the very last remainder is lost.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from idlm.data.parts import Part
from idlm.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_DOCUMENTS_AT_A_TIME = 256
_CHARACTERS_AT_A_TIME = 1 << 21


@dataclass
class PackingReport:
    """What went in and what came out; stored beside the rows."""

    documents: int = 0
    tokens: int = 0
    """Tokens of all documents, the eos after each included."""
    rows: int = 0
    dropped_tokens: int = 0
    """Remainder after the last full row: less than one row, never more."""


def token_dtype(vocab_size: int) -> np.dtype:
    """The smallest of uint16 and int32 that holds ids ``0 .. vocab_size - 1``."""
    return np.dtype(np.uint16 if vocab_size <= 1 << 16 else np.int32)


def tokenize_and_pack(
    documents: Iterable[str],
    tokenizer: PreTrainedTokenizerBase,
    length: int,
    *,
    special_ends: bool = False,
    report: PackingReport | None = None,
) -> np.ndarray:
    """Tokenise, join with eos and cut into rows, in memory.

    Args:
        documents: texts, in the order in which they are joined.
        tokenizer: a fast tokenizer with an eos token.
        length: tokens in a row.
        special_ends: MDLM's rule, see the module's docstring.
        report: filled in, if given.

    Returns:
        ``[N, length]``, uint16 when the vocabulary fits, else int32. At most ``length - 1``
        tokens at the end of the stream fill no row and are dropped; ``report`` counts them.

    Raises:
        UserError: if the documents fill not even one row.
    """
    report = report if report is not None else PackingReport()
    blocks = list(
        packed_blocks(documents, tokenizer, length, special_ends=special_ends, report=report)
    )
    return np.concatenate(blocks)


def packed_blocks(
    documents: Iterable[str],
    tokenizer: PreTrainedTokenizerBase,
    length: int,
    *,
    special_ends: bool = False,
    report: PackingReport,
    name: str = "the split",
) -> Iterator[np.ndarray]:
    """The blocks ``[n, length]`` whose concatenation ``tokenize_and_pack`` returns.

    Nothing but the current documents is held in memory. ``report`` is complete once the blocks
    are exhausted; then an empty result raises ``UserError``.
    """
    body = body_length(length, special_ends=special_ends)
    dtype = token_dtype(len(tokenizer))
    rest = np.empty(0, dtype)
    for tokens in token_arrays(documents, tokenizer, report=report):
        stream = np.concatenate([rest, tokens])
        rows = len(stream) // body
        rest = stream[rows * body :]
        if rows:
            report.rows += rows
            yield finish_rows(
                stream[: rows * body].reshape(rows, body), tokenizer, special_ends=special_ends
            )
    report.dropped_tokens = len(rest)
    if not report.rows:
        raise UserError(
            f"{name} is empty: its {report.documents} documents hold {report.tokens} tokens, fewer "
            f"than one row of length={length}; lower length or give more text"
        )


def token_arrays(
    documents: Iterable[str], tokenizer: PreTrainedTokenizerBase, *, report: PackingReport
) -> Iterator[np.ndarray]:
    """Token ids ``[n]`` of a few hundred documents at a time, an eos after each document."""
    for texts in _some(documents):
        tokens = tokenize(texts, tokenizer)
        report.documents += sum(not isinstance(text, Part) for text in texts)
        report.tokens += len(tokens)
        yield tokens


def _some(documents: Iterable[str]) -> Iterator[list[str]]:
    """A few hundred documents at a time, fewer if they are long."""
    texts: list[str] = []
    characters = 0
    for text in documents:
        texts.append(text)
        characters += len(text)
        if len(texts) >= _DOCUMENTS_AT_A_TIME or characters >= _CHARACTERS_AT_A_TIME:
            yield texts
            texts, characters = [], 0
    if texts:
        yield texts


def tokenize(texts: list[str], tokenizer: PreTrainedTokenizerBase) -> np.ndarray:
    """Token ids ``[n]`` of the texts in one sequence, an eos after each that is no :class:`Part`.

    Raises:
        UserError: if the tokenizer has no eos token.
    """
    return encode(
        texts, tokenizer.backend_tokenizer, ending(tokenizer), token_dtype(len(tokenizer))
    )


def ending(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token behind a document.

    Raises:
        UserError: if the tokenizer has no eos token.
    """
    eos = tokenizer.eos_token_id
    if eos is None:
        raise UserError(
            f"the tokenizer {tokenizer.name_or_path!r} has no eos token to put between "
            "documents; use one that has, for instance gpt2"
        )
    return int(eos)


def encode(texts: list[str], encoder: Any, eos: int, dtype: np.dtype) -> np.ndarray:
    """What :func:`tokenize` returns, from the parts of a tokenizer.

    Args:
        texts: as there.
        encoder: the ``tokenizers.Tokenizer`` itself.
        eos: the token behind a document.
        dtype: of the ids.
    """
    pieces = []
    encoded = encoder.encode_batch_fast(texts, add_special_tokens=False)
    for text, encoding in zip(texts, encoded, strict=True):
        end = [] if isinstance(text, Part) else [eos]
        pieces.append(np.array([*encoding.ids, *end], dtype))
    return np.concatenate(pieces)


def finish_rows(
    rows: np.ndarray, tokenizer: PreTrainedTokenizerBase, *, special_ends: bool
) -> np.ndarray:
    """Put bos before and eos behind each row ``[n, body]`` when ``special_ends``."""
    if not special_ends:
        return rows
    bos = np.full((len(rows), 1), tokenizer.bos_token_id, rows.dtype)
    eos = np.full((len(rows), 1), tokenizer.eos_token_id, rows.dtype)
    return np.concatenate([bos, rows, eos], axis=1)


def body_length(length: int, *, special_ends: bool) -> int:
    """Tokens of the stream that a row of ``length`` takes.

    Raises:
        UserError: if ``length`` is below 1, or below 3 with ``special_ends``.
    """
    shortest = 3 if special_ends else 1
    if length < shortest:
        raise UserError(
            f"length={length} is too short: with special_ends={special_ends} a row has at least "
            f"{shortest} tokens; try 128"
        )
    return length - 2 if special_ends else length
