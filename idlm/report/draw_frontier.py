"""Pictures of a frontier: perplexity against entropy, and both against what they cost."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal

from idlm.report import escape
from idlm.report.findings import Frontier, Point, Published
from idlm.report.pictures import COLOURS, INK, MARKERS, MUTED, OTHERS, PAPER, Picture, draw

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D

_GEN_PPL = "GenPPL (log scale)"
_ENTROPY = "entropy (nats)"
_REAL = "held-out text"


def frontier(name: str, found: Frontier, published: Sequence[Published] = ()) -> Picture:
    """GenPPL against entropy: sweeps of the temperature as lines, held-out text as a star.

    Args:
        name: of the picture.
        found: what one evaluator judged.
        published: numbers from papers, drawn in grey and behind ours.
    """
    looks = _looks(found)

    def paint(axes: Sequence[Axes]) -> list[Line2D]:
        from idlm.evaluation.held_out import draw_held_out

        (panel,) = axes
        panel.margins(x=0.12, y=0.08)
        others = _paint_published(panel, published)
        ours = [_paint_model(panel, label, found.points, looks[label]) for label in looks]
        panel.set_yscale("log")
        panel.set_xlabel(f"{_ENTROPY} of a sample's tokens")
        if found.reference is not None:
            draw_held_out(panel, *found.reference)
            ours.append(_proxy(_REAL, INK, "*", size=12))
        _log_axis(panel)
        return [*ours, *others]

    what = ", ".join(looks)
    title, caption = (
        "GenPPL against entropy",
        (
            "At equal entropy, lower is better. Where there is room, steps stand beside the "
            "points, temperatures other than 1 after T; lines join what differs in temperature "
            "alone; bars are one standard deviation over seeds."
        ),
    )
    if published:
        title = "The same beside published numbers, measured under other conditions"
        caption = (
            "Grey marks are from papers: other data, evaluators, lengths and sample counts, some "
            "with float32 draws. They show where the field stands; no grey mark may be compared "
            "with a coloured one."
        )
    return draw(
        name,
        title,
        f"Scatter plot of generative perplexity (log scale) against entropy in nats for {what}"
        f"{' and published methods under other conditions' if published else ''}; every number is "
        "in the table below.",
        paint,
        height=3.9 if published else 3.6,
        caption=caption,
    )


def against_steps(name: str, found: Frontier) -> Picture:
    """GenPPL and entropy against steps."""
    return _against(
        name,
        found,
        "Quality against steps",
        "sampler steps",
        lambda point: float(point.steps) or None,
    )


def against_calls(name: str, found: Frontier) -> Picture | None:
    """GenPPL and entropy against tokens per network call, if those were recorded."""
    if not any(point.tokens_per_call for point in found.points):
        return None
    return _against(
        name,
        found,
        "Tokens per call",
        "tokens per network call",
        lambda point: point.tokens_per_call,
    )


def _against(
    name: str, found: Frontier, title: str, axis: str, where: Callable[[Point], float | None]
) -> Picture:
    looks = _looks(found)

    def paint(axes: Sequence[Axes]) -> list[Line2D]:
        handles, places = [], set()
        for label, (colour, marker) in looks.items():
            chosen = _plain(p for p in found.points if p.label == label and where(p))
            chosen.sort(key=lambda p: where(p) or 0.0)
            x: list[Any] = [where(point) for point in chosen]
            places |= set(x)
            style: dict[str, Any] = {"color": colour, "marker": marker, "markersize": 5.5}
            for panel, key in zip(axes, ("gen_ppl", "entropy"), strict=True):
                values = [getattr(point, key) for point in chosen]
                spread = [getattr(point, f"{key}_sd") or 0.0 for point in chosen]
                panel.errorbar(x, values, yerr=spread, linewidth=1.5, capsize=2, **style)
            if chosen:
                handles.append(_proxy(label, colour, marker, line="-"))
        if found.reference is not None:
            for panel, value in zip(axes, reversed(found.reference), strict=True):
                panel.axhline(value, color=INK, linestyle="--", linewidth=1)
            handles.append(_proxy(_REAL, INK, "", line="--"))
        top, bottom = axes
        top.set_yscale("log")
        _log_axis(top)
        bottom.set_ylabel(_ENTROPY)
        bottom.set_xscale("log", base=2)
        bottom.set_xticks(_apart(places), [f"{place:.4g}" for place in _apart(places)])
        bottom.minorticks_off()
        bottom.set_xlabel(axis)
        return handles

    return draw(
        name,
        title,
        f"Two line plots against {axis}: generative perplexity (log scale), and below it entropy "
        f"in nats, for {', '.join(looks)}; every number is in the table below.",
        paint,
        height=4.2,
        panels=(1.6, 1.0),
        caption="At temperature 1 without nucleus, where it was measured. A perplexity that falls "
        "while entropy falls is no gain: read both panels.",
    )


def _looks(found: Frontier) -> dict[str, tuple[str, str]]:
    """Colour and marker of each model, the teacher's first."""
    labels = list(dict.fromkeys(point.label for point in found.points))
    labels.sort(key=lambda label: label not in found.teachers)
    return {
        label: (COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)])
        for number, label in enumerate(labels)
    }


