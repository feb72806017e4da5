"""One drawing, two pictures: an SVG for the page, which takes the page's colours, and a PNG.

Figures are as narrow as a phone's screen, so that their text keeps its size there.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from idlm.report import escape

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

WIDTH = 4.3  # inches, of 72 units of the SVG each
_PNG_DPI = 150

INK, MUTED, GRID, PAPER, OTHERS = "#1c1b1a", "#5d5b57", "#dddad4", "#fefefe", "#8a8781"
# Okabe and Ito's palette, told apart by every kind of colour vision, then darker ones of it.
COLOURS = (
    *("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b07d00", "#56b4e9"),
    *("#7a4fb5", "#8c3b00", "#00604a", "#8f2f66", "#6b6b00", "#27597a"),
)
MARKERS = ("v", "o", "s", "D", "P", "X", "^", "<", ">", "p", "h", "d")
# What a page may recolour; idlm.report.style has the two sets.
VARIABLES = {
    INK: "ink",
    MUTED: "muted",
    GRID: "grid",
    PAPER: "paper",
    OTHERS: "others",
    **{colour: f"series-{number}" for number, colour in enumerate(COLOURS)},
    "#000000": "ink",
    "#ffffff": "paper",
}
_SVG = "{http://www.w3.org/2000/svg}"
_LINK = "{http://www.w3.org/1999/xlink}href"
_DROPPED = ("metadata", "style")
_USED = re.compile(r"url\(#([^)]*)\)")
_DIGITS = re.compile(r"-?\d+\.\d{3,}")  # a hundredth of a point is enough


@dataclass(frozen=True)
class Picture:
    """A figure of the page.

    Attributes:
        name: of its file, made here and never from outside.
        title: above it.
        alt: what it shows, in words.
        svg: markup for inside the page; its text is escaped.
        png: the same as a file.
        caption: below it.
    """

    name: str
    title: str
    alt: str
    svg: str
    png: bytes
    caption: str = ""


def draw(
    name: str,
    title: str,
    alt: str,
    paint: Callable[[Sequence[Axes]], Sequence[Line2D]],
    *,
    height: float = 3.6,
    panels: Sequence[float] = (1.0,),
    caption: str = "",
) -> Picture:
    """Draw panels above each other, which share their horizontal axis, and a legend below.

    Args:
        name: of the picture.
        title: of the picture.
        alt: what it shows, in words.
        paint: draws into the panels and returns what the legend lists.
        height: of the panels together, in inches.
        panels: their relative heights.
        caption: of the picture.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.text import Text

    # text from outside is never mathematics, and what no font has is not worth a warning here
    look: Any = {**_look(), "svg.hashsalt": name}
    with mpl.rc_context(look), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*[Gg]lyph .* missing")
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        axes = list(
            figure.subplots(len(panels), 1, sharex=True, height_ratios=panels, squeeze=False)[:, 0]
        )
        handles = paint(axes)
        _legend(figure, handles, height)
        _thin_out(figure)
        picture = io.BytesIO()
        figure.savefig(picture, format="png", dpi=_PNG_DPI, facecolor=PAPER)
        for text in figure.findobj(Text):
            text.set_path_effects([])  # the page's style draws halos, and letters stay text
        vector = io.BytesIO()
        figure.savefig(vector, format="svg", transparent=True, metadata={"Date": None})
    svg = _inline(vector.getvalue(), name, alt)
    return Picture(name, title, alt, svg, smaller(picture.getvalue()), caption)


def smaller(png: bytes) -> bytes:
    """A PNG of at most 256 colours: a third of the size for drawings and heat maps.

    Args:
        png: a whole file.

    Raises:
        ValueError: if it is no PNG that can be read.
    """
    from PIL import Image

    found = io.BytesIO()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(png), formats=["PNG"]) as image:
                few = image.convert("RGB").quantize(256, dither=Image.Dither.NONE)
        few.save(found, format="PNG", optimize=True)
    except (OSError, SyntaxError, Warning, Image.DecompressionBombError) as error:
        raise ValueError(f"no PNG that can be read ({error})") from error
    return found.getvalue()


