"""A report as Markdown with pictures beside it."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator, Sequence

from initopt.comparison.content import Block, Document, Figure, Listing, Sentences, Strong, Table, Text

__all__ = ["to_markdown"]


def to_markdown(document: Document, pictures: str) -> str:
    """Render a document in the Markdown of GitHub.

    Args:
        document: the report.
        pictures: the folder of its pictures, as seen from the file.
    """
    parts = [f"# {_text(document.title)}", _text(document.lead)]
    for section in document.sections:
        parts.append(f"## {_text(section.title)}")
        for block in section.blocks:
            parts += _block(block, pictures)
    return "\n\n".join(parts) + "\n"


def _block(block: Block, pictures: str) -> Iterator[str]:
    if isinstance(block, Text):
        yield _text(block.text)
    elif isinstance(block, Sentences):
        yield "\n".join(f"- {_text(sentence)}" for sentence in block.sentences)
    elif isinstance(block, Table):
        yield f"### {_text(block.title)}"
        yield _table(block)
        if block.note:
            yield _text(block.note)
    elif isinstance(block, Figure):
        yield "\n".join(
            f'<img src="{pictures}/{image.name}.png" width="{image.width}" alt="{html.escape(image.alt)}">'
            for image in block.images
        )
        yield f"*{_text(block.caption)}*"
    elif isinstance(block, Listing):
        yield f"**{_text(block.title)}**"
        yield _listing(block.text)


def _table(table: Table) -> str:
    rule = ["---", *["---:"] * (len(table.columns) - 1)]
    rows = [[f"**{_text(c)}**" if isinstance(c, Strong) else _text(c) for c in row] for row in table.rows]
    return "\n".join(_row(cells) for cells in [[_text(column) for column in table.columns], rule, *rows])


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _listing(text: str) -> str:
    """Fenced by more backticks than the text has in a row."""
    fence = "`" * max(3, *(len(run) + 1 for run in re.findall("`+", text)), 0)
    return f"{fence}text\n{text.rstrip()}\n{fence}"


def _text(text: str) -> str:
    r"""Text of which nothing is taken for markup.

    >>> print(_text("a|b <c> *d* xavier_normal _e_"))
    a\|b \<c\> \*d\* xavier_normal \_e\_
    """
    escaped = re.sub(r"([\\`*|<>\[\]$~])", r"\\\1", " ".join(text.split()))
    return re.sub(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\\_", escaped)
