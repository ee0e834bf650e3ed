"""What a page is made of, whatever it is written in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Block", "Document", "Figure", "Image", "Listing", "Section", "Strong", "Table"]


class Strong(str):
    """A table's cell that stands out."""

    __slots__ = ()


@dataclass(frozen=True)
class Table:
    """A table with a row for each initialization, whose name is in the first column.

    Attributes:
        title: what it shows.
        columns: the headings.
        rows: the cells, as many in each row as there are columns.
        note: what one has to know to read it.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str


@dataclass(frozen=True)
class Image:
    """A picture.

    Attributes:
        name: of its file, without the ending.
        alt: what it shows, in words, for those who do not see it.
        png: the file.
        width: in CSS pixels, as it is meant to be shown; the file has twice as many.
        height: in CSS pixels.
    """

    name: str
    alt: str
    png: bytes
    width: int
    height: int


@dataclass(frozen=True)
class Figure:
    """Pictures that share a caption."""

    images: Sequence[Image]
    caption: str


@dataclass(frozen=True)
class Listing:
    """Lines that keep their form; ``open`` says whether they are shown at once, where they can be folded up."""

    title: str
    text: str
    open: bool = False


Block = str | list[str] | Table | Figure | Listing
"""A part of a section; a string is a paragraph, and a list of strings is a list of sentences."""


@dataclass(frozen=True)
class Section:
    """A heading and what follows."""

    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Document:
    """A page: a heading, a sentence below it, sections, and the colour of every initialization in the figures."""

    title: str
    lead: str
    sections: Sequence[Section]
    colours: dict[str, str]
