"""Endless rows from a stream of documents, with a position for every row.

Used for corpora that are too large to store. Documents come shuffled by windows, epoch after epoch,
and nothing is dropped: the remainder of an epoch begins the first row of the next.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from torch.utils.data import IterableDataset

from idlm.data.corpora import Corpus
from idlm.data.loaders import Batch, as_batch
from idlm.data.packing import body_length, finish_rows, tokenize
from idlm.data.shuffling import Documents, shuffled
from idlm.data.tokenizing import tokenized
from idlm.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_DOCUMENTS_AT_A_TIME = 64
_CHARACTERS_AT_A_TIME = 1 << 20


@dataclass(frozen=True)
class Position:
    """Where a row begins: enough to continue a stream with exactly that row."""

    epoch: int = 0
    state: Any = None
    """State of the corpus before the block of documents that the row begins in."""
    skip: int = 0
    """Tokens of that block that earlier rows have used."""


class RowStream:
    """Packs the documents of a corpus on the fly.

    Args:
        corpus: the source.
        split: ``"train"`` or ``"validation"``.
        tokenizer: a fast tokenizer.
        length: tokens in a row.
        special_ends: see ``packing``.
        seed: decides, with the epoch, the order in which the source is read.
        window: documents that are shuffled at a time, see :mod:`idlm.data.shuffling`.
        workers: processes that tokenise; 0 tokenises here.
    """

    def __init__(
        self,
        corpus: Corpus,
        split: str,
        tokenizer: PreTrainedTokenizerBase,
        *,
        length: int,
        special_ends: bool,
        seed: int,
        window: int = 0,
        workers: int = 0,
    ) -> None:
        self.corpus = corpus
        self.split = split
        self.tokenizer = tokenizer
        self.body = body_length(length, special_ends=special_ends)
        self.special_ends = special_ends
        self.seed = seed
        self.window = window
        self.workers = workers

    def rows(self, position: Position) -> Iterator[tuple[np.ndarray, Position]]:
        """Yield rows ``[L]`` from ``position`` on, each with the position of the next."""
        blocks: deque[tuple[Position, np.ndarray]] = deque()
        skip = position.skip
        for block in self._blocks(position):
            blocks.append(block)
            available = sum(len(tokens) for _, tokens in blocks) - skip
            while available >= self.body:
                parts, skip = _take(blocks, self.body, skip)
                available -= self.body
                row = np.concatenate(parts)[None]
                first, _ = blocks[0]
                following = Position(first.epoch, first.state, skip)
                yield (
                    finish_rows(row, self.tokenizer, special_ends=self.special_ends)[0],
                    following,
                )

    def _blocks(self, position: Position) -> Iterator[tuple[Position, np.ndarray]]:
        """Tokens of a few documents at a time, with the position of the first; never ends."""
        texts = self._texts(position)
        if self.workers:
            yield from tokenized(texts, self.tokenizer, workers=self.workers)
        for first, some in texts:
            yield first, tokenize(some, self.tokenizer)

    def _texts(self, position: Position) -> Iterator[tuple[Position, list[str]]]:
        """A few documents at a time, with the position of the first; never ends."""
        epoch, state = position.epoch, position.state
        while True:
            documents = self._pass(epoch, state)
            is_empty = state is None
            while block := _some(documents):
                is_empty = False
                yield Position(epoch, block[0][0]), [text for _, text in block]
            if is_empty:
                raise UserError(
                    f"the {self.split} split is empty: its stream holds no document with text"
                )
            epoch, state = epoch + 1, None

    def _pass(self, epoch: int, state: Any) -> Documents:
        def source(state: Any) -> Documents:
            return self.corpus.stream(self.split, seed=self.seed, epoch=epoch, state=state)

        return shuffled(source, state, window=self.window, seed=self.seed, epoch=epoch)


def _some(documents: Documents) -> list[tuple[Any, str]]:
    """The next few documents, fewer if they are long; none at the end."""
    block: list[tuple[Any, str]] = []
    characters = 0
    for state, text in documents:
        block.append((state, text))
        characters += len(text)
        if len(block) >= _DOCUMENTS_AT_A_TIME or characters >= _CHARACTERS_AT_A_TIME:
            break
    return block


def _take(
    blocks: deque[tuple[Position, np.ndarray]], count: int, skip: int
) -> tuple[list[np.ndarray], int]:
    """Remove ``count`` tokens after the first ``skip``; return them and the new ``skip``.

    The block in which the last token lies stays, even when it is used up: its position, with
    the tokens to skip, is where the next row begins.
    """
    parts: list[np.ndarray] = []
    while True:
        tokens = blocks[0][1]
        part = tokens[skip : skip + count]
        parts.append(part)
        count -= len(part)
        skip += len(part)
        if not count:
            return parts, skip
        blocks.popleft()
        skip = 0


class StreamedBatches(IterableDataset[Batch]):
    """The endless batches of one process, packed on the fly.

    Every process reads the whole stream and keeps its share, so that batches do not depend on
    the number of processes. It must run in the process that saves checkpoints, which looks up in
    ``positions`` where the batch after the last one begins; workers are the stream's.

    Args:
        stream: where rows come from.
        global_batch_size: samples in one batch, over all processes.
        start: number of the first batch.
        position: where the first batch begins.
        rank: this process.
        world: number of processes.
    """

    def __init__(
        self,
        stream: RowStream,
        *,
        global_batch_size: int,
        start: int,
        position: Position,
        rank: int,
        world: int,
    ) -> None:
        self.stream = stream
        self.global_batch_size = global_batch_size
        self.start = start
        self.position = position
        self.share = range(
            rank * global_batch_size // world, (rank + 1) * global_batch_size // world
        )
        self.positions = {start: position}
        """Where batch ``k`` begins, for the few that were made but not taken yet."""

    def __iter__(self) -> Iterator[Batch]:
        rows = self.stream.rows(self.position)
        for batch in itertools.count(self.start):
            chunk = list(itertools.islice(rows, self.global_batch_size))
            self.positions[batch + 1] = chunk[-1][1]
            first = batch * self.global_batch_size
            mine = np.stack([row for row, _ in chunk[self.share.start : self.share.stop]])
            yield as_batch(mine, range(first + self.share.start, first + self.share.stop))

    def position_of(self, batch: int) -> Position:
        """Where ``batch`` begins; earlier positions are forgotten."""
        self.positions = {k: value for k, value in self.positions.items() if k >= batch}
        return self.positions[batch]
