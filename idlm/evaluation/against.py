"""A sample set against real text: MAUVE and the gradient moment, each with its conditions."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from idlm.errors import UserError
from idlm.metrics.gradient import GradientMoment
from idlm.metrics.mauve import Mauve
from idlm.metrics.report import SampleSet, rows_by_length
from idlm.metrics.sharing import kept_apart, update_shared

if TYPE_CHECKING:
    from idlm.sampling.sharded import Processes

# Rows of a text in order share documents with their neighbours; halves must not.
SAMPLE_ORDER, DATA_ORDER = 0, 1


def mauve_numbers(
    samples: SampleSet, data: SampleSet, metric: Mauve, *, processes: Processes | None = None
) -> dict[str, Any]:
    """MAUVE of samples and real text, by their texts.

    Args:
        samples: generated.
        data: real.
        metric: reset here and used.
        processes: of a launch, which share the reading of the texts.

    Returns:
        ``mauve`` (mean over seeds), ``mauve_sd`` and ``mauve_details``.

    Raises:
        UserError: if there are too few texts, or ``mauve-text`` is not installed.
    """
    size = metric.batch_size
    sides = (samples.texts, data.texts)
    places = [(side, i) for side, texts in enumerate(sides) for i in range(0, len(texts), size)]

    def batch(number: int) -> tuple[list[str], list[str]]:
        side, start = places[number]
        texts = sides[side][start : start + size]
        return (texts, []) if side == 0 else ([], texts)

    if processes is not None:
        kept_apart(metric)
    update_shared(metric, len(places), batch, processes=processes)
    details = metric.details()
    empty = sum(not text for text in samples.texts)
    return {
        "mauve": details["mauve"],
        "mauve_sd": details["sd"],
        "mauve_details": {**details, "empty_samples": empty, "against": data.source},
    }


def moment_numbers(
    samples: SampleSet,
    data: SampleSet,
    metric: GradientMoment,
    *,
    half_batch: int,
    retokenize: bool,
    advance: Callable[[int], None] | None = None,
    processes: Processes | None = None,
) -> dict[str, Any]:
    """Gradient moment of samples and real text, over as many pairs of batches as both fill.

    Both sides are put into a fixed random order first, so that the halves of a batch, which must
    be independent, are not neighbours in one text. Rows that fill no batch are counted.

    Args:
        samples: generated.
        data: real.
        metric: reset here and used.
        half_batch: rows of half a batch.
        retokenize: whether texts are compared, or the token rows as they are.
        advance: told how many samples were just used.
        processes: of a launch, which share the pairs.

    Returns:
        ``gradient_moment``, ``gradient_moment_stderr`` (over pairs) and
        ``gradient_moment_details``; None for a number that does not exist.

    Raises:
        UserError: if a side does not fill one batch, its rows cannot be stacked, or no token of
            a half counts.
    """
    size = 2 * half_batch
    sides = [_inputs(side, retokenize, metric) for side in (samples, data)]
    pairs = min(map(len, sides)) // size
    if pairs == 0:
        raise UserError(
            f"the gradient moment of {samples.source} needs {size} rows on each side and has "
            f"{len(sides[0])} against {len(sides[1])}: give more, or a smaller --half-batch"
        )
    ordered = [_shuffled(s, o) for s, o in zip(sides, (SAMPLE_ORDER, DATA_ORDER), strict=True)]

    def batch(number: int) -> tuple[Any, ...]:
        return tuple(rows[number * size : (number + 1) * size] for rows in ordered)

    if processes is not None:
        kept_apart(metric)
    subject = f"gradient moment of {samples.source}"
    update_shared(metric, pairs, batch, processes=processes, advance=advance, subject=subject)
    details = metric.details()
    return {
        "gradient_moment": _finite(details.pop("gradient_moment")),
        "gradient_moment_stderr": _finite(details.pop("standard_error")),
        "gradient_moment_details": {
            **{k: _finite(v) if isinstance(v, float) else v for k, v in details.items()},
            "retokenized": retokenize,
            "unused_samples": len(sides[0]) - pairs * size,
            "unused_data": len(sides[1]) - pairs * size,
            "order_seeds": [SAMPLE_ORDER, DATA_ORDER],
            "against": data.source,
        },
    }


def _inputs(side: SampleSet, retokenize: bool, metric: GradientMoment) -> Tensor | list[str]:
    if retokenize:
        return side.texts
    runs = rows_by_length(side.tokens)
    if len(runs) > 1:
        raise UserError(
            f"the samples of {side.source} differ in length, and the gradient moment stacks token "
            "rows: leave out --no-retokenize"
        )
    return runs[0][:, : metric.max_length or metric.evaluator.context]


def _shuffled(rows: Tensor | list[str], seed: int) -> Tensor | list[str]:
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
    return rows[order] if isinstance(rows, Tensor) else _chosen(rows, order.tolist())


def _chosen(rows: Sequence[str], order: Sequence[int]) -> list[str]:
    return [rows[i] for i in order]


def _finite(value: float) -> float | None:
    """JSON knows no nan: a number that does not exist is null."""
    return value if math.isfinite(value) else None
