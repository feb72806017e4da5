"""The numbers of one set of samples, each with its standard error over samples."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from idlm.metrics import DistinctN, Evaluator, GenerativePerplexity
from idlm.metrics.diversity import sequence_entropies
from idlm.metrics.sharing import kept_apart


def score(
    tokens: Tensor,
    texts: Sequence[str],
    evaluator: Evaluator,
    *,
    device: str = "cpu",
    eos: str = "published",
) -> dict[str, Any]:
    """Perplexity, entropy and distinct bigrams of samples, each with its standard error.

    Args:
        tokens: the model's own tokens, int64 ``[N, L]``.
        texts: the same samples as text.
        evaluator: the judging model.
        device: of the evaluator.
        eos: which tokens count, "published" or "strict".

    Returns:
        The numbers, the conditions of the perplexity, and under ``per_sample`` what they are made
        of, one entry for each sample: ``nats`` (None where they are not finite, which makes the
        perplexity None and is counted in the conditions) and scored ``tokens``, ``entropy`` in
        nats. Intervals are made by resampling them.
    """
    started = time.perf_counter()
    # each sample by itself: differences of one running sum would be nan after the first nan; and
    # without other processes of a launch, which score other samples
    metric, alone = (
        kept_apart(GenerativePerplexity(evaluator, eos=eos, batch_size=1, device=device))
        for _ in range(2)
    )
    metric.update([])  # torchmetrics does not take a merge for an update
    nll: list[float] = []
    count: list[float] = []
    for text in texts:
        alone.reset()
        alone.update([text])
        nll.append(float(alone.nll_sum))
        count.append(float(alone.token_count))
        metric.merge_state(alone)
    gen_ppl = float(metric.compute())
    entropies = sequence_entropies(tokens)
    distinct = kept_apart(DistinctN(2, mode="per_sequence"))
    distinct.update(tokens)
    return {
        "gen_ppl": _finite(gen_ppl),
        "gen_ppl_stderr": _finite(gen_ppl * _ratio_stderr(nll, count)),
        "entropy": _finite(float(entropies.mean())),
        "entropy_stderr": _finite(_mean_stderr(entropies)),
        "distinct_2_per_sequence": _finite(float(distinct.compute())),
        "evaluation": metric.conditions(),
        "per_sample": {
            "nats": [_finite(nats) for nats in nll],
            "tokens": [int(number) for number in count],
            "entropy": entropies.tolist(),
        },
        "seconds_scoring": time.perf_counter() - started,
    }


def _ratio_stderr(nll: list[float], count: list[float]) -> float:
    """Standard error of sum(nll) / sum(count) over the scored samples; nan for fewer than two.

    By the delta method, as :class:`idlm.metrics.GenerativePerplexity` has it.

    exp of it is the perplexity, whose relative standard error this therefore is.
    """
    n, total = sum(tokens > 0 for tokens in count), sum(count)
    if n < 2 or total == 0:
        return math.nan
    mean = sum(nll) / total
    squares = sum((a - mean * b) ** 2 for a, b in zip(nll, count, strict=True))
    return math.sqrt(squares * n / (n - 1)) / total


def _mean_stderr(values: Tensor) -> float:
    """Standard error of the mean of independent values ``[N]``; nan for 1."""
    return float(values.std()) / math.sqrt(len(values)) if len(values) > 1 else math.nan


def _finite(value: float) -> float | None:
    """JSON knows no nan: a number that does not exist is null."""
    return value if math.isfinite(value) else None
