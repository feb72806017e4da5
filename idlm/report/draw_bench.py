"""Pictures of the benches: the oracle language and the sampler's speed."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from idlm.report import escape
from idlm.report.findings import Bench
from idlm.report.pictures import COLOURS, INK, MARKERS, MUTED, OTHERS, Picture, draw

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D

_DASHES = ("-", "--", ":", "-.")


def oracle(name: str, bench: Bench) -> Picture | None:
    """Cross-entropy, and what it may have cost in diversity, against steps.

    Args:
        name: of the picture.
        bench: records of ``idlm bench oracle``.
    """
    lines: dict[tuple[str, int], dict[int, list[Any]]] = {}
    for record in bench.records:
        if record["method"] != "source":
            who = (record["method"], round(record["latent"]))
            lines.setdefault(who, {}).setdefault(round(record["steps"]), []).append(record)
    if not lines:
        return None
    methods = list(dict.fromkeys(method for method, _ in lines))
    first = bench.records[0]

    def paint(axes: Sequence[Axes]) -> list[Line2D]:
        handles: list[Line2D] = []
        for (method, latent), points in lines.items():
            place = methods.index(method)
            look: dict[str, Any] = {
                "color": COLOURS[place % len(COLOURS)],
                "marker": MARKERS[place % len(MARKERS)],
                "linestyle": "-" if latent else "--",
                "markersize": 4.5,
                "linewidth": 1.2,
            }
            steps = sorted(points)
            for panel, key in zip(axes, ("cross_entropy", "overlap"), strict=True):
                values = [statistics.fmean(r[key] for r in points[step]) for step in steps]
                (handle,) = panel.plot(steps, values, **look)
            several = sum(other == method for other, _ in lines) > 1
            told = (f", latent {latent}" if latent else ", no latent") * several
            handle.set_label(escape.picture_label(method + told))
            handles.append(handle)
        for panel, key in zip(axes, ("entropy_rate", "source_overlap"), strict=True):
            line = panel.axhline(first[key], color=INK, linestyle=":", linewidth=1.4)
        line.set_label("the source itself")
        axes[0].set_ylabel("cross-entropy\n(nats per token)")
        axes[1].set_ylabel("overlap of\ntwo texts")
        ticks = sorted({step for points in lines.values() for step in points})
        axes[1].set_xscale("log", base=2)
        axes[1].set_xticks(ticks, [str(tick) for tick in ticks])
        axes[1].minorticks_off()
        axes[1].set_xlabel("sampling steps")
        return [*handles, line]

    return draw(
        name,
        "The oracle language",
        "Two line plots against sampling steps: cross-entropy under the source in nats per token, "
        f"and the overlap of two texts, for {', '.join(methods)}; the numbers are in the table.",
        paint,
        height=4.6,
        panels=(1.5, 1.0),
        caption="Lower cross-entropy is better only where the overlap of two texts stays at the "
        "source's: more overlap is lost diversity. Dashed lines are without a latent.",
    )


def sampling_speed(name: str, bench: Bench) -> Picture | None:
    """Seconds of the sampler beside bare backbone passes and a plain sampler.

    Args:
        name: of the picture.
        bench: records of ``idlm bench speed``.
    """
    cases = [record for record in bench.records if record["case"] == "sampler"]
    if not cases:
        return None
    works = (
        ("backbone_seconds", "backbone passes alone", OTHERS),
        ("lean_seconds", "our sampler", COLOURS[0]),
        ("plain_seconds", "plain sampler", COLOURS[1]),
    )

    def paint(axes: Sequence[Axes]) -> list[Line2D]:
        from matplotlib.lines import Line2D

        (panel,) = axes
        for row, record in enumerate(cases):
            for place, (key, _, colour) in enumerate(works):
                seconds = record.get(key)
                if seconds is None:
                    continue
                where = row + 0.26 * (place - 1)
                panel.barh(where, seconds, height=0.24, color=colour, zorder=3)
                panel.annotate(
                    f"{seconds:.3g}",
                    (seconds, where),
                    xytext=(3, 0),
                    textcoords="offset points",
                    va="center",
                    fontsize=8,
                    color=MUTED,
                )
        panel.set_xscale("log")
        low, high = panel.get_xlim()
        panel.set_xlim(low, high * 1.6)  # room for the numbers
        panel.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        panel.set_yticks(range(len(cases)), [_network(record) for record in cases])
        panel.invert_yaxis()
        panel.grid(visible=False, axis="y")
        panel.set_xlabel("seconds (log scale)")
        return [
            Line2D([], [], color=colour, linewidth=6, label=label)
            for key, label, colour in works
            if any(record.get(key) is not None for record in cases)
        ]

    return draw(
        name,
        "Speed of sampling",
        "Bars of seconds for backbone passes alone, our sampler and a plain sampler, one group for "
        "each network; the numbers are in the table below.",
        paint,
        height=1.0 + 0.62 * len(cases),
        caption="Backbone passes alone are the lower bound of a sampler that calls the network at "
        "every step.",
    )


def _network(record: dict[str, Any]) -> str:
    name = escape.picture_label(record["network"], longest=16)
    return f"{name}\nbatch {round(record['batch'])}"
