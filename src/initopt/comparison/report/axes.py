"""A colour, line and marker for every initialization, the same in all figures."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from PIL import Image as Raster

from initopt._support.words import counted
from initopt.comparison.analysis.summary import Entry, NetworkSummary
from initopt.comparison.report.content import Image

__all__ = [
    "CHART_WIDTH",
    "REFERENCE",
    "FigureContext",
    "Style",
    "create",
    "create_rows",
    "log_if_wide",
    "percent",
    "short",
    "slug",
    "styles",
    "tidy",
    "to_image",
]

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""The colours of Okabe and Ito, which the colour-blind can tell apart, without black and yellow (too faint on white)."""

_MARKERS = ("o", "s", "^", "D", "v", "P", "s", "D", "o", "^", "h", "<")

_LINES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 1.5, 1.5, 1.5)))


@dataclass(frozen=True)
class Style:
    """How an initialization is drawn: dashes and marker as matplotlib has them.

    Whether markers are filled changes each time that the colours begin anew.
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
    """A style for every initialization, grey for the reference; up to 24, no two are the same.

    >>> found = styles(["default", "nio"], "default")
    >>> found["default"].colour, found["nio"].colour
    ('#4d4d4d', '#0072B2')
    """
    found = dict.fromkeys(names, REFERENCE)
    for index, name in enumerate(name for name in names if name != reference):
        cycle, colour = divmod(index, len(_COLOURS))
        marker = _MARKERS[index % len(_MARKERS)]
        found[name] = Style(_COLOURS[colour], _LINES[cycle % len(_LINES)], marker, filled=cycle % 2 == 0)
    return found


CHART_WIDTH = 4.6
"""The width of a chart in inches: two fit beside each other on a desk, and one, hardly smaller, on a phone."""

_CSS_PIXELS = 100
"""The pixels of a page that an inch of a figure takes."""


def create(width: float, height: float) -> Figure:
    """A figure of a size in inches, that belongs to no window."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def create_rows(names: Sequence[str], label: str) -> tuple[Figure, Axes]:
    """A figure with a named row for each of some things, the first on top."""
    figure = create(CHART_WIDTH, 0.9 + 0.27 * len(names))
    axes = figure.subplots()
    tidy(axes, grid="x")
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_yticks(range(len(names)), [short(name) for name in names])
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    figure.supxlabel(label, fontsize=9.5)
    return figure, axes


def tidy(axes: Axes, grid: Any = "y", size: float = 9) -> None:
    """Take away what draws the eye from the data."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis=grid, color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=size)


def percent(axis: Axis) -> None:
    """Label shares as percentages."""
    axis.set_major_formatter(lambda share, position: f"{100 * share:.6g} %")


def log_if_wide(axis: Axis, set_scale: Callable[[str], None], values: Sequence[float]) -> None:
    """Make an axis logarithmic if the values on it are positive and differ by a factor of more than ten."""
    if not values or min(values) <= 0 or max(values) <= 10 * min(values):
        return
    set_scale("log")
    wide = max(values) > 1000 * min(values)
    axis.set_major_locator(LogLocator(subs=(1,), numticks=6) if wide else LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())


def short(name: str, length: int = 22) -> str:
    r"""A name that fits into a figure, and of which nothing is taken for mathematics.

    >>> short("a name that is rather long"), short("a$b")
    ('a name that is rather…', 'a\\$b')
    """
    kept = name if len(name) <= length else f"{name[: length - 1].rstrip()}…"
    return kept.replace("$", r"\$")


def slug(name: str) -> str:
    """A name as part of the name of a file.

    >>> slug("ResNet-56, batch norm"), slug("?")
    ('resnet-56-batch-norm', 'unnamed')
    """
    return re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-").lower()[:40] or "unnamed"


def to_image(figure: Figure, name: str, alt: str) -> Image:
    """The finished picture, the same each time; with a palette, which makes it a third as large."""
    buffer, packed = io.BytesIO(), io.BytesIO()
    figure.savefig(buffer, dpi=2 * _CSS_PIXELS, format="png", facecolor="white")
    palette = Raster.open(buffer).convert("RGB").quantize(128, dither=Raster.Dither.NONE)
    palette.save(packed, format="PNG", optimize=True)
    width, height = (round(side * _CSS_PIXELS) for side in figure.get_size_inches())
    return Image(name, alt, packed.getvalue(), width, height)


@dataclass(frozen=True)
class FigureContext:
    """A network as its figures see it.

    Attributes:
        network: its summary.
        entries: the initializations that have something to show.
        styles: the styles of all initializations.
        stem: the beginning of the names of the files.
    """

    network: NetworkSummary
    entries: tuple[Entry, ...]
    styles: dict[str, Style]
    stem: str

    @property
    def several(self) -> bool:
        """Whether anything has more than one seed."""
        return max(self._counts()) > 1

    def seeds(self) -> str:
        """How many seeds there are, which every caption says."""
        counts = self._counts()
        return counted(max(counts), "seed") if min(counts) == max(counts) else f"{min(counts)} to {max(counts)} seeds"

    def interval(self) -> str:
        """The meaning of bars and bands, if there are several seeds."""
        words = "95 % bootstrap interval of the mean over seeds"
        if any(1 < count < 5 for count in self._counts()):
            words += " (for fewer than 5 seeds: their range, which is less)"
        return words

    def _counts(self) -> list[int]:
        return [len(entry.runs) - len(entry.having("failed")) for entry in self.entries]
