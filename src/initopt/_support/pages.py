"""The forms in which a finding is looked at: a picture, a page and a table that need nothing else."""

from __future__ import annotations

import base64
import csv
import html
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["in_notebook", "png", "source_of", "write_page", "write_rows"]


def png(figure: Figure, dpi: int, **options: Any) -> bytes:
    """A figure as a PNG file.

    Args:
        figure: is drawn.
        dpi: pixels per inch.
        **options: of ``savefig``.
    """
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, **options)
    return buffer.getvalue()


def source_of(picture: bytes) -> str:
    """The ``src`` of an image that holds a PNG file itself.

    >>> source_of(bytes(3))
    'data:image/png;base64,AAAA'
    """
    return f"data:image/png;base64,{base64.b64encode(picture).decode('ascii')}"


def in_notebook(words: str, figure: Figure, alt: str) -> str:
    """Words and a picture as HTML, for a method ``_repr_html_``.

    Args:
        words: shown as they are, in lines.
        figure: the picture.
        alt: says what it shows.
    """
    return f'<pre>{html.escape(words)}</pre><img src="{source_of(png(figure, 80))}" alt="{html.escape(alt)}">'


def write_page(path: Path, title: str, body: str, head: str = "") -> None:
    """Write a whole HTML page.

    Args:
        path: of the file.
        title: as text.
        body: as HTML.
        head: more HTML for the head.
    """
    path.write_text(
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title>{head}</head><body>\n{body}\n</body></html>\n",
        encoding="utf-8",
    )


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write a table as CSV, with a column for each key of the first row.

    The items of a tuple are separated by spaces, and the cell of a NaN is empty.

    Args:
        path: of the file.
        rows: of the same keys.
    """
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(rows[0] if rows else ())
        writer.writerows([_cell(value) for value in row.values()] for row in rows)


def _cell(value: Any) -> Any:
    if isinstance(value, tuple):
        return " ".join(map(str, value))
    return "" if isinstance(value, float) and math.isnan(value) else value
