"""A colour, line and marker for every initialization, the same in all figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["REFERENCE", "Style", "styles"]

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Those of Okabe and Ito, which the colour-blind can tell apart, less yellow, which is too faint on white, and black."""

_MARKERS = ("o", "s", "^", "D", "v", "P", "s", "D", "o", "^", "h", "<")

_LINES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 1.5, 1.5, 1.5)))


@dataclass(frozen=True)
class Style:
    """How an initialization is drawn.

    Attributes:
        colour: of lines and markers.
        line: the dashes of its lines, as matplotlib has them.
        marker: its marker, as matplotlib has it.
        filled: whether the marker is filled; each time that the colours begin anew, that changes.
    """

    colour: str
    line: Any
    marker: str
    filled: bool

    @property
    def markers(self) -> dict[str, Any]:
        """Keyword arguments for the markers of a line."""
        return {
            "marker": self.marker,
            "markerfacecolor": self.colour if self.filled else "white",
            "markeredgecolor": self.colour,
        }


REFERENCE = Style("#4d4d4d", "-", "o", filled=True)


def styles(names: Sequence[str], reference: str) -> dict[str, Style]:
    """A style for every initialization; up to 24, no two are the same.

    Args:
        names: of the initializations.
        reference: the one of them that is drawn in grey.

    >>> found = styles(["default", "nio"], "default")
    >>> found["default"].colour, found["nio"].colour
    ('#4d4d4d', '#0072B2')
    """
    others = [name for name in names if name != reference]
    found = {
        name: Style(
            _COLOURS[index % len(_COLOURS)],
            _LINES[index // len(_COLOURS) % len(_LINES)],
            _MARKERS[index % len(_MARKERS)],
            filled=index // len(_COLOURS) % 2 == 0,
        )
        for index, name in enumerate(others)
    }
    return {name: found.get(name, REFERENCE) for name in names}
