"""The metrics of a sample set by name: how each is made, titled and defined in a line."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

from torchmetrics import Metric

from idlm.errors import UserError
from idlm.metrics.diversity import DistinctN, Entropy
from idlm.metrics.repetition import LongestRepeat, Repetition
from idlm.metrics.self_bleu import SMOOTHING, SelfBLEU


@dataclass(frozen=True)
class NamedMetric:
    """What a table and a JSON file say of a metric.

    Attributes:
        title: of its column.
        digits: after the point.
        definition: one line, with units.
    """

    title: str
    digits: int
    definition: str


@dataclass(frozen=True)
class TokenMetric(NamedMetric):
    """One that needs nothing but token rows.

    Attributes:
        build: makes it for token ids below a number.
    """

    build: Callable[[int], Metric]


def _token_metrics() -> dict[str, TokenMetric]:
    found = {
        "entropy": TokenMetric(
            "entropy (nats)",
            4,
            "unigram entropy of each sequence in nats, mean over sequences",
            lambda size: Entropy(),
        ),
        "entropy_pooled": TokenMetric(
            "pooled entropy (nats)",
            4,
            "unigram entropy in nats of all sequences together",
            lambda size: Entropy("pooled", vocab_size=size),
        ),
        "longest_repeat": TokenMetric(
            "longest repeat (tokens)",
            1,
            "tokens in the longest passage that a sequence holds twice, mean over sequences",
            lambda size: LongestRepeat(),
        ),
    }
    for n in range(1, 5):
        found[f"distinct_{n}"] = TokenMetric(
            f"distinct-{n}",
            4,
            f"distinct {n}-grams as a share of all, over all sequences together",
            partial(_of_order, DistinctN, n),
        )
        found[f"seq_rep_{n}"] = TokenMetric(
            f"seq-rep-{n}",
            4,
            f"share of a sequence's {n}-grams that repeat an earlier one of it, mean over "
            "sequences",
            partial(_of_order, Repetition, n),
        )
    for n in range(2, 6):
        found[f"self_bleu_{n}"] = TokenMetric(
            f"self-BLEU-{n}",
            4,
            f"BLEU with equal weights for 1- to {n}-grams of each sequence against all others, "
            f"{SMOOTHING} for no match, mean over sequences; grows with their number",
            partial(_of_order, SelfBLEU, n),
        )
    return found


def _of_order(kind: Callable[[int], Metric], n: int, size: int) -> Metric:
    return kind(n)


# On the model's own tokens, before decoding.
TOKEN_METRICS = _token_metrics()
# By an evaluator; the last two also against a reference.
EVALUATOR_METRICS = {
    "gen_ppl": NamedMetric("GenPPL", 2, "exp of the mean nats of all scored tokens"),
    "mauve": NamedMetric(
        "MAUVE",
        4,
        "area under the divergence curve of samples and reference, 0 to 1, mean ± sd over seeds of "
        "k-means; beside the reference, it against other rows of its own",
    ),
    "gradient_moment": NamedMetric(
        "gradient moment",
        4,
        "squared distance of the evaluator's mean gradients on samples and reference (token-mean "
        "nats), ± standard error over pairs of half batches; beside the reference, it against "
        "other rows of its own",
    ),
}
AGAINST_REFERENCE = ("mauve", "gradient_moment")
ALL_METRICS = {**TOKEN_METRICS, **EVALUATOR_METRICS}
DEFAULT_METRICS = ("gen_ppl", "entropy", "entropy_pooled", "distinct_2")


def check_metrics(names: Iterable[str]) -> tuple[str, ...]:
    """Names of metrics, each once, and entropy with them: no perplexity without it.

    Raises:
        UserError: naming the nearest one if a name is unknown.
    """
    wanted = dict.fromkeys(names)
    for name in wanted:
        if name not in ALL_METRICS:
            close = difflib.get_close_matches(name.lower().replace("-", "_"), ALL_METRICS, n=1)
            hint = f"did you mean {close[0]}? " if close else ""
            raise UserError(
                f"metric {name!r} is unknown: {hint}use some of {', '.join(sorted(ALL_METRICS))}"
            )
    if "entropy" not in wanted:
        wanted = {**{n: None for n in wanted if n == "gen_ppl"}, "entropy": None, **wanted}
    return tuple(wanted)
