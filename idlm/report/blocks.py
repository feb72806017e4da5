"""Parts of a report that sections are made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from idlm.report.pictures import Picture
from idlm.report.tables import Table


@dataclass(frozen=True)
class Image:
    """A PNG that a bench drew, shown as it is.

    Attributes:
        data: the file.
        alt: what it shows, in words.
        caption: below it.
    """

    data: bytes
    alt: str
    caption: str


@dataclass(frozen=True)
class Text:
    """One sample.

    Attributes:
        title: the model and its sample's number.
        about: how it was made.
        text: the sample, cut.
        rest: characters that were cut off.
    """

    title: str
    about: str
    text: str
    rest: int


@dataclass
class Section:
    """A part of the page under one heading; what it lacks is not shown.

    Attributes:
        anchor: of links to it, made here and never from outside.
        title: its heading.
        short: its name in the list of contents.
        notes: paragraphs below the heading.
        pictures: drawn here.
        images: drawn by a bench.
        pairs: samples side by side.
        tables: below.
        folded: tables that unfold.
    """

    anchor: str
    title: str
    short: str
    notes: list[str] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    images: list[Image] = field(default_factory=list)
    pairs: list[Sequence[Text]] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    folded: list[Table] = field(default_factory=list)
