"""The oracle language against a grammar read by hand and every sequence there is, in float64."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from idlm.bench.oracle import KINDS, OracleLanguage
from idlm.errors import UserError


@pytest.fixture(scope="module")
def tiny() -> OracleLanguage:
    """V = 13: two names, one root of each class."""
    return OracleLanguage(names=2, nouns=1, verbs=1, adjectives=1, adverbs=1, seed=3)


@pytest.fixture(scope="module")
def language() -> OracleLanguage:
    return OracleLanguage()


def every_row(source: OracleLanguage, length: int) -> Tensor:
    """All V^L sequences."""
    return torch.cartesian_prod(*[torch.arange(source.vocab_size)] * length).reshape(-1, length)


def possible_rows(source: OracleLanguage, length: int) -> Tensor:
    """All sequences of positive probability, grown token by token."""
    rows = torch.zeros(1, 0, dtype=torch.int64)
    for _ in range(length):
        rows = torch.cat(
            [torch.cat([rows, torch.full((len(rows), 1), x)], 1) for x in range(source.vocab_size)]
        )
        rows = rows[source.log_prob(rows).isfinite()]
    return rows


def by_hand(words: list[str]) -> float:
    """Probability of words of the tiny language with equal weights, read with plain variables."""
    classes = {"anna": "name", "ben": "name", "dog": "noun", "dogs": "noun", "run": "verb"}
    classes |= {"runs": "verb", "old": "adjective", "slowly": "adverb", "(": "open", "[": "open"}
    classes |= {")": "close", "]": "close", ".": "stop"}
    inside = {
        "open": {"adjective": 0.2, "noun": 0.4, "adverb": 0.4},
        "adjective": {"adjective": 0.2, "noun": 0.8},
        "noun": {"adverb": 0.3, "name": 0.2, "close": 0.5},
        "adverb": {"adverb": 0.2, "noun": 0.3, "close": 0.5},
        "name": {"adverb": 0.4, "close": 0.6},
    }
    before_verb = {
        "stop": {"adjective": 0.4, "noun": 0.6},
        "adjective": {"adjective": 0.2, "noun": 0.8},
        "noun": {"adverb": 0.25, "open": 0.3, "verb": 0.45},
        "adverb": {"adverb": 0.25, "open": 0.15, "verb": 0.6},
        "close": {"adverb": 0.2, "verb": 0.8},
    }
    behind_verb = {
        "verb": {"adverb": 0.3, "noun": 0.15, "name": 0.3, "stop": 0.25},
        "noun": {"adverb": 0.3, "name": 0.3, "stop": 0.4},
        "adverb": {"adverb": 0.2, "name": 0.3, "stop": 0.5},
        "name": {"adverb": 0.3, "stop": 0.7},
    }
    begin = {"adjective": 0.15, "noun": 0.25, "verb": 0.15, "adverb": 0.2}
    begin |= {"name": 0.1, "stop": 0.15}
    subject = opened = topic = None
    finite, probability, last = False, 1.0, "begin"
    for word in words:
        kind = classes[word]
        if last == "begin":
            options = begin
            # the rest of a sentence whose verb was read before the text began
            finite = kind in ("verb", "adverb", "name")
        elif opened:
            options = inside[last]
        else:
            options = (behind_verb if finite else before_verb)[last]
        alike = [other for other, k in classes.items() if k == kind]
        if kind == "name":
            alike = [topic] if topic else alike
            topic = topic or word
        elif kind == "verb":
            alike = alike if subject is None else [{"dog": "runs", "dogs": "run"}[subject]]
            finite = True
        elif kind == "noun" and not opened and not finite:
            subject = word
        elif kind == "open":
            opened = word
        elif kind == "close":
            alike, opened = [{"(": ")", "[": "]"}.get(opened or "", "")], None
        elif kind == "stop":
            subject, finite = None, False
        if word not in alike or kind not in options:
            return 0.0
        probability *= options[kind] / len(alike)
        last = kind
    return probability


def test_likelihood_equals_the_grammar_read_by_hand() -> None:
    source = OracleLanguage(names=2, nouns=1, verbs=1, adjectives=1, adverbs=1, sharpness=0)
    # all short ones; longer ones, with several sentences; and those with one word replaced
    longer = source.sample(200, 24, seed=5)
    place = torch.randint(24, (200,), generator=torch.Generator().manual_seed(0))
    broken = longer.clone()
    broken[torch.arange(200), place] = (broken[torch.arange(200), place] + 1) % source.vocab_size
    reached: set[str] = set()
    for batch in (every_row(source, 4), longer, broken):
        log_p = source.log_prob(batch)
        for value, text in zip(log_p.exp().tolist(), source.text(batch), strict=True):
            reached |= set(text.split())
            assert value == pytest.approx(by_hand(text.split()), rel=1e-10, abs=0.0)  # fp64
    assert reached == set(source.words)


@pytest.mark.parametrize("epsilon", [0.0, 0.01])
def test_probabilities_of_all_short_sequences_sum_to_one(
    tiny: OracleLanguage, epsilon: float
) -> None:
    log_p = tiny.log_prob(every_row(tiny, 4), epsilon=epsilon)
    assert bool(log_p.isfinite().all()) == (epsilon > 0)
    assert float(log_p.exp().sum()) == pytest.approx(1.0, abs=1e-10)  # fp64, 28,561 terms


def test_entropy_equals_the_sum_over_all_sequences(tiny: OracleLanguage) -> None:
    rows = possible_rows(tiny, 7)
    log_p = tiny.log_prob(rows)
    assert float(log_p.exp().sum()) == pytest.approx(1.0, abs=1e-10)
    assert any(text.count("anna") == 2 for text in tiny.text(rows))
    assert tiny.entropy(7) == pytest.approx(float(-(log_p.exp() * log_p).sum()), abs=1e-10)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_ngram_tables_equal_the_sum_over_all_sequences(tiny: OracleLanguage, n: int) -> None:
    length = 6
    rows = possible_rows(tiny, length)
    p = tiny.log_prob(rows).exp()
    expected = torch.zeros([tiny.vocab_size] * n, dtype=torch.float64)
    for start in range(length - n + 1):
        where = tuple(rows[:, start + i] for i in range(n))
        expected.index_put_(where, p / (length - n + 1), accumulate=True)
    torch.testing.assert_close(tiny.ngrams(n, length), expected, atol=1e-12, rtol=0)


def test_position_marginals_equal_the_sum_over_all_sequences(tiny: OracleLanguage) -> None:
    rows = possible_rows(tiny, 6)
    p = tiny.log_prob(rows).exp()
    one_hot = torch.nn.functional.one_hot(rows, tiny.vocab_size).double()
    expected = (p[:, None, None] * one_hot).sum(0)
    torch.testing.assert_close(tiny.marginals(6), expected, atol=1e-12, rtol=0)


def test_exact_samples_break_no_rule_and_cost_the_entropy(language: OracleLanguage) -> None:
    rows = language.sample(2000, 64, seed=1)
    assert not language.violations(rows).any()
    nats = -language.log_prob(rows)
    error = float(nats.std()) / 2000**0.5
    assert abs(float(nats.mean()) - language.entropy(64)) < 4 * error
    assert error < 0.005 * 64  # else the line above would say little


def test_samples_follow_the_exact_distribution_of_sequences(tiny: OracleLanguage) -> None:
    rows = possible_rows(tiny, 4)
    p = tiny.log_prob(rows).exp()
    drawn = tiny.sample(20_000, 4, seed=2)
    counts = (drawn.unsqueeze(1) == rows).all(-1).sum(0).double()
    assert float(counts.sum()) == 20_000
    chi2 = float(((counts - 20_000 * p).square() / (20_000 * p)).sum())
    assert chi2 < len(p) + 4 * (2 * len(p)) ** 0.5


def test_a_sample_depends_on_seed_and_number_alone(language: OracleLanguage) -> None:
    rows = language.sample(6, 20, seed=4)
    assert torch.equal(language.sample(2, 20, seed=4, first_index=3), rows[3:5])
    assert not torch.equal(language.sample(6, 20, seed=5), rows)


def test_a_sequence_has_a_violation_exactly_if_it_is_impossible(tiny: OracleLanguage) -> None:
    rows = every_row(tiny, 4)
    possible = tiny.log_prob(rows).isfinite()
    assert torch.equal(tiny.violations(rows).sum(1) == 0, possible)
    assert 0 < int(possible.sum()) < len(rows)


@pytest.mark.parametrize(
    ("text", "order", "agreement", "bracket", "name"),
    [
        ("old dog [ birds often ] runs again emma . farmers run dog emma", 0, 0, 0, 0),
        ("slowly . old dog ( birds often ) run emma", 0, 1, 0, 0),
        ("birds often runs . birds often ( dog ) runs", 0, 2, 0, 0),
        # a text that begins behind its subject takes verbs of either number
        ("runs emma . birds sing", 0, 0, 0, 0),
        ("dog ( again birds emma ] runs .", 0, 0, 1, 0),
        # the first name stands, however often another one follows
        ("dog runs ben . birds [ king anna ] run emma . birds run ben", 0, 0, 0, 2),
        ("dog dog runs anna .", 1, 0, 0, 0),
        ("again ) sings . dog runs", 1, 0, 0, 0),
        # an unclosed bracket counts once, where the sentence goes on as if there were none
        ("dog ( often runs", 1, 0, 0, 0),
        ("dog ( often . dog runs anna", 1, 0, 0, 0),
        ("ben . dog ( king anna ] run .", 0, 1, 1, 1),
    ],
)
def test_broken_rules_are_counted_by_kind(
    language: OracleLanguage, text: str, order: int, agreement: int, bracket: int, name: int
) -> None:
    tokens = torch.tensor([[language.words.index(word) for word in text.split()]])
    counts = language.violations(tokens)[0].tolist()
    assert dict(zip(KINDS, counts, strict=True)) == {
        "order": order,
        "agreement": agreement,
        "bracket": bracket,
        "name": name,
    }


def test_each_corruption_of_a_name_that_repeats_adds_one_violation(
    language: OracleLanguage,
) -> None:
    rows = language.sample(200, 64, seed=6)
    is_name = rows < 6
    later = is_name & (is_name.cumsum(1) > 1)
    counts = language.violations(torch.where(later, (rows + 1) % 6, rows))
    assert torch.equal(counts[:, KINDS.index("name")], later.sum(1))
    assert torch.equal(counts.sum(1), later.sum(1))
    assert int(later.sum()) > 200


def test_a_broken_rule_costs_what_smoothing_leaves_it(language: OracleLanguage) -> None:
    good = language.sample(1, 40, seed=3)
    bad = good.clone()
    bad[0, -1] = language.words.index(")")  # no bracket is open
    assert language.violations(bad).tolist() == [[1, 0, 0, 0]]
    epsilon, before = 0.01, slice(None, -1)
    cost = language.log_prob(bad[:, before], epsilon=epsilon) - language.log_prob(
        bad, epsilon=epsilon
    )
    assert float(cost) == pytest.approx(math.log(42 / epsilon), rel=1e-10)


def test_distances_of_the_far_rules_go_beyond_a_trigram(language: OracleLanguage) -> None:
    rows = language.sample(500, 64, seed=7)
    far = 0
    for text in language.text(rows):
        words = text.split()
        names = [i for i, word in enumerate(words) if word in language.words[:6]]
        far += any(b - a > 16 for a, b in itertools.pairwise(names))
    assert far > 250  # of 500 texts


def test_tokens_that_are_none_of_the_language_are_refused(language: OracleLanguage) -> None:
    rows = torch.full((2, 5), language.vocab_size)
    with pytest.raises(UserError, match=r"reach from 42 to 42, but .* 0 to 41; a mask is none"):
        language.violations(rows)
    with pytest.raises(UserError, match=r"shape \(5,\) and dtype torch.int64"):
        language.log_prob(rows[0])
    with pytest.raises(UserError, match=r"shape \(2, 5\) and dtype torch.float32"):
        language.text(rows.float())


def test_settings_outside_the_language_are_refused(language: OracleLanguage) -> None:
    with pytest.raises(UserError, match="names is 9; the oracle language has 1 to 8 of them"):
        OracleLanguage(names=9)
    with pytest.raises(UserError, match=r"sharpness is -0.5; .* 0 or more"):
        OracleLanguage(sharpness=-0.5)
    with pytest.raises(UserError, match=r"epsilon is 1\.0"):
        language.log_prob(language.sample(1, 4, seed=0), epsilon=1.0)
    with pytest.raises(UserError, match="n is 4; n-gram tables are made for n of 1, 2 and 3"):
        language.ngrams(4, 64)
    with pytest.raises(UserError, match="rows of length 2 hold no 3-gram"):
        language.ngrams(3, 2)
    with pytest.raises(UserError, match="length is 0"):
        language.sample(1, 0, seed=0)
