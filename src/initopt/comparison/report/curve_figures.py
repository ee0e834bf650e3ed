"""Learning curves: of all initializations together, and of each beside the reference."""

from __future__ import annotations

import math

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from initopt.comparison.analysis.outcome import TRAIN_LOSS, MeanCurve, Outcome, outcome_curve
from initopt.comparison.analysis.summary import Entry
from initopt.comparison.report.axes import (
    CHART_WIDTH,
    FigureContext,
    Style,
    create,
    log_if_wide,
    percent,
    short,
    slug,
    tidy,
    to_image,
)
from initopt.comparison.report.content import Figure, Image
from initopt.comparison.report.formatting import outcome_name, score

__all__ = ["CurveFigures"]

_BANDS = 4
"""With more initializations than this, bands in one chart would hide each other."""

_CEILING = 3.0
"""Losses are shown up to this many times their size at the start."""


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
            _draw(axes, curve, self._context.styles[name], bands=self._together, every=(position % stride, stride))
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
                _draw(axes, kind.curves[name], styles[name], bands=True, every=None)
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


def _draw(axes: Axes, curve: MeanCurve, style: Style, *, bands: bool, every: tuple[int, int] | None) -> None:
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
