"""Where held-out text goes in the picture of a frontier."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# how far beyond the models' range, as a share of it, held-out text may widen an axis
STRETCH = 0.35


def draw_held_out(axes: Axes, entropy: float, gen_ppl: float) -> None:
    """Held-out text; when it is far off it goes to the edge, with its numbers and an arrow.

    Real text is far from what small models write: at scale it would squeeze the curves, which
    are what is compared, into a corner.
    """
    low_y, high_y = axes.get_ylim()
    *limits_x, x, off_x = reach(*axes.get_xlim(), entropy)
    *limits_y, y, off_y = reach(math.log(low_y), math.log(high_y), math.log(gen_ppl))
    axes.set_xlim(*limits_x)
    axes.set_ylim(*map(math.exp, limits_y))
    far = bool(off_x or off_y)
    axes.plot(
        x,
        y,
        transform=axes.transAxes,
        marker="*",
        markersize=17,
        linestyle="",
        zorder=7,
        color="black",
        label=f"held-out text{' (beyond the edge)' * far}",
    )
    if not far:
        return
    axes.annotate(
        f"at {entropy:.2f} nats,\nGenPPL {gen_ppl:.3g}",
        (x, y),
        xycoords="axes fraction",
        xytext=(-14 if x > 0.5 else 14, 0),
        textcoords="offset points",
        va="center",
        fontsize=8.5,
        ha="right" if x > 0.5 else "left",
        path_effects=halo(),
        zorder=7,
    )
    axes.annotate(
        "",
        (x + 0.05 * off_x, y + 0.07 * off_y),
        (x, y),
        xycoords="axes fraction",
        textcoords="axes fraction",
        annotation_clip=False,
        zorder=6,
        arrowprops={"arrowstyle": "->", "color": "black", "shrinkA": 0},
    )


def reach(low: float, high: float, value: float) -> tuple[float, float, float, int]:
    """Widen an axis for a value: its new limits, the value's place in [0, 1], and where it is.

    A value too far off gets a place at the edge, with room so that it lies on no curve, and -1
    or 1 for the side it is really on; otherwise 0.
    """
    span = high - low
    if low - STRETCH * span <= value <= high + STRETCH * span:
        low, high = min(low, value - 0.05 * span), max(high, value + 0.05 * span)
        return low, high, (value - low) / (high - low), 0
    if value < low:
        return low - 0.14 * span, high, 0.06, -1
    return low, high + 0.14 * span, 0.94, 1


def halo() -> list[Any]:
    """A white rim that keeps text readable on lines."""
    from matplotlib.patheffects import withStroke

    return [withStroke(linewidth=2.5, foreground="white")]
