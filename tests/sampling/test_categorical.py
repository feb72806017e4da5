"""Categorical draws: the exact distribution, the edges, the nucleus, and what fp32 would lose."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from idlm.sampling.categorical import _BRANCHES, draw, nucleus, temper

BELOW_ONE = 1.0 - 2.0**-53  # the largest uniform there is


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def double(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_draws_follow_the_distribution() -> None:
    p = double(0.5, 0.25, 0.125, 0.1, 0.025)
    n = 40_000
    noise = torch.rand(n, dtype=torch.float64)
    counts = torch.bincount(draw(p.log().expand(n, 5), noise), minlength=5)
    chi_square = float(((counts - n * p) ** 2 / (n * p)).sum())
    assert chi_square < 18.5  # 4 degrees of freedom, level 1e-3


def test_a_draw_is_the_inverse_of_the_cumulative_distribution() -> None:
    log_p = double(0.25, 0.5, 0.25).log()
    noise = double(0.0, 0.2, 0.26, 0.7, 0.76, BELOW_ONE)
    assert draw(log_p.expand(6, 3), noise).tolist() == [0, 0, 1, 1, 2, 2]


def test_each_row_has_its_own_distribution_and_its_own_noise() -> None:
    log_p = torch.full((2, 3, 4), -1e6, dtype=torch.float64)
    expected = torch.tensor([[0, 3, 1], [2, 2, 0]])
    log_p.scatter_(-1, expected.unsqueeze(-1), 0.0)
    tokens = draw(log_p, torch.rand(2, 3, dtype=torch.float64))
    assert tokens.dtype == torch.int64
    assert torch.equal(tokens, expected)


def test_weights_need_not_be_normalised_nor_small() -> None:
    n = 101
    noise = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    log_p = torch.log_softmax(torch.randn(n, 7, dtype=torch.float64), -1)
    expected = draw(log_p, noise)
    for shift in (-5000.0, 5000.0):  # the exponential alone would be 0 or infinite
        assert torch.equal(draw(log_p + shift, noise), expected)


@pytest.mark.parametrize("nothing", [-math.inf, -1e6])
def test_a_token_of_zero_weight_is_never_drawn_even_at_the_edges(nothing: float) -> None:
    log_p = double(nothing, 0.0, nothing, 0.0, nothing, nothing)
    noise = double(0.0, 0.25, 0.5, 0.75, BELOW_ONE)
    assert draw(log_p.expand(5, 6), noise).tolist() == [1, 1, 3, 3, 3]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("size", [1, 2, 3, 7, 41, 42, 50, 1001, 1729])
def test_no_noise_runs_off_the_end(size: int, dtype: torch.dtype) -> None:
    largest = torch.tensor(BELOW_ONE, dtype=torch.float64).to(dtype)  # in fp32 it rounds to 1
    noise = torch.cat([largest.expand(1), torch.zeros(1, dtype=dtype), torch.rand(500).to(dtype)])
    log_p = torch.cat([torch.zeros(size), torch.full((5,), -math.inf)]).double()
    tokens = draw(log_p.expand(len(noise), -1), noise)
    assert 0 <= int(tokens.min()) <= int(tokens.max()) < size


@pytest.mark.parametrize("power", [2, 3, 4])
@pytest.mark.parametrize("branches", [_BRANCHES - 1, _BRANCHES, _BRANCHES + 1])
@pytest.mark.parametrize("more", [-1, 0, 1])
def test_the_tree_holds_every_token_where_it_is_full_or_one_too_small(
    power: int, branches: int, more: int
) -> None:
    size = branches**power + more
    for token in (0, branches, size - 1):
        log_p = torch.full((size,), -math.inf, dtype=torch.float64)
        log_p[token] = 0.0
        assert draw(log_p.expand(3, -1), double(0.0, 0.5, BELOW_ONE)).tolist() == [token] * 3


@pytest.mark.parametrize("depth", [2, 3])
def test_draws_down_a_tree_follow_the_distribution(depth: int) -> None:
    """Every token of a vocabulary that needs ``depth`` levels, all of them at once."""
    size = _BRANCHES**depth - 5
    p = torch.softmax(torch.randn(size, dtype=torch.float64, generator=seeded(1)), -1)
    n = 40_000 if depth == 3 else 20_000
    noise = torch.rand(n, dtype=torch.float64, generator=seeded(2))
    tokens = torch.cat([draw(p.log().expand(len(part), size), part) for part in noise.split(2000)])
    counts = torch.bincount(tokens, minlength=size)
    expected = n * p
    statistic = float(((counts - expected) ** 2 / expected).sum())
    # size - 1 degrees of freedom: the normal limit, level 1e-3
    assert statistic < size - 1 + 3.1 * math.sqrt(2 * (size - 1)) * 1.1


def test_levels_of_the_tree_share_no_randomness() -> None:
    """Pairs of a token's digits are independent where the distribution is flat."""
    size = _BRANCHES**2
    noise = (torch.arange(30_000, dtype=torch.float64) + 0.5) / 30_000  # evenly spread, not random
    tokens = draw(torch.zeros(1, size, dtype=torch.float64).expand(30_000, size), noise)
    counts = torch.bincount(tokens, minlength=size)
    statistic = float(((counts - 30_000 / size) ** 2 / (30_000 / size)).sum())
    assert statistic < 143 + 3.1 * math.sqrt(2 * 143) * 1.1