def _plain(points: Iterable[Point]) -> list[Point]:
    """Those at temperature 1 without nucleus; of a model that has none, its first setting."""
    points = list(points)
    plain = [point for point in points if point.plain]
    if plain or not points:
        return plain
    setting = (points[0].temperature, points[0].top_p)
    return [point for point in points if (point.temperature, point.top_p) == setting]


def _paint_model(panel: Axes, label: str, points: Sequence[Point], look: tuple[str, str]) -> Line2D:
    colour, marker = look
    groups: dict[tuple[int, float], list[Point]] = {}
    for point in points:
        if point.label == label:
            groups.setdefault((point.steps, point.top_p), []).append(point)
    swept = False
    for group in groups.values():
        group.sort(key=lambda point: point.temperature)
        swept = swept or len(group) > 1
        panel.errorbar(
            [point.entropy for point in group],
            [point.gen_ppl for point in group],
            xerr=[point.entropy_sd or 0.0 for point in group],
            yerr=[point.gen_ppl_sd or 0.0 for point in group],
            color=colour,
            marker=marker,
            markersize=5.5,
            linewidth=1.4,
            capsize=2,
            zorder=3,
        )
        named = next((point for point in group if point.temperature == 1.0), group[-1])
        for point in group:
            _tag(panel, point, colour, steps=point is named)
    return _proxy(label, colour, marker, line="-" if swept else "")


def _tag(panel: Axes, point: Point, colour: str, *, steps: bool) -> None:
    from idlm.evaluation.held_out import halo

    text = str(point.steps) if steps else ""
    if point.temperature != 1.0:
        text += f"{', ' * steps}T={point.temperature:g}"
    panel.annotate(
        text,
        (point.entropy, point.gen_ppl),
        xytext=(6, 3) if steps else (-5, 4),
        textcoords="offset points",
        ha="left" if steps else "right",
        fontsize=9 if steps else 8,
        color=colour if steps else MUTED,
        fontweight="bold" if steps else "normal",
        path_effects=halo(),
        zorder=6,
    )


def _paint_published(panel: Axes, published: Sequence[Published]) -> list[Line2D]:
    """Grey marks, a shape for each method; those without entropy have no place here."""
    methods: dict[str, list[tuple[float, float]]] = {}
    for one in published:
        if one.drawn and one.gen_ppl is not None and one.entropy is not None:
            methods.setdefault(one.label, []).append((one.entropy, one.gen_ppl))
    handles = [_proxy("published elsewhere:", OTHERS, "")] if methods else []
    for number, (label, places) in enumerate(methods.items()):
        marker = MARKERS[number % len(MARKERS)]
        # a second dozen of methods has the shapes of the first, filled
        fill = PAPER if number < len(MARKERS) else OTHERS
        look: dict[str, Any] = {"color": OTHERS, "marker": marker, "markerfacecolor": fill}
        panel.plot(*zip(*places, strict=True), linestyle="", markersize=5, zorder=2, **look)
        handle = _proxy(label, OTHERS, marker, size=5)
        handle.set_markerfacecolor(fill)
        handles.append(handle)
    return handles


def _proxy(
    label: str, colour: str, marker: str, *, line: Literal["", "-", "--"] = "", size: float = 6
) -> Line2D:
    from matplotlib.lines import Line2D

    return Line2D(
        [], [], color=colour, marker=marker, linestyle=line, markersize=size, label=_named(label)
    )


def _named(label: str) -> str:
    return escape.picture_label(label)


def _log_axis(panel: Axes) -> None:
    """Plain numbers on a logarithmic axis, as many as fit."""
    from matplotlib.ticker import FixedLocator, NullLocator

    low, high = panel.get_ylim()
    for digits in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 5, 7), tuple(range(10, 100, 5))):
        first, last = math.floor(math.log10(low)) - 1, math.ceil(math.log10(high))
        ticks = [digit * 10.0**power for power in range(first, last + 1) for digit in digits]
        ticks = [tick for tick in ticks if low <= tick <= high]
        if len(ticks) >= 4:
            break
    panel.yaxis.set_major_locator(FixedLocator(ticks))
    panel.yaxis.set_minor_locator(NullLocator())
    panel.yaxis.set_major_formatter(lambda value, _: f"{value:.4g}")
    panel.set_ylabel(_GEN_PPL)


def _apart(places: set[float]) -> list[float]:
    """Ticks that do not overlap on an axis of powers of two."""
    chosen: list[float] = []
    for place in sorted(places):
        if not chosen or place / chosen[-1] >= 1.4:
            chosen.append(place)
    return chosen
