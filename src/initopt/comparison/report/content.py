"""What a page is made of, whatever it is written in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Block", "Document", "Figure", "Image", "Listing", "Section", "Sentences", "Strong", "Table", "Text"]


class Strong(str):
    """A table's cell that stands out."""

    __slots__ = ()


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str


@dataclass(frozen=True)
class Sentences:
    """A list of sentences."""

    sentences: Sequence[str]


@dataclass(frozen=True)
class Table:
    """A table; the first column names its rows.

    Attributes:
        title: what it shows.
        columns: their headings.
        rows: the cells, as many in each row as there are columns.
        note: what one has to know to read it.
        keyed: whether the rows are initializations, which have a colour in the figures.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""
    keyed: bool = False


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
    """Lines that keep their form.

    Attributes:
        title: what they are.
        text: the lines.
        open: whether they are shown at once, where they can be folded up.
    """

    title: str
    text: str
    open: bool = False


Block = Text | Sentences | Table | Figure | Listing


@dataclass(frozen=True)
class Section:
    """A heading and what follows."""

    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Document:
    """A page.

    Attributes:
        title: its heading.
        lead: a sentence below it.
        sections: in their order.
        colours: of every initialization in the figures.
    """

    title: str
    lead: str
    sections: Sequence[Section]
    colours: dict[str, str]
