"""The packed rows of a corpus: from the cache, or tokenised, packed and stored first."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from idlm.data import cache
from idlm.data.corpora import Corpus
from idlm.data.packing import PackingReport, packed_blocks
from idlm.data.tokenizer import tokenizer_hash
from idlm.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RowStore:
    """Everything that decides the rows of a corpus, and where they are kept.

    Args:
        corpus: the source.
        name: what the user calls it, for messages.
        tokenizer: a fast tokenizer with an eos token.
        length: tokens in a row.
        special_ends: see ``packing``.
        folder: the cache.
    """

    corpus: Corpus
    name: str
    tokenizer: PreTrainedTokenizerBase
    length: int
    special_ends: bool
    folder: Path

    def open(
        self, split: str, *, first: int | None = None, verify: bool = True
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """The rows ``[N, L]`` of a split as a read-only memory map, and their metadata.

        Args:
            split: ``"train"`` or ``"validation"``.
            first: read the source no further than these many rows need; None for all.
            verify: compare the hash of rows that are found, see :func:`idlm.data.cache.open_rows`.

        Returns:
            The rows; and a dictionary with the conditions, the packing report and the cache
            ``key``, which names the rows exactly.

        Raises:
            UserError: for whatever is wrong with the corpus or the tokenizer.
        """
        conditions = {
            "content": self.corpus.content(split),
            "tokenizer": tokenizer_hash(self.tokenizer),
            "length": self.length,
            "special_ends": self.special_ends,
            "first": first,
        }
        key = cache.cache_key(conditions)
        found = cache.open_rows(self.folder, key, verify=verify, aloud=False)
        if found is None:
            with cache.packing(self.folder, key):
                found = self._pack(split, first, key, conditions)
        rows, metadata = found
        return rows, {**metadata, "key": key}

    def _pack(
        self, split: str, first: int | None, key: str, conditions: dict[str, Any]
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """The entry, written unless another process has done so in the meantime."""
        found = cache.open_rows(self.folder, key)
        if found is None:
            log.info("packing the %s split of %s", split, self.name)
            report = PackingReport()
            blocks = self._unchanged(self._blocks(split, first, report), split, conditions)
            cache.write_rows(self.folder, key, blocks, conditions=conditions, report=report)
            found = cache.open_rows(self.folder, key)
        if found is None:
            raise RuntimeError(f"the cache entry {key} vanished from {self.folder}")
        return found

    def _unchanged(
        self, blocks: Iterator[np.ndarray], split: str, conditions: dict[str, Any]
    ) -> Iterator[np.ndarray]:
        """The blocks; fails at their end if they are not of the text that names the entry."""
        yield from blocks
        if self.corpus.content(split) != conditions["content"]:
            raise UserError(
                f"{self.name!r} changed while its {split} split was packed, and nothing was kept; "
                "run again once nobody writes to it"
            )

    def _blocks(self, split: str, first: int | None, report: PackingReport) -> Iterator[np.ndarray]:
        blocks = packed_blocks(
            self.corpus.documents(split),
            self.tokenizer,
            self.length,
            special_ends=self.special_ends,
            report=report,
            name=f"the {split} split of {self.name!r}",
        )
        if first is None:
            yield from blocks
            return
        left = first
        for block in blocks:
            yield block[:left]
            left -= len(block)
            if left <= 0:
                report.rows = first
                return
