"""Drawings: what stands beside a mark can be read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from idlm.report.pictures import draw


def drawn(*words: tuple[str, float, str]) -> str:
    """The SVG of words at heights, each written from the same place on."""

    def paint(axes: Sequence[Any]) -> list[Any]:
        axes[0].set_ylim(0.0, 1.0)
        for text, height, weight in words:
            axes[0].annotate(text, (0.5, height), fontweight=weight)
        return []

    return draw("a", "A", "words", paint).svg


def test_of_words_across_each_other_the_bold_ones_stay() -> None:
    found = drawn(("T=0.9", 0.50, "normal"), ("16", 0.51, "bold"), ("T=0.8", 0.52, "normal"))
    assert ">16<" in found
    assert "T=0.9" not in found
    assert "T=0.8" not in found


def test_of_two_alike_the_last_one_stays() -> None:
    found = drawn(("256", 0.50, "bold"), ("16", 0.51, "bold"))
    assert ">16<" in found
    assert ">256<" not in found


def test_words_that_have_room_all_stay() -> None:
    found = drawn(("T=0.9", 0.2, "normal"), ("16", 0.5, "bold"), ("T=0.8", 0.8, "normal"))
    assert all(text in found for text in ("T=0.9", ">16<", "T=0.8"))
