"""Figures with a row for every initialization: results in the end, differences, gradients."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from matplotlib.axes import Axes

from initopt.comparison.analysis.statistics import Estimate
from initopt.comparison.analysis.summary import Entry, over_runs
from initopt.comparison.report.axes import (
    REFERENCE,
    FigureContext,
    Style,
    create_rows,
    log_if_wide,
    percent,
    short,
    to_image,
)
from initopt.comparison.report.content import Figure, Image
from initopt.comparison.report.formatting import difference, outcome_name, score, unit

__all__ = ["gradients_figure", "results_figure"]

_FAR = 8.0
"""Rows are far from the others if they are this many times as far from their middle as is usual."""


@dataclass(frozen=True)
class _Row:
    """A row of the results: an initialization, its values by seed, and their mean and interval."""

    entry: Entry
    values: dict[int, float]
    found: Estimate


def results_figure(context: FigureContext) -> Figure | None:
    """What every run has in the end, and its difference to the reference; ``None`` if no run has anything."""
    network, outcome = context.network, context.network.outcome
    ends = [_Row(e, e.final, over_runs(e.final.values())) for e in context.entries if e.final]
    pairs = [(entry, entry.final_difference) for entry in network.others]
    differences = [_Row(e, p.differences, p.estimate) for e, p in pairs if p is not None and p.differences]
    drawn = [draw(context, rows) for draw, rows in ((_ends, ends), (_differences, differences)) if rows]
    if not drawn:
        return None
    caption = f"{outcome_name(outcome).capitalize()} in the end"
    caption += f", and its difference to {network.reference}, seed by seed. " if differences else ". "
    if context.several:
        caption += f"{context.seeds()}. Small dots: seeds; large marker: their mean; bar: {context.interval()}."
        caption += " A bar that crosses the line at 0 leaves open which is better." if differences else ""
    else:
        caption += "One seed, so there is no interval."
    if any(entry.having("diverged") for entry in context.entries):
        caption += " Crosses: runs that diverged, which count as untrained."
    if any(cut for _, cut in drawn):
        caption += " An arrow at the edge: the mean is beyond it, at the number beside."
    return Figure([image for image, _ in drawn], caption)


def gradients_figure(context: FigureContext) -> Figure | None:
    """GradCosine and gradient norm of the network's own start and of the one that was trained; ``None`` if not measured."""
    images = [
        image
        for figure, title in (("grad_cosine", "GradCosine"), ("grad_norm", "gradient norm"))
        if (image := _measured(context, figure, title)) is not None
    ]
    caption = (
        f"GradCosine and gradient norm before training, on held-back batches; mean of {context.seeds()}. Hollow: the "
        "network's own start; filled: the start that was trained from."
    )
    return Figure(images, caption) if images else None


def _ends(context: FigureContext, rows: Sequence[_Row]) -> tuple[Image, bool]:
    network, outcome = context.network, context.network.outcome
    figure, axes = create_rows([row.entry.name for row in rows], f"{outcome_name(outcome)} in the end")
    keep = [value for row in rows if row.entry.name == network.reference for value in row.values.values()]
    limits = _limits(rows, keep)
    if outcome.higher_is_better:
        percent(axes.xaxis)
    elif limits is None:
        log_if_wide(axes.xaxis, axes.set_xscale, [value for row in rows for value in row.values.values()])
    _draw_rows(axes, context, rows, limits, [score(row.found.mean, outcome) for row in rows])
    means = "; ".join(f"{row.entry.name} {score(row.found.mean, outcome)}" for row in rows)
    alt = f"{outcome_name(outcome)} in the end, {network.name}. Means: {means}"
    return to_image(figure, f"{context.stem}-end", alt), limits is not None


def _differences(context: FigureContext, rows: Sequence[_Row]) -> tuple[Image, bool]:
    network, outcome = context.network, context.network.outcome
    scale = 100.0 if outcome.measure == "accuracy" else 1.0
    texts = [difference(row.found.mean, outcome) for row in rows]
    rows = [
        _Row(row.entry, {seed: scale * value for seed, value in row.values.items()}, _scaled(row.found, scale))
        for row in rows
    ]
    better = "more is better" if outcome.higher_is_better else "less is better"
    of_what = f"points, {better}" if unit(outcome) else better
    figure, axes = create_rows([row.entry.name for row in rows], f"difference to {short(network.reference)} ({of_what})")
    axes.axvline(0, color=REFERENCE.colour, linewidth=1, zorder=1)
    limits = _limits(rows, [0.0])
    _draw_rows(axes, context, rows, limits, texts)
    means = "; ".join(f"{row.entry.name} {text}{unit(outcome)}" for row, text in zip(rows, texts, strict=True))
    alt = f"Difference to {network.reference} in the end, {network.name}. Means: {means}"
    return to_image(figure, f"{context.stem}-difference", alt), limits is not None


