"""What all figures have in common: their sizes, axes, labels, and the file in the end."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from PIL import Image as Raster

from initopt.comparison.content import Image

__all__ = ["CHART_WIDTH", "create", "create_rows", "log_if_wide", "percent", "short", "slug", "tidy", "to_image"]

CHART_WIDTH = 4.6
"""Of a chart in inches: two fit beside each other on a desk, and one, hardly smaller, on a phone."""

_CSS_PIXELS = 100
"""In an inch."""


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
