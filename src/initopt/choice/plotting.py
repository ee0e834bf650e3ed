"""The picture of a choice: losses over the steps, and differences with their intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean
from typing import TYPE_CHECKING

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from initopt.comparison.report.axes import REFERENCE, create, log_if_wide, short, styles, tidy

if TYPE_CHECKING:
    from initopt.choice.choice import Choice
    from initopt.choice.rows import Row

__all__ = ["label_of", "plot_choice"]

_MOST = 14
"""Rows that are drawn in colours."""


def label_of(row: Row, choice: Choice) -> str:
    """The name of a row: its start, and its rate where there are several."""
    several = len({other.lr for other in choice.rows}) > 1
    return f"{row.start}, {row.lr:.3g}" if several else row.start


def plot_choice(choice: Choice) -> Figure:
    """Draw the mean loss on the batches held out over the steps, with the range of the seeds, and the differences.

    Args:
        choice: whose rows are drawn; those that did not come to the end in grey, and of the others fourteen at most.

    Returns:
        A figure that belongs to no window.
    """
    rows = [row for row in choice.rows if row.curves]
    ended = [row for row in rows if row.steps == choice.own.steps or row is choice.own][:_MOST]
    drawn = styles([label_of(row, choice) for row in ended], label_of(choice.own, choice))
    figure = create(11, max(4.2, 1.4 + 0.28 * len(ended)))
    left, right = figure.subplots(1, 2, width_ratios=[1.15, 1])
    figure.suptitle(_cut(choice.verdict, 120), x=0.01, ha="left", fontsize=10)
    tidy(left)
    values: list[float] = []
    label: str | None = "dropped or diverged on the way"
    for row in rows:
        points = _means(row, choice)
        if not points:
            continue
        steps, lows, means, highs = zip(*points, strict=True)
        values += means
        if row not in ended:
            left.plot(steps, means, color="#b8b8b8", linewidth=1, marker="x", markersize=4, zorder=1, label=label)
            label = None
            continue
        style = drawn[label_of(row, choice)]
        left.fill_between(steps, lows, highs, color=style.colour, alpha=0.12, linewidth=0)
        how = {"color": style.colour, "linestyle": style.line, "linewidth": 2.4 if row is choice.best else 1.4}
        left.plot(steps, means, label=short(label_of(row, choice), 30), **how, **style.markers)
    log_if_wide(left.yaxis, left.set_yscale, values)
    left.set_xlabel("training steps", fontsize=9)
    left.set_title("loss on batches held out: mean and range over seeds", loc="left", fontsize=9.5)
    left.legend(fontsize=8, frameon=False)
    _differences(right, [row for row in ended if math.isfinite(row.low)], choice)
    return figure


def _means(row: Row, choice: Choice) -> list[tuple[int, float, float, float]]:
    """Steps, with the least, mean and largest loss over the seeds, as far as all are finite."""
    found = []
    for steps, _ in row.curves[0].held_out:  # runs of added seeds have a look at the end alone
        losses = [loss for curve in row.curves for number, loss in curve.held_out if number == steps]
        if len(losses) >= choice.seeds and all(map(math.isfinite, losses)):
            found.append((steps, min(losses), fmean(losses), max(losses)))
    return found


def _differences(axes: Axes, rows: Sequence[Row], choice: Choice) -> None:
    tidy(axes, grid="x")
    axes.axvline(0, color=REFERENCE.colour, linewidth=1)
    scale = 100 if choice.relative else 1
    for place, row in enumerate(rows):
        colour = {"better": "#009E73", "worse": "#D55E00"}.get(row.outcome, "#7f7f7f")
        axes.plot([scale * row.low, scale * row.high], [place, place], color=colour, linewidth=2)
        axes.plot(scale * row.difference, place, "o", color=colour)
    axes.set_yticks(range(len(rows)), [short(label_of(row, choice), 26) for row in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlabel(
        f"difference to the loss of your own start{' in %' if choice.relative else ''} (left of 0 is better)", fontsize=9
    )
    axes.set_title("starts that ran to the end, with intervals that hold together", loc="left", fontsize=9.5)


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"
