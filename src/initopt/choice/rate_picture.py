"""The picture of learning rates: range tests as bands, and the loss after runs at one rate."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from initopt.choice.rate_result import LearningRates

__all__ = ["plot_rates"]

# Colours that stay apart for the colour-blind (Okabe and Ito).
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7f7f7f")


def plot_rates(found: Mapping[str, LearningRates]) -> Figure:
    """Draw one start, or several in one picture.

    Left: the smoothed loss of the range tests, its mean and its range over the seeds. Right: the mean loss at the end of
    runs at one rate with its range, the suggestion with its interval, and the largest stable rate.

    Args:
        found: by the names of the starts.

    Returns:
        A figure that belongs to no window.
    """
    figure = Figure(figsize=(11, 4.4), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    tops, bottoms = [], []
    for number, (name, one) in enumerate(found.items()):
        colour = COLOURS[number % len(COLOURS)]
        _band(left, one, colour, name)
        _runs(right, one, colour, name, number)
        losses = [loss for at in one.runs for loss in at.losses if math.isfinite(loss)]
        deepest = max(one.start_loss - min([*losses, one.start_loss]), one.start_noise)
        tops.append(one.start_loss + 0.6 * deepest)
        bottoms.append(min([*losses, one.start_loss]) - 0.1 * deepest)
    steps = next(iter(found.values())).steps
    _tidy(left, "range tests: loss while the rate rises (mean and range over seeds)")
    _tidy(right, f"runs at one rate: loss after {steps} steps (mean and range over seeds)")
    left.set_ylim(min(bottoms), max(tops))
    left.set_ylabel("loss", fontsize=9)
    right.legend(fontsize=8, frameon=False, loc="best")
    first = next(iter(found.values()))
    title = f"{first.model} with {first.optimizer}" + ("" if len(found) > 1 else f": {_short(first)}")
    figure.suptitle(title, x=0.01, ha="left", fontsize=10)
    return figure


def _short(one: LearningRates) -> str:
    if one.suggested is None:
        return "no suggestion"
    edge = f", stable up to {one.largest_stable:.2g}" if one.largest_stable is not None else ""
    return f"{one.suggested:.2g} suggested{edge}"


def _tidy(axes: Axes, title: str) -> None:
    axes.set_title(title, loc="left", fontsize=9)
    axes.set_xscale("log")
    axes.set_xlabel("learning rate", fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)
    axes.yaxis.grid(color="0.92")
    axes.set_axisbelow(True)


def _band(axes: Axes, one: LearningRates, colour: str, name: str) -> None:
    length = max((len(sweep.curve) for sweep in one.sweeps), default=0)
    if not length:
        return
    table = np.full((len(one.sweeps), length), np.nan)
    for row, sweep in zip(table, one.sweeps, strict=True):
        row[: len(sweep.curve)] = one.start_loss + np.array(sweep.curve)
    rates = np.array(one.sweeps[0].rates[:length])
    axes.fill_between(rates, np.nanmin(table, 0), np.nanmax(table, 0), color=colour, alpha=0.2, linewidth=0)
    axes.plot(rates, np.nanmean(table, 0), color=colour, linewidth=1.4, label=name)


def _runs(axes: Axes, one: LearningRates, colour: str, name: str, number: int) -> None:
    good = [t for t in one.runs if t.whole and t.stable]
    if good:
        means = np.array([t.loss for t in good])
        ends = np.array([[mean - min(t.losses), max(t.losses) - mean] for t, mean in zip(good, means, strict=True)])
        axes.errorbar([t.lr for t in good], means, yerr=ends.T, color=colour, fmt="o-", markersize=4, linewidth=1.2,
                      capsize=2, label=name)  # fmt: skip
    bad = [t.lr for t in one.runs if not t.stable]
    if bad:
        height = 0.97 - 0.04 * number
        axes.plot(bad, [height] * len(bad), "x", color=colour, markersize=5, transform=axes.get_xaxis_transform(),
                  label=f"{name}, unstable", clip_on=False)  # fmt: skip
    if one.warmup is not None:
        warm = [t for t in one.warmup.warm if t.whole and t.stable]
        if warm:
            axes.plot([t.lr for t in warm], [t.loss for t in warm], "^", color=colour, mfc="white", markersize=6,
                      label=f"{name}, warm-up of {one.warmup.steps} steps")  # fmt: skip
    if one.largest_stable is not None and one.unstable_at is not None:
        axes.axvline(one.largest_stable, color=colour, linestyle="--", linewidth=1)
        axes.annotate("largest stable", (one.largest_stable, 0.03), xycoords=("data", "axes fraction"), rotation=90,
                      va="bottom", ha="right" if number % 2 else "left", fontsize=7, color=colour)  # fmt: skip
    if one.suggested is not None:
        axes.axvline(one.suggested, color=colour, linewidth=1)
        if one.interval is not None:
            axes.axvspan(*one.interval, color=colour, alpha=0.12, linewidth=0)