def _measured(context: FigureContext, figure: str, title: str) -> Image | None:
    rows = [(e, e.measured("before", figure), e.measured("after", figure)) for e in context.entries]
    rows = [(entry, before, after) for entry, before, after in rows if before.count and after.count]
    if not rows:
        return None
    canvas, axes = create_rows([entry.name for entry, _, _ in rows], f"{title} before training")
    for position, (entry, before, after) in enumerate(rows):
        colour = context.styles[entry.name].colour
        axes.plot([before.mean, after.mean], [position] * 2, color=colour, linewidth=1.2, alpha=0.6, zorder=1)
        axes.plot(before.mean, position, "o", markerfacecolor="white", markeredgecolor=colour, markersize=6, zorder=2)
        axes.plot(after.mean, position, "o", color=colour, markersize=6, zorder=3)
    if figure == "grad_norm":
        log_if_wide(axes.xaxis, axes.set_xscale, [found.mean for _, *both in rows for found in both])
    changes = "; ".join(f"{entry.name} from {before.mean:.3g} to {after.mean:.3g}" for entry, before, after in rows)
    return to_image(canvas, f"{context.stem}-{figure.replace('_', '-')}", f"{title}, {context.network.name}: {changes}")


def _draw_rows(
    axes: Axes, context: FigureContext, rows: Sequence[_Row], limits: tuple[float, float] | None, texts: Sequence[str]
) -> None:
    for position, (row, text) in enumerate(zip(rows, texts, strict=True)):
        style = context.styles[row.entry.name]
        if limits is not None and not limits[0] <= row.found.mean <= limits[1]:
            _draw_far(axes, position, style, text, limits, low=row.found.mean < limits[0])
        else:
            _draw_row(axes, position, style, row)
    if limits is not None:
        axes.set_xlim(*limits)


def _draw_row(axes: Axes, position: int, style: Style, row: _Row) -> None:
    """Dots for seeds, crosses for those that diverged, a bar for the interval, and a marker for the mean."""
    diverged = {run.seed for run in row.entry.having("diverged")}
    whole = [value for seed, value in row.values.items() if seed not in diverged]
    broken = [value for seed, value in row.values.items() if seed in diverged]
    look: dict[str, Any] = {"color": style.colour, "linestyle": ""}
    axes.plot(whole, [position] * len(whole), marker="o", markersize=4, markeredgewidth=0, alpha=0.5, zorder=2, **look)
    axes.plot(broken, [position] * len(broken), marker="x", markersize=6, markeredgewidth=1.4, zorder=5, **look)
    if not math.isnan(row.found.low):
        axes.plot([row.found.low, row.found.high], [position] * 2, color=style.colour, linewidth=2, zorder=3)
    axes.plot(row.found.mean, position, color=style.colour, markersize=6.5, zorder=4, **style.markers)


def _draw_far(axes: Axes, position: int, style: Style, text: str, limits: tuple[float, float], *, low: bool) -> None:
    """An arrow at an edge, with the mean that is beyond it."""
    edge, arrow, shift, side = (limits[0], "<", 8, "left") if low else (limits[1], ">", -8, "right")
    axes.plot(edge, position, arrow, color=style.colour, markersize=6, clip_on=False)
    axes.annotate(text, (edge, position), (shift, 0), textcoords="offset points", ha=side, va="center", fontsize=8.5)


def _limits(rows: Sequence[_Row], keep: Sequence[float]) -> tuple[float, float] | None:
    """Limits that leave out rows far from the others, which would press those into a line; ``None`` without such.

    The values to ``keep`` stay inside.
    """
    middles = {row.entry.name: median(row.values.values()) for row in rows}
    centre = median(middles.values())
    usual = max(
        median(abs(middle - centre) for middle in middles.values()),
        median(max(row.values.values()) - min(row.values.values()) for row in rows),
    )
    every = [*keep, *(value for row in rows for value in row.values.values())]
    near = [row for row in rows if abs(middles[row.entry.name] - centre) <= _FAR * usual]
    inside = [*keep, *(value for row in near for value in row.values.values())]
    low, high = min(inside), max(inside)
    if usual == 0 or max(every) - min(every) < 2.5 * (high - low):
        return None
    margin = 0.08 * (high - low)
    return low - margin, high + margin


def _scaled(found: Estimate, scale: float) -> Estimate:
    return Estimate(scale * found.mean, scale * found.std, scale * found.low, scale * found.high, found.count)
