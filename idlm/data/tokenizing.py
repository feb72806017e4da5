"""Tokenising ahead of training, in processes of its own that may die."""

from __future__ import annotations

import itertools
import logging
import os
import signal
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from idlm.data.packing import encode, ending, token_dtype
from idlm.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)
T = TypeVar("T")

_AHEAD = 4  # blocks for each worker
_DEATHS = 3

_encoder: tuple[object, int, np.dtype] | None = None


def tokenized(
    blocks: Iterable[tuple[T, list[str]]], tokenizer: PreTrainedTokenizerBase, *, workers: int
) -> Iterator[tuple[T, np.ndarray]]:
    """Blocks of documents as token ids, in their order, made by ``workers`` processes.

    The text is read here and its tokens come back here, so how many processes there are changes
    nothing. A block is kept until its tokens have come: when processes die they are replaced, and
    what was lost with them is made again.

    Args:
        blocks: pairs of anything and texts; read a few ahead.
        tokenizer: a fast tokenizer with an eos token.
        workers: processes.

    Raises:
        UserError: if they die again and again without making a block.
    """
    remaining = iter(blocks)
    waiting: deque[tuple[T, list[str]]] = deque()
    deaths = 0
    while True:
        pool = _pool(tokenizer, workers)
        try:
            futures = deque(pool.submit(_tokenize, texts) for _, texts in waiting)
            while True:
                _fill(pool, waiting, futures, remaining, _AHEAD * workers)
                if not waiting:
                    return
                tokens = futures[0].result()
                futures.popleft()
                deaths = 0
                yield waiting.popleft()[0], tokens
        except BrokenProcessPool as error:
            deaths += 1
            if deaths >= _DEATHS:
                raise UserError(
                    f"the processes that tokenise died {deaths} times in a row, perhaps for want "
                    f"of memory; give less than --data.init_args.num_workers {workers}, or 0"
                ) from error
            log.warning("a process that tokenises died; it is replaced, and nothing is lost")
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _fill(
    pool: ProcessPoolExecutor,
    waiting: deque[tuple[T, list[str]]],
    futures: deque[Future[np.ndarray]],
    remaining: Iterator[tuple[T, list[str]]],
    ahead: int,
) -> None:
    for block in itertools.islice(remaining, max(0, ahead - len(waiting))):
        waiting.append(block)  # first, so that it is not lost where there is no pool any more
        futures.append(pool.submit(_tokenize, block[1]))


def _pool(tokenizer: PreTrainedTokenizerBase, workers: int) -> ProcessPoolExecutor:
    # spawned: a fork of a process with CUDA and threads may hang. They import little.
    settings = (tokenizer.backend_tokenizer, ending(tokenizer), token_dtype(len(tokenizer)))
    return ProcessPoolExecutor(workers, get_context("spawn"), _start, settings)


def _start(encoder: object, eos: int, dtype: np.dtype) -> None:
    global _encoder
    _encoder = encoder, eos, dtype
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one core for each process
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the main process's to answer


def _tokenize(texts: list[str]) -> np.ndarray:
    assert _encoder is not None  # the pool started this process with one
    return encode(texts, *_encoder)
