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
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torchmetrics import Metric

from idlm.metrics.diversity import DistinctN
from idlm.metrics.perplexity import GenerativePerplexity
from idlm.metrics.registry import ALL_METRICS, DEFAULT_METRICS, TOKEN_METRICS, check_metrics
from idlm.metrics.sharing import kept_apart, update_shared
from idlm.samples import CONDITIONS, are_repetitions, no_repetitions, replace_file

if TYPE_CHECKING:
    from idlm.sampling.sharded import Processes


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
    perplexity: GenerativePerplexity | None,
    *,
    metrics: Sequence[str] = DEFAULT_METRICS,
    advance: Callable[[int], None] | None = None,
    processes: Processes | None = None,
) -> dict[str, Any]:
    """The numbers of one sample set with their conditions, ready for JSON.

    Entropy is always among them.

    Args:
        samples: the set.
        perplexity: reset here and used; its evaluator is loaded once for many sets. None where
            ``metrics`` has no "gen_ppl".
        metrics: of ``idlm.metrics.registry``; those against a reference are not made here.
        advance: told how many samples were just scored.
        processes: of a launch, which share the work; each has the same set, and gets the numbers
            that one process alone would.

    Returns:
        A number under each name (None for one that does not exist), with ``NAME_stderr``, its
        standard error over samples, where there is one; for "gen_ppl" also that of both
        end-of-text rules; the set's header, and the perplexity's conditions.

    Raises:
        UserError: if a metric is unknown.
        ValueError: if "gen_ppl" is wanted and ``perplexity`` is None.
    """
    names = check_metrics(metrics)
    if perplexity is None and "gen_ppl" in names:
        raise ValueError("gen_ppl is wanted but perplexity is None: give a GenerativePerplexity")
    result = {
        **samples.header,
        "source": samples.source,
        "num_samples": len(samples.texts),
    }
    judged: dict[str, Any] = {}
    if perplexity is not None and "gen_ppl" in names:
        if processes is not None:
            kept_apart(perplexity)
        batches = list(_scored_batches(samples, perplexity))
        update_shared(
            perplexity,
            len(batches),
            lambda number: (batches[number],),
            processes=processes,
            advance=advance,
        )
        result |= _perplexities(perplexity)
        judged = perplexity.conditions()
    return {
        **result,
        **_token_numbers(
            samples.tokens,
            [name for name in names if name in TOKEN_METRICS],
            every=kept_apart if processes is not None else lambda metric: metric,
        ),
        **{f"gen_ppl_{k}" if k in _OWN else k: v for k, v in judged.items()},
    }


def _perplexities(perplexity: GenerativePerplexity) -> dict[str, float | None]:
    """The one that was asked for with its standard error, and that of each end-of-text rule."""
    rules = perplexity.by_rule()
    found = {
        "gen_ppl": rules[perplexity.eos]["gen_ppl"],
        "gen_ppl_stderr": rules[perplexity.eos]["standard_error"],
        **{f"gen_ppl_{rule}": values["gen_ppl"] for rule, values in rules.items()},
    }
    return {name: _number(value) for name, value in found.items()}


def _token_numbers(
    tokens: Sequence[Sequence[int]], names: Sequence[str], *, every: Callable[[Metric], Metric]
) -> dict[str, float | None]:
    """Metrics of the model's own tokens, with standard errors; ``every`` changes each of them."""
    size = max(max(row) for row in tokens) + 1
    made: dict[str, Any] = {name: every(TOKEN_METRICS[name].build(size)) for name in names}
    for rows in rows_by_length(tokens):
        for metric in made.values():
            metric.update(rows)
    found: dict[str, float | None] = {}
    for name, metric in made.items():
        if _has_value(metric):
            found[name] = _number(metric.compute())
            error = _number(metric.standard_error()) if hasattr(metric, "standard_error") else None
            if error is not None:
                found[f"{name}_stderr"] = error
    return found


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
        One object for each group of two or more sets. A group in which a seed stands twice or is
        unknown has none: :func:`refused` names it.
    """
    return [_summary(group) for group in _alike(results) if are_repetitions(group)]


def refused(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """A sentence for each group of equal conditions that :func:`summarize` does not average.

    Args:
        results: what ``measure`` returned for each set.
    """
    groups = [group for group in _alike(results) if len(group) > 1]
    return [no_repetitions(group) for group in groups if not are_repetitions(group)]


def _alike(results: Sequence[Mapping[str, Any]]) -> list[list[Mapping[str, Any]]]:
    """Sets of equal conditions together; those of unknown origin are with nobody."""
    groups: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
    for result in results:
        if any(key in result for key in ("checkpoint", "steps")):
            key = tuple(json.dumps(result.get(name), default=str) for name in CONDITIONS)
            groups.setdefault(key, []).append(result)
    return list(groups.values())


_SUMMARISED = (*ALL_METRICS, "gen_ppl_published", "gen_ppl_strict", "nfe", "seconds")


def _summary(group: list[Mapping[str, Any]]) -> dict[str, Any]:
    first = group[0]
    summary = {name: first[name] for name in CONDITIONS if name in first}
    summary["sets"] = len(group)
    summary["seeds"] = [result.get("seed") for result in group]
    summary["num_samples"] = sum(result["num_samples"] for result in group)
    for name in _SUMMARISED:
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


def _number(value: Tensor | float) -> float | None:
    """A float, or None where JSON has no number for it."""
    number = float(value)
    return number if math.isfinite(number) else None
