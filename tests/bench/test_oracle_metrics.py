"""Scores of the oracle language: exact texts meet the truth, and a collapsed generator is seen."""

from __future__ import annotations

import math

import pytest
import torch

from idlm.bench.oracle import OracleLanguage
from idlm.bench.oracle_metrics import EPSILON, ngram_counts, overlap, score, truth
from idlm.errors import UserError

LENGTH = 32


@pytest.fixture(scope="module")
def source() -> OracleLanguage:
    return OracleLanguage()


def test_exact_samples_score_what_the_truth_says(source: OracleLanguage) -> None:
    exact, found = truth(source, LENGTH), score(source, source.sample(2000, LENGTH, seed=1))
    error = found.cross_entropy_se
    assert error < 0.01
    # smoothing adds at most -log(1 - epsilon) to what is possible
    assert abs(found.cross_entropy - exact["entropy_rate"]) < 4 * error + 2 * EPSILON
    assert found.cross_entropy_possible == pytest.approx(found.cross_entropy, abs=2 * EPSILON)
    assert (found.impossible, found.violations, found.violations_se) == (0.0, 0.0, 0.0)
    assert found.unigram_tv < found.bigram_tv < found.ngram_tv < 0.15
    assert found.bigram_entropy == pytest.approx(exact["source_bigram_entropy"], abs=0.02)
    assert found.overlap == pytest.approx(exact["source_overlap"], rel=0.01)


def test_the_ngram_distance_of_exact_samples_falls_with_their_number(
    source: OracleLanguage,
) -> None:
    few, many = (score(source, source.sample(n, LENGTH, seed=2)) for n in (100, 2500))
    # as one over the root of the number: a fifth, for tables that the few already cover
    assert many.bigram_tv == pytest.approx(few.bigram_tv / 5, rel=0.3)


def test_repeating_one_likely_text_is_rewarded_by_cross_entropy_and_seen_by_diversity(
    source: OracleLanguage,
) -> None:
    exact = truth(source, LENGTH)
    rows = source.sample(500, LENGTH, seed=3)
    likeliest = rows[source.log_prob(rows).argmax()]
    found = score(source, likeliest.expand(500, -1))
    assert found.cross_entropy < exact["entropy_rate"] - 0.3
    assert found.violations == 0
    assert found.overlap == 1.0
    assert found.bigram_entropy < exact["source_bigram_entropy"] - 2
    assert found.ngram_tv > 0.5


def test_few_texts_with_the_right_ngrams_are_seen_by_overlap_alone(source: OracleLanguage) -> None:
    # 100 texts, each 20 times: what a generator does whose latent is ignored
    few = source.sample(100, LENGTH, seed=4)
    fresh, copies = score(source, few), score(source, few.repeat(20, 1))
    assert copies.bigram_entropy == pytest.approx(fresh.bigram_entropy, abs=1e-9)
    assert copies.ngram_tv == pytest.approx(fresh.ngram_tv, abs=1e-9)
    assert copies.overlap > 1.15 * truth(source, LENGTH)["source_overlap"]
    assert fresh.overlap < 1.05 * truth(source, LENGTH)["source_overlap"]


def test_an_impossible_text_stays_finite_and_is_told(source: OracleLanguage) -> None:
    rows = source.sample(4, LENGTH, seed=5)
    bad = rows.clone()
    # no bracket closes at the end of a text whose sentence has none open
    assert source.words[int(rows[0, -1])] not in ")]"
    bad[0, -1] = source.words.index(")")
    assert source.violations(bad).sum(1).tolist() == [1, 0, 0, 0]
    clean, found = score(source, rows), score(source, bad)
    assert found.impossible == 0.25
    assert found.violations == 0.25
    assert found.violations_by_kind["order"] == 0.25
    last = float(source.log_prob(rows[:1, :-1]) - source.log_prob(rows[:1]))
    expected = (math.log(source.vocab_size / EPSILON) - last) / (4 * LENGTH)
    assert found.cross_entropy - clean.cross_entropy == pytest.approx(expected, abs=1e-5)
    others = -source.log_prob(rows[1:]) / LENGTH
    assert found.cross_entropy_possible == pytest.approx(float(others.mean()), abs=1e-12)


def test_all_impossible_leaves_no_cross_entropy_of_the_possible(source: OracleLanguage) -> None:
    rows = torch.full((3, 8), source.words.index(")"))
    found = score(source, rows)
    assert found.impossible == 1.0
    assert found.cross_entropy_possible is None
    assert found.cross_entropy == pytest.approx(math.log(42 / EPSILON), abs=1e-9)


def test_ngrams_are_counted_within_rows_and_in_order() -> None:
    rows = torch.tensor([[0, 1, 2], [1, 2, 0]])
    assert ngram_counts(rows, 1, 3).tolist() == [2, 2, 2]
    table = ngram_counts(rows, 2, 3).reshape(3, 3)
    assert table.nonzero().tolist() == [[0, 1], [1, 2], [2, 0]]
    assert table[1, 2] == 2
    assert ngram_counts(rows, 3, 3).reshape(3, 3, 3).nonzero().tolist() == [[0, 1, 2], [1, 2, 0]]


def test_overlap_is_unbiased_over_all_pairs() -> None:
    rows = torch.tensor([[0, 1], [0, 2], [1, 2], [0, 2]])
    agree = [(rows[i] == rows[j]).double().mean() for i in range(4) for j in range(4) if i != j]
    assert overlap(rows, 3) == pytest.approx(float(sum(agree) / 12), abs=1e-15)


def test_a_larger_epsilon_makes_violations_cheaper(source: OracleLanguage) -> None:
    rows = torch.randint(42, (5, 8), generator=torch.Generator().manual_seed(0))
    cheap, dear = (score(source, rows, epsilon=e).cross_entropy for e in (1e-2, 1e-4))
    broken = float(source.violations(rows).double().sum(1).mean()) / 8
    assert dear - cheap == pytest.approx(broken * math.log(100), rel=0.01)


def test_too_few_or_too_short_samples_are_refused(source: OracleLanguage) -> None:
    with pytest.raises(UserError, match=r"shape \(1, 9\); scores need 2 samples of 3 tokens"):
        score(source, source.sample(1, 9, seed=0))
    with pytest.raises(UserError, match=r"shape \(4, 2\)"):
        score(source, source.sample(4, 2, seed=0))
    with pytest.raises(UserError, match=r"epsilon is 0.0; samples of probability 0 need one"):
        score(source, source.sample(4, 4, seed=0), epsilon=0.0)
    with pytest.raises(UserError, match="a mask is none of them"):
        score(source, torch.full((4, 4), 42))
