"""Shuffling a stream of documents so that it can be continued at any of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from idlm.data.parts import Part

Documents = Iterator[tuple[Any, str]]


def shuffled(
    source: Callable[[Any], Documents], state: Any = None, *, window: int, seed: int, epoch: int
) -> Documents:
    """One pass over a stream, each window of documents in an order of its own.

    A buffer that is drawn from at random would mix further, and be lost with the run: to fill it
    again, all it was filled from must be read again. A window is known by where it begins.

    Args:
        source: the stream from a state on, see :meth:`idlm.data.corpora.Corpus.stream`.
        state: where to start, as yielded by an earlier pass of the same window, seed and epoch.
        window: documents that are held and permuted, by ``(seed, epoch, number of the window)``;
            0 or 1 leaves the stream as it is. A document in parts stays where it is.
        seed: of the run.
        epoch: number of the pass.

    Yields:
        Pairs of a picklable state and a document; a stream from that state starts with it.
    """
    if window < 2:
        yield from source(state)
        return
    begin, number, done = (None, 0, 0) if state is None else state
    for group, moves in _windows(source(begin), window, inside=done is None):
        first = group[0][0]
        if not moves:
            yield (first, number, None), group[0][1]
        else:
            places = _order(len(group), (seed, epoch, number))
            for place in range(done or 0, len(group)):
                yield (first, number, place), group[places[place]][1]
        number, done = number + 1, 0


def _order(count: int, key: tuple[int, int, int]) -> np.ndarray:
    """A permutation, as that of :func:`idlm.data.loaders.epoch_order` fixed for good."""
    words = np.random.Philox(np.random.SeedSequence(key)).random_raw(count)
    return np.argsort(words, kind="stable")


def _windows(
    documents: Documents, window: int, *, inside: bool
) -> Iterator[tuple[list[tuple[Any, str]], bool]]:
    """Groups of documents and whether they move; ``inside``: the first ends one in parts."""
    group: list[tuple[Any, str]] = []
    for state, text in documents:
        goes_on = isinstance(text, Part)
        if goes_on or inside:
            if group:
                yield group, True
                group = []
            yield [(state, text)], False
        else:
            group.append((state, text))
            if len(group) == window:
                yield group, True
                group = []
        inside = goes_on
    if group:
        yield group, True
