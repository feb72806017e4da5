"""What samples are worth under the oracle language, next to what its own samples would be.

No number stands alone. Cross-entropy rewards a generator that repeats the likeliest sentence, so it
is read with the two of diversity: the entropy of bigrams (few words) and the overlap of two samples
(few texts). The n-gram distance sees both kinds of error, but only near by; violations are far.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from idlm.bench.divergence import total_variation
from idlm.bench.oracle import KINDS, OracleLanguage
from idlm.errors import UserError

# A token that breaks a rule costs log(V / EPSILON), 13 nats for 42 words, and one that does not at
# most 0.0001 nats more than without smoothing.
EPSILON = 1e-4


@dataclass(frozen=True)
class OracleScores:
    """Numbers of one set of samples; entropies in nats.

    Attributes:
        cross_entropy: -log p of the smoothed source, per token, mean over samples.
        cross_entropy_se: its standard error.
        impossible: share of the samples whose probability is zero without smoothing.
        cross_entropy_possible: per token of the others, without smoothing; None if there are none.
        ngram_tv: total variation of pooled trigrams from the exact distribution.
        unigram_tv, bigram_tv: likewise.
        violations: tokens per sample that break a rule, mean over samples.
        violations_se: its standard error.
        violations_by_kind: the same for each kind of rule.
        bigram_entropy: of pooled bigrams; to be compared with the source's.
        overlap: probability that two different samples have the same token at a position, without
            bias; to be compared with the source's.
    """

    cross_entropy: float
    cross_entropy_se: float
    impossible: float
    cross_entropy_possible: float | None
    ngram_tv: float
    unigram_tv: float
    bigram_tv: float
    violations: float
    violations_se: float
    violations_by_kind: dict[str, float]
    bigram_entropy: float
    overlap: float


def truth(source: OracleLanguage, length: int) -> dict[str, float]:
    """What the source itself would score with endlessly many samples, in nats.

    Returns:
        ``entropy_rate`` (H of ``length`` tokens over their number), ``source_bigram_entropy`` and
        ``source_overlap``, all exact.
    """
    return {
        "entropy_rate": source.entropy(length) / length,
        "source_bigram_entropy": _entropy(source.ngrams(2, length)),
        "source_overlap": float(source.marginals(length).square().sum(1).mean()),
    }


def score(source: OracleLanguage, tokens: Tensor, *, epsilon: float = EPSILON) -> OracleScores:
    """Score samples of length 3 or more.

    Args:
        source: whose truth counts.
        tokens: int64 ``[N, L]``, N of 2 or more.
        epsilon: smoothing of the cross-entropy, see :meth:`OracleLanguage.log_prob`.

    Raises:
        UserError: for a single sample, samples that are too short, tokens that are not of the
            language, or epsilon outside (0, 1).
    """
    if not 0.0 < epsilon < 1.0:
        raise UserError(f"epsilon is {epsilon}; samples of probability 0 need one in (0, 1)")
    if len(tokens) < 2 or tokens.shape[1] < 3:
        raise UserError(
            f"samples have shape {tuple(tokens.shape)}; scores need 2 samples of 3 tokens or more"
        )
    count, length = tokens.shape
    nats = -source.log_prob(tokens, epsilon=epsilon) / length
    plain = -source.log_prob(tokens) / length
    possible = plain[plain.isfinite()]
    broken = source.violations(tokens).double()
    total = broken.sum(1)
    counts = [ngram_counts(tokens, n, source.vocab_size) for n in (1, 2, 3)]
    tvs = [
        # every n-gram of the language has its cell: none falls outside the table
        total_variation(torch.cat([c, c.new_zeros(1)]), source.ngrams(n, length).flatten())
        for n, c in enumerate(counts, start=1)
    ]
    return OracleScores(
        cross_entropy=float(nats.mean()),
        cross_entropy_se=float(nats.std()) / math.sqrt(count),
        impossible=1.0 - len(possible) / count,
        cross_entropy_possible=float(possible.mean()) if len(possible) else None,
        ngram_tv=tvs[2],
        unigram_tv=tvs[0],
        bigram_tv=tvs[1],
        violations=float(total.mean()),
        violations_se=float(total.std()) / math.sqrt(count),
        violations_by_kind=dict(zip(KINDS, broken.mean(0).tolist(), strict=True)),
        bigram_entropy=_entropy(counts[1] / counts[1].sum()),
        overlap=overlap(tokens, source.vocab_size),
    )


def ngram_counts(tokens: Tensor, n: int, vocab_size: int) -> Tensor:
    """How often each n-gram stands in the rows, int64 ``[V^n]``, first token slowest."""
    width = tokens.shape[1] - n + 1
    code = torch.zeros_like(tokens[:, :width])
    for offset in range(n):
        code = code * vocab_size + tokens[:, offset : offset + width]
    return torch.bincount(code.flatten(), minlength=vocab_size**n)


def overlap(tokens: Tensor, vocab_size: int) -> float:
    """Share of positions at which two different rows of ``[N, L]`` agree, over all pairs.

    An unbiased estimate of the mean over positions of sum_x p(x)^2, however few the samples; a
    generator that knows few texts exceeds it.
    """
    count, length = tokens.shape
    cells = tokens + torch.arange(length) * vocab_size
    n = torch.bincount(cells.flatten(), minlength=length * vocab_size).double()
    return float((n * (n - 1)).sum() / (count * (count - 1) * length))


def _entropy(probs: Tensor) -> float:
    return float(torch.special.entr(probs.double()).sum())
