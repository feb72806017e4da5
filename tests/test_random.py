"""The stateless generator: the published answers, and numbers that depend on their names only."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product

import pytest
import torch
from torch import Tensor

from idlm import random
from idlm.random import Stream, dense_normal, normal, permutation, philox, uniform

# Philox4x32-10 in Random123's kat_vectors: counter, key, four words.
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    (
        (0xFFFFFFFF,) * 4,
        (0xFFFFFFFF,) * 2,
        (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
    ),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]
KEYS = {"seed": 3, "step": 5, "stream": Stream.CORRUPT}


def kolmogorov_smirnov(values: Tensor) -> float:
    """sqrt(n) times the largest distance to the uniform distribution function."""
    ordered = values.flatten().sort().values
    n = ordered.numel()
    grid = torch.arange(n + 1, dtype=torch.float64) / n
    distance = torch.maximum((ordered - grid[:-1]).abs().max(), (ordered - grid[1:]).abs().max())
    return float(distance) * math.sqrt(n)


def correlation(a: Tensor, b: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1])


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN)
def test_philox_gives_the_published_answers(
    counter: tuple[int, ...], key: tuple[int, int], words: tuple[int, ...]
) -> None:
    # twice the same counter: the answer must not depend on where in the tensor it sits
    out = philox([torch.tensor([c, c]) for c in counter], key)
    assert [w.tolist() for w in out] == [[w, w] for w in words]


def test_uniforms_have_53_bits_and_stay_below_one() -> None:
    u = uniform(20_000, sample=torch.arange(2), **KEYS)
    assert u.dtype == torch.float64
    assert float(u.min()) >= 0.0
    assert float(u.max()) < 1.0
    scaled = u * 2.0**53
    assert torch.equal(scaled, scaled.floor())
    # each of them is fair, also those that a 32-bit generator leaves empty
    bits = (scaled.to(torch.int64).unsqueeze(-1) >> torch.arange(53)) & 1
    share = bits.double().mean((0, 1))
    assert float((share - 0.5).abs().max()) < 4.5 * 0.5 / math.sqrt(u.numel())  # of 53 deviations


def test_uniforms_are_uniform() -> None:
    u = uniform(400, sample=torch.arange(500), **KEYS)
    n = u.numel()
    assert kolmogorov_smirnov(u) < 1.95  # level 1e-3
    assert abs(float(u.mean()) - 0.5) < 4 * math.sqrt(1 / 12 / n)
    assert abs(float(u.var()) - 1 / 12) < 4 * math.sqrt(1 / 180 / n)


@pytest.mark.parametrize("function", [normal, dense_normal])
def test_normals_are_normal(function: Callable[..., Tensor]) -> None:
    x = function(400, sample=torch.arange(500), **KEYS)
    assert x.dtype == torch.float32
    x = x.double()
    n = x.numel()
    # four standard deviations of each moment's estimate under the normal law
    assert abs(float(x.mean())) < 4 * math.sqrt(1 / n)
    assert abs(float(x.pow(2).mean()) - 1) < 4 * math.sqrt(2 / n)
    assert abs(float(x.pow(3).mean())) < 4 * math.sqrt(15 / n)
    assert abs(float(x.pow(4).mean()) - 3) < 4 * math.sqrt(96 / n)
    assert kolmogorov_smirnov(0.5 * (1 + torch.erf(x / math.sqrt(2)))) < 1.95  # level 1e-3


def test_the_four_normals_of_one_counter_are_independent() -> None:
    x = dense_normal(400, sample=torch.arange(500), **KEYS).double().reshape(-1, 4)
    bound = 4.5 / math.sqrt(len(x))  # of twelve correlations, in deviations
    for i, j in product(range(4), range(4)):
        if i < j:
            assert abs(correlation(x[:, i], x[:, j])) < bound
            assert abs(correlation(x[:, i] ** 2, x[:, j] ** 2)) < bound


@pytest.mark.parametrize("items", [1, 2, 3, 4, 5, 9])
def test_a_block_of_any_size_is_the_beginning_of_a_longer_one(items: int) -> None:
    whole = dense_normal(12, sample=torch.arange(3), **KEYS)
    assert torch.equal(dense_normal(items, sample=torch.arange(3), **KEYS), whole[:, :items])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("columns", [4, 7, 257, 50_257])
def test_a_slice_is_made_alone_and_is_that_of_the_whole_to_the_bit(
    columns: int, dtype: torch.dtype
) -> None:
    """Wherever it begins among the four numbers of a counter, and in pieces of many counters."""
    names = {**KEYS, "sample": torch.arange(3), "dtype": dtype}
    whole = dense_normal(7, columns, **names)
    for first, rows in product(range(7), (1, 2, 6)):
        rows = min(rows, 7 - first)
        part = dense_normal(rows, columns, **names, first=first)
        assert torch.equal(part, whole[:, first : first + rows])
    assert columns < 50_257 or whole.numel() > 4 * random._AT_ONCE["cpu"]


def test_numbers_do_not_depend_on_how_many_are_made_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = {**KEYS, "sample": torch.arange(3), "dtype": torch.float64}
    whole = dense_normal(5, 333, **names)
    for at_once in (1, 10, 64, 1000):
        monkeypatch.setitem(random._AT_ONCE, "cpu", at_once)
        assert torch.equal(dense_normal(5, 333, **names), whole)


@pytest.mark.parametrize("function", [uniform, normal, dense_normal])
def test_a_samples_numbers_do_not_depend_on_its_batch(function: Callable[..., Tensor]) -> None:
    whole = function(3, 2, sample=torch.arange(10), **KEYS)
    assert whole.shape == (10, 3, 2)
    parts = [
        function(3, 2, sample=torch.arange(a, b), **KEYS) for a, b in ((0, 1), (1, 7), (7, 10))
    ]
    assert torch.equal(whole, torch.cat(parts))
    shuffled = torch.tensor([4, 9, 0])
    assert torch.equal(function(3, 2, sample=shuffled, **KEYS), whole[shuffled])


def test_one_number_per_sample_when_no_shape_is_given() -> None:
    u = uniform(sample=torch.arange(6), **KEYS)
    assert u.shape == (6,)
    assert u.unique().numel() == 6


@pytest.mark.parametrize(
    "other",
    [{"seed": 4}, {"seed": 3 + 2**32}, {"step": 6}, {"step": 5 + 2**32}, {"stream": Stream.TOKEN}],
)
def test_another_name_gives_unrelated_numbers(other: dict[str, int]) -> None:
    sample = torch.arange(200)
    a = uniform(500, sample=sample, **KEYS)
    b = uniform(500, sample=sample, **{**KEYS, **other})
    assert abs(correlation(a, b)) < 4 / math.sqrt(a.numel())  # four standard deviations
    assert not bool((a == b).any())


def test_neighbouring_samples_positions_and_the_two_functions_are_unrelated() -> None:
    sample = torch.arange(400)
    u = uniform(500, sample=sample, **KEYS)
    bound = 4 / math.sqrt(u.numel() - 500)
    assert abs(correlation(u[1:], u[:-1])) < bound
    assert abs(correlation(u[:, 1:], u[:, :-1])) < bound


def test_names_beyond_32_bits_never_collide() -> None:
    # a high bit of the sample, of the step and of the stream share one word of the counter
    samples = [0, 1, 2**32, 2**32 + 1, 2**33, 2**40, 2**40 + 1, 2**43, 2**44 - 1]
    steps = [0, 1, 2**32, 2**33, 2**43]
    rows = [
        uniform(2, sample=torch.tensor(samples), seed=0, step=step, stream=stream)
        for step, stream in product(steps, Stream)
    ]
    table = torch.cat(rows)
    assert table.unique(dim=0).shape[0] == len(samples) * len(steps) * len(Stream)


def test_every_stream_has_its_own_number() -> None:
    # an alias in an IntEnum is silent, and would share randomness between two uses
    assert len(Stream) == len(Stream.__members__)
    assert all(0 <= stream < 256 for stream in Stream)


def test_a_permutation_holds_every_number_once() -> None:
    order = permutation(1000, seed=1, step=2)
    assert torch.equal(order.sort().values, torch.arange(1000))
    assert not torch.equal(order, torch.arange(1000))
    assert torch.equal(order, permutation(1000, seed=1, step=2))
    assert not torch.equal(order, permutation(1000, seed=1, step=3))
    assert not torch.equal(order, permutation(1000, seed=2, step=2))


def test_all_permutations_are_equally_likely() -> None:
    counts: dict[tuple[int, ...], int] = {}
    for step in range(600):
        order = tuple(permutation(3, seed=0, step=step).tolist())
        counts[order] = counts.get(order, 0) + 1
    assert len(counts) == 6
    chi_square = sum((count - 100) ** 2 / 100 for count in counts.values())
    assert chi_square < 20.5  # 5 degrees of freedom, level 1e-3
