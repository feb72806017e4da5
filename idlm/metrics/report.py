"""A sample set, its numbers, and the conditions those numbers hold under.

Generative perplexity never leaves this module without entropy: repetitive text wins the one and
loses the other.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from torch import Tensor

from idlm.metrics.diversity import DistinctN, Entropy
from idlm.metrics.perplexity import GenerativePerplexity
from idlm.samples import replace_file

# What a sample set was made with; sets that differ only in the seed are repetitions.
CONDITIONS = (
    "checkpoint",
    "revision",
    "steps",
    "length",
    "temperature",
    "top_p",
    "order",
    "tail",
    "stride",
    "stop",
    "given",
    "raw",
    "sampling_dtype",
    "network_dtype",
)


@dataclass
class SampleSet:
    """Texts and tokens made under one set of conditions.

    Attributes:
        source: where they are from: a file, a checkpoint, a reference text.
        texts: N decoded samples.
        tokens: N lists of the model's own token ids.
        header: the conditions, as in ``samples.jsonl``.
    """

    source: str
    texts: list[str]
    tokens: list[list[int]]
    header: dict[str, Any] = field(default_factory=dict)


def measure(
    samples: SampleSet,
    perplexity: GenerativePerplexity,
    *,
    advance: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """Every number of one sample set with its conditions, ready for JSON.

    Args:
        samples: the set.
        perplexity: reset here and used; its evaluator is loaded once for many sets.
        advance: told how many samples were just scored.

    Returns:
        ``gen_ppl``, ``entropy`` (nats, mean over sequences), ``entropy_pooled`` (nats),
        ``distinct_2``, the set's header, and the metric's conditions.
    """
    largest = max(max(row) for row in samples.tokens)
    metrics = {
        "entropy": Entropy(),
        "entropy_pooled": Entropy("pooled", vocab_size=largest + 1),
        "distinct_2": DistinctN(2),
    }
    for rows in rows_by_length(samples.tokens):
        for metric in metrics.values():
            metric.update(rows)
    perplexity.reset()
    for batch in _scored_batches(samples, perplexity):
        perplexity.update(batch)
        if advance is not None:
            advance(len(batch))
    return {
        **samples.header,
        "source": samples.source,
        "num_samples": len(samples.texts),
        "gen_ppl": _number(perplexity.compute()),
        **{name: _number(m.compute()) for name, m in metrics.items() if _has_value(m)},
        **{f"gen_ppl_{k}" if k in _OWN else k: v for k, v in perplexity.conditions().items()},
    }


# Conditions of the perplexity whose plain name could be taken for the sampler's.
_OWN = ("max_length", "batch_size", "sample_count", "token_count")


def _has_value(metric: Any) -> bool:
    """Whether any row had an n-gram: one-token samples have no pairs."""
    return not isinstance(metric, DistinctN) or bool(metric.gram_count > 0)


def _scored_batches(
    samples: SampleSet, perplexity: GenerativePerplexity
) -> Iterable[Tensor | list[str]]:
    size = perplexity.batch_size
    if perplexity.retokenize:
        for start in range(0, len(samples.texts), size):
            yield samples.texts[start : start + size]
        return
    for rows in rows_by_length(samples.tokens):
        yield from rows.split(size)


def rows_by_length(tokens: Sequence[Sequence[int]]) -> list[Tensor]:
    """Runs of equally long token lists as tensors ``[n, L]``, in order."""
    return [torch.tensor(list(run), dtype=torch.int64) for _, run in groupby(tokens, key=len)]


def summarize(results: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Mean and sample standard deviation over sets that differ in seed alone.

    Args:
        results: what ``measure`` returned for each set.

    Returns:
        One object for each group of two or more sets.
    """
    groups: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
    for result in results:
        if any(key in result for key in ("checkpoint", "steps")):
            key = tuple(json.dumps(result.get(name), default=str) for name in CONDITIONS)
            groups.setdefault(key, []).append(result)
    return [_summary(group) for group in groups.values() if len(group) > 1]


def _summary(group: list[Mapping[str, Any]]) -> dict[str, Any]:
    first = group[0]
    summary = {name: first[name] for name in CONDITIONS if name in first}
    summary["sets"] = len(group)
    summary["seeds"] = [result.get("seed") for result in group]
    summary["num_samples"] = sum(result["num_samples"] for result in group)
    for name in ("gen_ppl", "entropy", "entropy_pooled", "distinct_2", "nfe", "seconds"):
        values = [result.get(name) for result in group]
        numbers = [float(v) for v in values if isinstance(v, (int, float))]
        if len(numbers) == len(values):
            summary[f"{name}_mean"] = mean(numbers)
            summary[f"{name}_sd"] = stdev(numbers)
    for name in ("evaluator", "evaluator_revision", "evaluator_dtype", "eos", "retokenized"):
        summary[name] = first.get(name)
    return summary


def write_json(path: str | Path, value: Mapping[str, Any]) -> Path:
    """Write a JSON file, whole or not at all.

    Raises:
        UserError: if it cannot be written.
    """
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    return replace_file(path, [text, "\n"])


def _number(value: Tensor) -> float | None:
    """A float, or None where JSON has no number for it."""
    number = float(value)
    return number if math.isfinite(number) else None
