"""Pages of Markdown: a text with places, and tables to put there."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from statistics import fmean, stdev

__all__ = ["fill", "spread", "table"]

_PLACE = "<!-- table: {} -->"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of Markdown."""
    lines = ["| " + " | ".join(head) + " |", "| " + " | ".join("---" for _ in head) + " |"]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def spread(values: Collection[float], sign: str = "") -> str:
    """Mean, and standard deviation if there is one; ``"+"`` shows the sign of the mean."""
    return f"{fmean(values):{sign}.1f}" + (f" ± {stdev(values):.1f}" if len(values) > 1 else "")


def fill(text: str, parts: Mapping[str, str]) -> str:
    """Put every part into its place, and nothing else.

    Raises:
        ValueError: for a part without a place, or a place without a part.
    """
    for name, part in parts.items():
        place = _PLACE.format(name)
        if place not in text:
            raise ValueError(f"the text has no {place}")
        text = text.replace(place, part)
    if (start := text.find(_PLACE.partition("{")[0])) >= 0:
        raise ValueError(f"nothing to put into {text[start : text.find('-->', start) + 3]}")
    return text
