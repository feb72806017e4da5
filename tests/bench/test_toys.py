"""The toys' tables are what they say, and a sequence finds its cell."""

from __future__ import annotations

import math

import pytest
import torch

from idlm.bench import toys
from idlm.bench.divergence import floor_tv, total_variation
from idlm.errors import UserError

PLANAR = [name for name in toys.NAMES if name != "equal"]


@pytest.mark.parametrize("name", toys.NAMES)
def test_a_table_is_a_distribution_over_cells_in_order(name: str) -> None:
    toy = toys.load(name)
    assert float(toy.probs.sum()) == pytest.approx(1.0, abs=1e-12)
    assert (toy.probs >= 0).all()
    assert toy.probs.dtype == torch.float64
    assert (toy.cell_of(toy.cells) == torch.arange(len(toy.cells))).all()


def test_the_checkerboard_is_half_of_its_squares() -> None:
    table = toys.load("checkerboard").probs.reshape(32, 32)
    assert set(table.unique().tolist()) == {0.0, 1 / 512}
    corners = (table[0, 0], table[7, 8], table[8, 8], table[31, 31])
    assert [float(p) > 0 for p in corners] == [True, False, True, True]
    # the product of its marginals, which one step of a factorised model draws from, is uniform
    assert 0.5 * float((table - 1 / 1024).abs().sum()) == pytest.approx(0.5, abs=1e-12)


def test_equal_tokens_are_equal() -> None:
    toy = toys.load("equal")
    assert toy.length == 8
    assert (toy.cells == toy.cells[:, :1]).all()


@pytest.mark.parametrize("name", PLANAR)
def test_coarse_tables_are_sums_of_fine_ones(name: str) -> None:
    fine, coarse = (toys.load(name, bins=b).probs.reshape(b, b) for b in (64, 16))
    summed = fine.reshape(16, 4, 16, 4).sum((1, 3))
    torch.testing.assert_close(summed, coarse, rtol=0, atol=1e-12)  # fp64


@pytest.mark.parametrize("name", PLANAR)
def test_the_grid_holds_nearly_all_of_a_density(name: str) -> None:
    table = toys.load(name).probs.reshape(32, 32)
    rim = table[[0, -1]].sum() + table[:, [0, -1]].sum()
    assert float(rim) < (0.13 if name == "checkerboard" else 0.02)


def test_a_mixture_is_gaussian_mass_in_squares() -> None:
    mass = toys._mixture(torch.zeros(1, 2, dtype=torch.float64), 1.0, 2)
    quarter = (0.5 * math.erf(toys.EXTENT / math.sqrt(2))) ** 2
    torch.testing.assert_close(mass, torch.full((2, 2), quarter, dtype=torch.float64))


def test_the_second_spiral_is_the_first_turned_by_half_a_turn() -> None:
    table = toys.load("spirals").probs.reshape(32, 32)
    torch.testing.assert_close(table, table.flip(0, 1), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", toys.NAMES)
def test_samples_of_a_table_are_at_its_floor(name: str) -> None:
    toy = toys.load(name)
    rows = toy.sample(50_000, torch.Generator().manual_seed(0))
    found = total_variation(toy.counts(rows), toy.probs)
    # the sum over many cells hardly varies; equal tokens have 16 cells
    assert found == pytest.approx(floor_tv(toy.probs, 50_000), rel=0.6 if name == "equal" else 0.1)


def test_what_is_no_cell_is_counted_apart() -> None:
    toy = toys.load("equal")
    rows = torch.zeros(4, 8, dtype=torch.int64)
    rows[1, 3] = 1  # not equal
    rows[2] = toy.tokens  # the mask, equal to itself
    rows[3] = -1
    assert toy.cell_of(rows).tolist() == [0, 16, 16, 16]
    board = toys.load("checkerboard")
    # 32 in the second place must not pass for (1, 0), which has the same code
    assert board.cell_of(torch.tensor([[0, 32], [1, 0]])).tolist() == [1024, 32]
    assert board.counts(torch.tensor([[0, 32], [1, 0]]))[[1024, 32]].tolist() == [1, 1]


@pytest.mark.parametrize("name", PLANAR)
def test_points_lie_in_their_squares_and_have_the_stated_deviation(name: str) -> None:
    toy = toys.load(name)
    generator = torch.Generator().manual_seed(1)
    rows = toy.sample(40_000, generator)
    points = toy.scatter(rows, generator)
    assert points.dtype == torch.float32
    back = toy.bins_of(points)
    assert (back == rows).all(1).float().mean() > 0.9999  # fp32 may round onto an edge
    spread = float(points.double().var(0).mean().sqrt())
    assert spread == pytest.approx(toy.std, rel=0.02)


def test_points_outside_the_grid_are_in_no_square() -> None:
    toy = toys.load("circles")
    edge = math.sqrt(3.0)
    points = torch.tensor([[0.0, 0.0], [edge + 0.01, 0.0], [0.0, -edge - 0.01], [math.nan, 0.0]])
    assert toy.cell_of(toy.bins_of(points)).tolist() == [16 * 32 + 16, 1024, 1024, 1024]


def test_an_unknown_name_is_told_a_near_one() -> None:
    with pytest.raises(UserError, match="did you mean 'checkerboard'"):
        toys.load("checkboard")
    with pytest.raises(UserError, match="choose one of them"):
        toys.load("xyz")


def test_bins_that_do_not_fit_the_checkerboard_are_refused() -> None:
    with pytest.raises(UserError, match="bins is 30"):
        toys.load("checkerboard", bins=30)
    assert toys.load("circles", bins=30).probs.shape == (900,)
    with pytest.raises(UserError, match="at least 4"):
        toys.load("circles", bins=2)
