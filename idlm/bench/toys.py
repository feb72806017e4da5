"""Toy data whose distribution is a table, so that a sample can be judged without an estimate.

Five densities of the plane are integrated over the squares of a grid: a point is a sequence of
L = 2 tokens, the numbers of its column and row. The table of those integrals *is* the data, not an
approximation of it. A sixth set has L = 8 tokens that are all equal.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from idlm.errors import UserError

# Half the side of the square that the grid covers; the densities are scaled to fill it.
EXTENT = 4.0
BINS = 32
_EQUAL_LENGTH, _EQUAL_TOKENS = 8, 16


@dataclass(frozen=True)
class Toy:
    """A distribution over short sequences.

    Attributes:
        name: how the bench calls it.
        cells: the sequences that can occur, int64 ``[C, L]``, in the order of their codes. For the
            planar sets all ``bins * bins`` squares, whatever their probability.
        probs: probability of each, float64 ``[C]``, summing to 1.
        tokens: how many tokens there are, the mask not counted.
    """

    name: str
    cells: Tensor
    probs: Tensor
    tokens: int

    @property
    def length(self) -> int:
        """L."""
        return self.cells.shape[1]

    @property
    def planar(self) -> bool:
        """Whether a sequence is a square of the plane."""
        return self.length == 2

    def cell_of(self, rows: Tensor) -> Tensor:
        """Number of each row's cell, int64 ``[N]``; C for a row that is no cell.

        Args:
            rows: sequences, int64 ``[N, L]``; a token outside the vocabulary, such as a mask that
                was left over, makes the row no cell.
        """
        valid = ((rows >= 0) & (rows < self.tokens)).all(1)
        base = self.tokens ** torch.arange(self.length - 1, -1, -1)
        codes, found = (self.cells * base).sum(1), (rows * base).sum(1)
        place = torch.searchsorted(codes, found).clamp(max=len(codes) - 1)
        return torch.where(valid & (codes[place] == found), place, len(codes))

    def counts(self, rows: Tensor) -> Tensor:
        """How many rows fall into each cell, int64 ``[C + 1]``; the last counts the others."""
        return torch.bincount(self.cell_of(rows), minlength=len(self.cells) + 1)

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """Independent sequences, int64 ``[count, L]``."""
        chosen = torch.multinomial(self.probs, count, replacement=True, generator=generator)
        return self.cells[chosen]

    def scatter(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        """Points of the plane, fp32 ``[N, 2]``: uniform inside the squares of ``rows`` ``[N, 2]``.

        The grid has the side of a uniform density of variance 1; :meth:`bins_of` is the way back.
        """
        jitter = torch.rand(rows.shape, generator=generator, dtype=torch.float64)
        return ((2.0 * (rows.double() + jitter) / self.tokens - 1.0) * SCALE).float()

    @property
    def std(self) -> float:
        """Standard deviation of a coordinate of :meth:`scatter`, both axes together."""
        points = ((2.0 * self.cells.double() + 1.0) / self.tokens - 1.0) * SCALE
        mean = self.probs @ points
        inside = (2.0 * SCALE / self.tokens) ** 2 / 12.0
        return float((self.probs @ (points - mean) ** 2 + inside).mean().sqrt())

    def bins_of(self, points: Tensor) -> Tensor:
        """The squares that points ``[N, 2]`` lie in, int64 ``[N, 2]``; -1 outside the grid."""
        unit = (points.double() / SCALE + 1.0) / 2.0
        inside = (unit >= 0.0) & (unit < 1.0)
        return torch.where(inside, (unit * self.tokens).long(), -1)


# Half the side of the grid for a continuous model: a uniform square has a variance of 1 per axis.
SCALE = math.sqrt(3.0)


def load(name: str, *, bins: int = BINS) -> Toy:
    """Build a toy set by name.

    Args:
        name: one of :data:`NAMES`.
        bins: squares per axis of the planar sets; a multiple of 4 for the checkerboard.

    Raises:
        UserError: for an unknown name, or a number of bins that does not fit.
    """
    if name not in NAMES:
        close = difflib.get_close_matches(name, NAMES, n=1)
        hint = f"did you mean {close[0]!r}?" if close else "choose one of them"
        raise UserError(f"there is no toy data set {name!r} (there are {', '.join(NAMES)}); {hint}")
    if name == "equal":
        tokens = torch.arange(_EQUAL_TOKENS)
        probs = torch.full((_EQUAL_TOKENS,), 1.0 / _EQUAL_TOKENS, dtype=torch.float64)
        cells = tokens.unsqueeze(1).expand(-1, _EQUAL_LENGTH).contiguous()
        return Toy(name, cells, probs, _EQUAL_TOKENS)
    if bins < 4 or (name == "checkerboard" and bins % 4):
        raise UserError(
            f"bins is {bins} for {name!r}; it must be at least 4, and for the checkerboard a "
            "multiple of 4, so that no bin lies in two of its squares"
        )
    table = _PLANAR[name](bins)
    axis = torch.arange(bins)
    return Toy(name, torch.cartesian_prod(axis, axis), (table / table.sum()).reshape(-1), bins)


def _checkerboard(bins: int) -> Tensor:
    """4 x 4 squares, every other one uniform; each axis alone is uniform."""
    square = torch.arange(bins) * 4 // bins
    return ((square.unsqueeze(1) + square) % 2 == 0).double()


def _spirals(bins: int) -> Tensor:
    """Two arms of one and a half turns, the second the first turned by half a turn."""
    # equal steps of the square root give a long arm no less weight per length than a short one
    angle = 3.0 * math.pi * torch.sqrt(_grid(4000))
    arm = torch.stack([-torch.cos(angle) * angle, torch.sin(angle) * angle], 1) / (3.0 * math.pi)
    return _mixture(torch.cat([arm, -arm]) * 3.5, 0.13, bins)


def _swissroll(bins: int) -> Tensor:
    """The usual roll, angles from 1.5 to 4.5 pi, seen from the end."""
    angle = 1.5 * math.pi * (1.0 + 2.0 * _grid(6000))
    roll = torch.stack([angle * torch.cos(angle), angle * torch.sin(angle)], 1)
    return _mixture(roll * (3.5 / (4.5 * math.pi)), 0.13, bins)


def _circles(bins: int) -> Tensor:
    """Two circles about the origin, the inner of half the radius, of equal weight."""
    angle = 2.0 * math.pi * _grid(2000)
    ring = torch.stack([torch.cos(angle), torch.sin(angle)], 1) * 3.2
    return _mixture(torch.cat([ring, 0.5 * ring]), 0.2, bins)


def _pinwheel(bins: int) -> Tensor:
    """Five arms: a thin Gaussian each, turned further the farther out it is."""
    quantiles = math.sqrt(2.0) * torch.erfinv(2.0 * _grid(240) - 1.0)
    radius = 1.0 + 0.3 * quantiles
    centres = []
    for arm in range(5):
        angle = 2.0 * math.pi * arm / 5 + 0.25 * torch.exp(radius)
        centres.append(torch.stack([radius * torch.cos(angle), radius * torch.sin(angle)], 1))
    return _mixture(torch.cat(centres) * 2.0, 0.17, bins)


_PLANAR: dict[str, Callable[[int], Tensor]] = {
    "checkerboard": _checkerboard,
    "spirals": _spirals,
    "swissroll": _swissroll,
    "circles": _circles,
    "pinwheel": _pinwheel,
}
NAMES = (*_PLANAR, "equal")


def _grid(count: int) -> Tensor:
    """Midpoints of ``count`` equal parts of [0, 1], float64."""
    return (torch.arange(count, dtype=torch.float64) + 0.5) / count


def _mixture(centres: Tensor, width: float, bins: int) -> Tensor:
    """Mass of a mixture of round Gaussians in each square of the grid, ``[bins, bins]``.

    Exact up to float64: a round Gaussian's mass in a square is a product of two differences of
    its distribution function. What lies outside the grid is left out.

    Args:
        centres: ``[N, 2]``, all of equal weight.
        width: standard deviation.
        bins: squares per axis.
    """
    edges = torch.linspace(-EXTENT, EXTENT, bins + 1, dtype=torch.float64)
    below = 0.5 * (1.0 + torch.erf((edges - centres.unsqueeze(-1)) / (width * math.sqrt(2.0))))
    mass = below.diff(dim=-1)
    return mass[:, 0].T @ mass[:, 1]
