"""The figures of a report: results, differences and gradients by initialization, and learning curves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from initopt.comparison.analysis.outcome import TRAIN_LOSS, MeanCurve, Outcome, outcome_curve
from initopt.comparison.analysis.statistics import Estimate
from initopt.comparison.analysis.summary import Entry, over_runs
from initopt.comparison.report.axes import (
    CHART_WIDTH,
    REFERENCE,
    FigureContext,
    Style,
    create,
    create_rows,
    log_if_wide,
    percent,
    short,
    slug,
    tidy,
    to_image,
)
from initopt.comparison.report.content import Figure, Image
from initopt.comparison.report.formatting import difference, outcome_name, score, unit

__all__ = ["CurveFigures", "gradients_figure", "results_figure"]

_FAR = 8.0
"""Rows are far from the others if they are this many times as far from their middle as is usual."""

_BANDS = 4
"""With more initializations than this, bands in one chart would hide each other."""

_CEILING = 3.0
"""Losses are shown up to this many times their size at the start."""


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


class CurveFigures:
    """The learning curves of a network, at least one of whose initializations has something to show."""

    def __init__(self, context: FigureContext) -> None:
        self._context = context
        network = context.network
        runs = {entry.name: list(entry.runs.values()) for entry in context.entries}
        everyone = [run for found in runs.values() for run in found if run.status != "failed"]
        self._kinds = []
        for outcome, title in ((network.outcome, outcome_name(network.outcome)), (TRAIN_LOSS, "training loss")):
            grid = sorted({point.epoch for run in everyone for point in run.curve if point.subset == outcome.subset})
            kind = _Kind(outcome, title, {name: outcome_curve(found, outcome, grid) for name, found in runs.items()})
            if kind.values:
                self._kinds.append(kind)
        self._together = len(context.entries) <= _BANDS

    def together(self) -> Figure | None:
        """All initializations in one chart, with bands if they are few; ``None`` without any curve."""
        images = [self._chart(kind) for kind in self._kinds]
        if not self._context.several:
            seeds = "one seed"
        elif self._together:
            seeds = f"mean of {self._context.seeds()}; bands: {self._context.interval()}"
        else:
            seeds = f"mean of {self._context.seeds()}; bands, which would hide each other here, are in the small charts"
        return Figure(images, f"Learning curves: {seeds}.{self._remarks()}") if images else None

    def beside_reference(self) -> Figure | None:
        """A small chart for each initialization, with bands; ``None`` where all fit into one."""
        context, reference = self._context, self._context.network.reference
        others = [entry for entry in context.entries if entry.name != reference]
        if self._together or not self._kinds or len(others) == len(context.entries):
            return None
        titles = [kind.title for kind in self._kinds]
        kinds = titles[0] if len(titles) == 1 else f"{titles[0]} above, {titles[1]} below"
        bands = f"mean of {context.seeds()}, bands: {context.interval()}" if context.several else "one seed"
        caption = f"Each initialization beside {reference} (grey), against epochs: {kinds}; {bands}.{self._remarks()}"
        return Figure([self._panel(entry) for entry in others], caption)

    def _remarks(self) -> str:
        """What a reader might stumble over."""
        remarks = ""
        if any(entry.having("diverged") for entry in self._context.entries):
            remarks = " A cross marks where a run diverged; from there on it counts as untrained, and has no training loss."
        if any(kind.is_cut for kind in self._kinds):
            remarks += f" Losses of more than {_CEILING:g} times those at the start are cut off."
        return remarks

    def _chart(self, kind: _Kind) -> Image:
        figure = create(CHART_WIDTH, 3.0 + 0.2 * math.ceil(len(kind.curves) / 2))
        axes = figure.subplots()
        for position, (name, curve) in enumerate(kind.curves.items()):
            stride = max(1, len(curve.epochs) // 7)
            _draw_curve(axes, curve, self._context.styles[name], bands=self._together, every=(position % stride, stride))
        kind.scale(axes)
        tidy(axes)
        axes.set_xlabel("epoch", fontsize=9.5)
        axes.set_ylabel(kind.title, fontsize=9.5)
        keys = [_key(self._context.styles[name]) for name in kind.curves]
        labels = [short(name) for name in kind.curves]
        figure.legend(keys, labels, loc="outside lower center", ncols=2, frameon=False, handlelength=3.2, fontsize=9.5)
        ends = "; ".join(f"{name} {kind.end_of(name)}" for name in kind.curves)
        alt = f"{kind.title} against epochs, {self._context.network.name}. At the last epoch: {ends}"
        return to_image(figure, f"{self._context.stem}-{slug(kind.title)}", alt)

    def _panel(self, entry: Entry) -> Image:
        network, styles = self._context.network, self._context.styles
        figure = create(2.0, 1.5 * len(self._kinds) + 0.2)
        figure.subplots(len(self._kinds), 1, sharex=True)
        for axes, kind in zip(figure.axes, self._kinds, strict=True):
            for name in (network.reference, entry.name):
                _draw_curve(axes, kind.curves[name], styles[name], bands=True, every=None)
            kind.scale(axes)
            tidy(axes, size=8)
        figure.axes[0].set_title(short(entry.name, 20), fontsize=9, loc="right", weight="bold")
        ends = ", ".join(
            f"{kind.title} {kind.end_of(entry.name)} and {kind.end_of(network.reference)}" for kind in self._kinds
        )
        alt = f"{entry.name} beside {network.reference}, {network.name}. At the last epoch: {ends}"
        number = [other.name for other in network.entries].index(entry.name)
        return to_image(figure, f"{self._context.stem}-curves-{number}-{slug(entry.name)}", alt)


class _Kind:
    """Curves that share an axis."""

    def __init__(self, outcome: Outcome, title: str, curves: dict[str, MeanCurve]) -> None:
        self.title = title
        self.curves = curves
        self._outcome = outcome
        finite = [curve.mean[np.isfinite(curve.mean)] for curve in curves.values()]
        self.values = [float(value) for values in finite for value in values]
        starts = [float(values[0]) for values in finite if len(values)]
        ceiling = _CEILING * float(np.median(starts)) if starts else math.inf
        # Where a loss explodes, the others are still to be told apart.
        self.is_cut = not outcome.higher_is_better and 0 < ceiling < max(self.values, default=0.0)
        if self.is_cut:
            self.values = [value for value in self.values if value <= ceiling]

    def scale(self, axes: Axes) -> None:
        """Give axes the scale and limits that all charts of these curves share."""
        last = max(float(curve.epochs.max(initial=0.0)) for curve in self.curves.values()) or 1.0
        axes.set_xlim(-0.03 * last, 1.03 * last)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=last >= 2))
        low, high = min(self.values), max(self.values)
        margin = 0.06 * max(high - low, 0.02 * abs(high), 1e-12)
        limits = low - margin, high + margin
        if self._outcome.higher_is_better:
            percent(axes.yaxis)
            limits = max(limits[0], -0.02), min(limits[1], 1.02)
        else:
            log_if_wide(axes.yaxis, axes.set_yscale, self.values)
            if axes.get_yscale() == "log":
                limits = low / 1.15, high * 1.15
        axes.set_ylim(*limits)

    def end_of(self, name: str) -> str:
        """The last value of a curve."""
        mean = self.curves[name].mean
        known = mean[np.isfinite(mean)]
        return score(float(known[-1]), self._outcome) if len(known) else "none"


def _draw_curve(axes: Axes, curve: MeanCurve, style: Style, *, bands: bool, every: tuple[int, int] | None) -> None:
    """Draw a curve, with markers at some points or, without ``every``, none."""
    known = np.isfinite(curve.mean)
    alone = known.sum() == 1
    markers = style.markers if every or alone else {}
    axes.plot(
        curve.epochs[known],
        curve.mean[known],
        color=style.colour,
        linestyle=style.line if every else "-",
        linewidth=1.6,
        markersize=4.5,
        markevery=None if alone else every,
        **markers,
    )
    banded = known & np.isfinite(curve.low)
    if bands and banded.any():
        low, high = curve.low[banded], curve.high[banded]
        axes.fill_between(curve.epochs[banded], low, high, color=style.colour, alpha=0.2, linewidth=0)
    if curve.ends:
        epochs, values = zip(*curve.ends, strict=True)
        axes.plot(epochs, values, "x", color=style.colour, markersize=6, markeredgewidth=1.6, zorder=4)


def _key(style: Style) -> Line2D:
    return Line2D([], [], color=style.colour, linestyle=style.line, linewidth=1.6, markersize=4.5, **style.markers)