def _look() -> dict[str, Any]:
    return {
        "text.parse_math": False,
        "svg.fonttype": "none",
        "font.size": 10,
        "axes.labelsize": 10,
        "legend.fontsize": 9.5,
        "xtick.labelsize": 9.5,
        "ytick.labelsize": 9.5,
        "text.color": INK,
        "axes.labelcolor": INK,
        "xtick.color": MUTED,
        "ytick.color": MUTED,
        "xtick.labelcolor": INK,
        "ytick.labelcolor": INK,
        "axes.edgecolor": MUTED,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.color": GRID,
        "grid.linewidth": 0.7,
        "axes.axisbelow": True,
        "legend.frameon": False,
    }


def _legend(figure: Figure, handles: Sequence[Line2D], height: float) -> None:
    if not handles:
        return
    labels = [escape.picture_label(handle.get_label()) for handle in handles]
    # a long list is worth narrower columns
    widest = 28 if len(labels) > 8 else 20
    columns = 2 if len(labels) > 1 and max(map(len, labels)) <= widest else 1
    lines = -(-len(labels) // columns)
    figure.set_figheight(height + 0.17 * lines + 0.1)
    figure.legend(handles, labels, loc="outside lower left", ncols=columns, columnspacing=1.2)


def _thin_out(figure: Figure) -> None:
    """Hide words beside marks that would be written across others.

    Bold ones stay first, and of two alike the one drawn last: students come after their teacher.
    """
    from matplotlib.text import Annotation

    figure.draw_without_rendering()  # places follow from the layout, which is made here
    kept: list[Any] = []
    words = [words for words in figure.findobj(Annotation) if isinstance(words, Annotation)]
    words.sort(key=lambda words: (words.get_zorder(), words.get_fontweight() == "bold"))
    for one in reversed(words):
        place = one.get_window_extent()
        if any(place.overlaps(other) for other in kept):
            one.set_visible(False)
        else:
            kept.append(place)


def _inline(svg: bytes, name: str, alt: str) -> str:
    """The drawing as an element of an HTML page.

    Namespaces and metadata go, names become its own, and colours become the page's variables.
    """
    root = ElementTree.fromstring(svg)
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag.rpartition("}")[2] in _DROPPED:
                parent.remove(child)
    named = {value for element in root.iter() for value in _references(element)}
    for element in root.iter():
        if element.get("id") not in named:
            element.attrib.pop("id", None)
        element.tag = element.tag.removeprefix(_SVG)
        if _LINK in element.attrib:
            element.set("href", element.attrib.pop(_LINK))
        for key, value in list(element.attrib.items()):
            element.set(key, _attribute(key, value, name))
    for key in ("width", "height", "version"):
        root.attrib.pop(key, None)
    root.attrib |= {"role": "img", "aria-label": escape.one_line(alt)}
    return ElementTree.tostring(root, encoding="unicode", short_empty_elements=True)


def _references(element: ElementTree.Element) -> list[str]:
    """Names that an element refers to."""
    link = element.get(_LINK, "").removeprefix("#")
    return [link, *_USED.findall(" ".join(element.attrib.values()))]


def _attribute(key: str, value: str, name: str) -> str:
    if key == "id":
        return f"{name}-{value}"
    if key == "href":
        return f"#{name}-{value.removeprefix('#')}"
    if key in ("clip-path", "style"):
        value = value.replace("url(#", f"url(#{name}-")
    if key == "style":
        parts = [part for part in value.split("; ") if not part.startswith("font-family")]
        value = "; ".join(parts)
        for colour, variable in VARIABLES.items():
            value = value.replace(colour, f"var(--{variable})")
    if key in ("d", "x", "y", "transform"):
        value = _DIGITS.sub(lambda match: f"{float(match[0]):.2f}", " ".join(value.split()))
    return value
