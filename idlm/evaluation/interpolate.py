"""Values of many curves at one place each, between their points and never beyond them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

# between two points at one place a slope is not defined
_LEAST = 1e-12


def straight(x: Array, y: Array, at: Array) -> Array:
    """Straight lines between neighbouring points.

    Args:
        x: places of each curve's points, in any order, ``[R, K]``.
        y: values there, ``[R, K]``.
        at: one place for each curve, ``[R]``.

    Returns:
        ``[R]``; nan outside a curve.
    """
    x, y = _in_order(x, y)
    low, left, right, inside = _between(x, at)
    width = np.maximum(right - left, _LEAST)
    weight = np.where(right > left, (at - left) / width, 0.5)
    rows = np.arange(len(x))
    value = (1 - weight) * y[rows, low] + weight * y[rows, np.minimum(low + 1, x.shape[1] - 1)]
    return np.where(inside, value, np.nan)


def smooth(x: Array, y: Array, at: Array) -> Array:
    """Cubic pieces without overshoot (Fritsch and Butland, SIAM J. Sci. Stat. Comput. 5, 1984).

    Straight lines lie above a curve that bends upwards, which flatters whoever is compared with
    them. Arguments and result as of :func:`straight`, which it is for two points.
    """
    if x.shape[1] < 3:
        return straight(x, y, at)
    x, y = _in_order(x, y)
    low, left, _, inside = _between(x, at)
    width = np.maximum(np.diff(x, axis=1), _LEAST)
    slope = np.diff(y, axis=1) / width
    tangent = _tangents(width, slope)
    rows = np.arange(len(x))
    h = width[rows, low]
    s = np.clip((at - left) / h, 0.0, 1.0)
    value = (
        (1 + 2 * s) * (1 - s) ** 2 * y[rows, low]
        + s * (1 - s) ** 2 * h * tangent[rows, low]
        + s**2 * (3 - 2 * s) * y[rows, low + 1]
        + s**2 * (s - 1) * h * tangent[rows, low + 1]
    )
    return np.where(inside, value, np.nan)


def _in_order(x: Array, y: Array) -> tuple[Array, Array]:
    order = np.argsort(x, axis=1, kind="stable")
    return np.take_along_axis(x, order, 1), np.take_along_axis(y, order, 1)


def _between(x: Array, at: Array) -> tuple[NDArray[np.int64], Array, Array, NDArray[np.bool_]]:
    """The point left of ``at``, its place and the next one's, and whether ``at`` is inside."""
    last = x.shape[1] - 1
    low = np.clip((x <= at[:, None]).sum(1) - 1, 0, max(last - 1, 0))
    rows = np.arange(len(x))
    inside = (x[:, 0] <= at) & (at <= x[:, -1])
    return low, x[rows, low], x[rows, np.minimum(low + 1, last)], inside


def _tangents(width: Array, slope: Array) -> Array:
    """Slopes at the points: weighted harmonic means within, one-sided at the ends, ``[R, K]``."""
    tangent = np.zeros((len(width), width.shape[1] + 1))
    before, after = slope[:, :-1], slope[:, 1:]
    one, other = 2 * width[:, 1:] + width[:, :-1], width[:, 1:] + 2 * width[:, :-1]
    same = before * after > 0
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = (one + other) / (one / before + other / after)
    tangent[:, 1:-1] = np.where(same, mean, 0.0)
    tangent[:, 0] = _end(width[:, 0], width[:, 1], slope[:, 0], slope[:, 1])
    tangent[:, -1] = _end(width[:, -1], width[:, -2], slope[:, -1], slope[:, -2])
    return tangent


def _end(near: Array, far: Array, slope: Array, next_slope: Array) -> Array:
    """A parabola's slope at the end, unless it would overshoot."""
    value = ((2 * near + far) * slope - near * next_slope) / (near + far)
    value = np.where(value * slope <= 0, 0.0, value)
    turns = (slope * next_slope < 0) & (np.abs(value) > 3 * np.abs(slope))
    return np.where(turns, 3 * slope, value)
