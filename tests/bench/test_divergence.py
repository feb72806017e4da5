"""Divergences from a table: by hand, by simulation, and at their bounds."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch

from idlm.bench.divergence import floor_js, floor_tv, jensen_shannon, total_variation


def test_both_divergences_of_a_worked_example() -> None:
    probs = torch.tensor([0.5, 0.5, 0.0], dtype=torch.float64)
    counts = torch.tensor([1, 2, 1, 0])  # frequencies 1/4, 1/2, 1/4
    assert total_variation(counts, probs) == pytest.approx(0.25, abs=1e-15)
    # m = 3/8, 1/2, 1/8
    kl_p = 0.5 * math.log(0.5 / 0.375)
    kl_q = 0.25 * math.log(0.25 / 0.375) + 0.25 * math.log(0.25 / 0.125)
    assert jensen_shannon(counts, probs) == pytest.approx(0.5 * (kl_p + kl_q), abs=1e-15)


def test_samples_outside_every_cell_count_as_wrong() -> None:
    probs = torch.tensor([1.0], dtype=torch.float64)
    counts = torch.tensor([3, 1])
    assert total_variation(counts, probs) == pytest.approx(0.25, abs=1e-15)
    assert jensen_shannon(counts, probs) > 0


def test_what_shares_no_cell_is_as_far_as_can_be() -> None:
    probs = torch.tensor([0.5, 0.5], dtype=torch.float64)
    assert total_variation(torch.tensor([0, 0, 7]), probs) == 1.0
    # nats: in bits it would be 1
    assert jensen_shannon(torch.tensor([0, 0, 7]), probs) == pytest.approx(math.log(2), abs=1e-15)


def test_a_sample_that_is_the_table_is_at_zero() -> None:
    probs = torch.tensor([0.75, 0.25], dtype=torch.float64)
    counts = torch.tensor([3, 1, 0])
    assert total_variation(counts, probs) == 0.0
    assert jensen_shannon(counts, probs) == pytest.approx(0.0, abs=1e-15)


@pytest.mark.parametrize(
    ("floor", "divergence"), [(floor_tv, total_variation), (floor_js, jensen_shannon)]
)
def test_the_floor_is_the_mean_over_all_samples(floor: Any, divergence: Any) -> None:
    probs = torch.tensor([0.5, 0.3, 0.2, 0.0], dtype=torch.float64)
    n, expected = 5, 0.0
    for sequence in itertools.product(range(3), repeat=n):
        chance = math.prod(float(probs[i]) for i in sequence)
        counts = torch.bincount(torch.tensor(sequence), minlength=5)
        expected += chance * divergence(counts, probs)
    assert floor(probs, n) == pytest.approx(expected, abs=1e-14)


def test_the_floor_of_a_certain_cell_is_zero() -> None:
    certain = torch.tensor([0.0, 1.0], dtype=torch.float64)
    assert floor_tv(certain, 10) == floor_js(certain, 10) == 0.0
    # n p a whole number, where the mean deviation's formula changes its term
    half = torch.tensor([0.5, 0.5], dtype=torch.float64)
    assert floor_tv(half, 2) == pytest.approx(0.25, abs=1e-14)


@pytest.mark.parametrize("samples", [300, 3000, 100_000])
def test_the_js_floor_leaves_out_no_count_that_matters(samples: int) -> None:
    # n p from 0.003, where a count is nearly always 0, to where the window cuts both tails
    probs = torch.tensor([1e-5, 1e-3, 0.05, 0.94899], dtype=torch.float64)
    k = torch.arange(samples + 1, dtype=torch.float64)
    expected = 0.0
    for p in probs:
        chance = torch.exp(torch.distributions.Binomial(samples, p).log_prob(k))
        q = k / samples
        middle = 0.5 * (p + q)
        terms = 0.5 * (torch.xlogy(p, p) + torch.xlogy(q, q)) - torch.xlogy(middle, middle)
        expected += float(chance @ terms)
    # fp64: lgamma of 1e5 keeps ten digits
    assert floor_js(probs, samples) == pytest.approx(expected, rel=1e-8)


def test_the_js_floor_of_a_large_sample_is_that_of_chi_squared() -> None:
    probs = torch.full((512,), 1 / 512, dtype=torch.float64)
    assert floor_js(probs, 1_000_000) == pytest.approx(511 / 8e6, rel=1e-3)


def test_a_large_sample_has_a_floor_of_few_digits_lost() -> None:
    probs = torch.full((512,), 1 / 512, dtype=torch.float64)
    n = 200_000
    # the normal limit: half the sum of sqrt(2 p (1 - p) / (pi n))
    limit = 0.5 * 512 * math.sqrt(2 * (1 / 512) * (511 / 512) / (math.pi * n))
    assert floor_tv(probs, n) == pytest.approx(limit, rel=1e-3)