def test_the_last_digits_of_the_logits_hardly_ever_change_a_draw() -> None:
    """A row's logits differ in the last digit with the size of the batch it was computed in."""
    n, size = 20_000, 2049
    log_p = torch.log_softmax(torch.randn(n // 10, size, generator=seeded(3)) * 2.5, -1)
    moved = log_p + 1e-5 * torch.randn(log_p.shape, generator=seeded(4))
    changed = inverted = 0
    for part in torch.rand(10, n // 10, dtype=torch.float64, generator=seeded(5)):
        changed += int((draw(log_p, part) != draw(moved, part)).sum())
        below = [(x.double().exp().cumsum(-1) < part.unsqueeze(-1)).sum(-1) for x in (log_p, moved)]
        inverted += int((below[0] != below[1]).sum())
    assert inverted > 15  # one inversion over the whole vocabulary, as a yardstick
    assert changed <= 3


def test_a_token_of_probability_1e_12_has_its_interval() -> None:
    log_p = double(1.0 - 2e-12, 1e-12, 1e-12).log()
    noise = double(1.0 - 2.1e-12, 1.0 - 1.5e-12, 1.0 - 0.5e-12)
    assert draw(log_p.expand(3, 3), noise).tolist() == [0, 1, 2]


def test_rare_tokens_of_a_large_vocabulary_keep_their_share_where_fp32_loses_it() -> None:
    """Half of the mass on one class, the rest flat, all of it scaled by one step of 1,024."""
    size, scale = 50_000, 1 / 1024
    weights = torch.full((size + 1,), 0.5 * scale / (size - 1), dtype=torch.float64)
    # The mask takes the rest, as in the published ancestral step.
    weights[0] = 1.0 - scale
    weights[1] = 0.5 * scale
    share = 0.5 * scale  # of the flat part together, 4.9e-4

    # The top of the tree inverts the noise itself, and the mask's branch is its first: a fine grid
    # over [1 - scale, 1) measures shares of 1e-4 without a million draws.
    grid = 1000
    noise = 1.0 - (torch.arange(grid, dtype=torch.float64) + 0.5) / grid * scale
    tokens = torch.cat([draw(weights.log().expand(25, -1), part) for part in noise.split(25)])
    flat = tokens > 1
    assert float(flat.double().mean()) * scale == pytest.approx(share, rel=0.1)
    assert tokens[flat].unique().numel() > 0.97 * int(flat.sum())  # spread over the flat part

    # The exponential race argmax q/E in fp32. Equal weights: the largest of their uniforms runs.
    n = 400_000
    uniforms = torch.rand(n, 3, dtype=torch.float64)
    uniforms[:, 0] = uniforms[:, 0] ** (1 / (size - 1))
    for dtype, bits in ((torch.float32, 24), (torch.float64, 53)):
        coarse = ((uniforms * 2.0**bits).floor() / 2.0**bits).to(dtype)
        race = 1e-10 - torch.log(coarse + 1e-10)
        q = double(float(weights[-1]), 0.5 * scale, 1.0 - scale).to(dtype)
        won = float(((q / race).argmax(-1) == 0).double().mean())
        if dtype == torch.float32:
            assert won < 0.2 * share  # visibly low
        else:
            assert won == pytest.approx(share, rel=0.3)  # 195 expected, four standard deviations


def test_the_nucleus_is_the_smallest_set_that_reaches_its_mass() -> None:
    p = double(0.1, 0.4, 0.2, 0.3)
    for top_p, kept in (
        (1.0, [0.1, 0.4, 0.2, 0.3]),
        (0.95, [0.1, 0.4, 0.2, 0.3]),
        (0.85, [0.0, 4 / 9, 2 / 9, 3 / 9]),
        (0.701, [0.0, 4 / 9, 2 / 9, 3 / 9]),
        (0.699, [0.0, 4 / 7, 0.0, 3 / 7]),
        (0.35, [0.0, 1.0, 0.0, 0.0]),
        (1e-9, [0.0, 1.0, 0.0, 0.0]),
    ):
        answer = nucleus(p.log().expand(2, 4), top_p).exp()
        torch.testing.assert_close(answer, double(*kept).expand(2, 4), atol=1e-12, rtol=0)


def test_any_temperature_above_zero_leaves_a_distribution() -> None:
    log_p = double(0.2, 0.5, 0.3, 0.0).log()
    for temperature in (5e-324, 1e-310, 1e-12):
        assert temper(log_p, temperature).exp().tolist() == [0.0, 1.0, 0.0, 0.0]
    flat = temper(log_p, 1e308).exp()
    torch.testing.assert_close(flat, double(1 / 3, 1 / 3, 1 / 3, 0.0), atol=1e-12, rtol=0)


def test_among_equals_the_nucleus_keeps_the_smaller_ids() -> None:
    for size in (4, 16, 4096):  # sorting algorithms change with the size
        kept = nucleus(torch.full((3, size), 1 / size).double().log(), 0.5).isfinite()
        assert kept.tolist() == [[True] * (size // 2) + [False] * (size // 2)] * 3


def test_each_row_has_its_own_nucleus() -> None:
    p = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.3, 0.6]], dtype=torch.float64)
    answer = nucleus(p.log(), 0.65).exp()
    expected = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1 / 3, 2 / 3]], dtype=torch.float64)
    torch.testing.assert_close(answer, expected, atol=1e-12, rtol=0)


def test_nothing_outside_the_nucleus_is_drawn() -> None:
    log_p = nucleus(double(0.1, 0.4, 0.2, 0.3).log(), 0.65).expand(1000, 4)
    noise = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    assert draw(log_p, noise).unique().tolist() == [1, 3]
