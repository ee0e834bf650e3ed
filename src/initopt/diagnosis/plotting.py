"""The picture of a diagnosis: signals forwards and gradients backwards, through the network."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from initopt.diagnosis.folding import listed

if TYPE_CHECKING:
    from initopt.diagnosis.change import Change
    from initopt.diagnosis.diagnosis import Diagnosis
    from initopt.diagnosis.rows import Row

__all__ = ["plot_change", "plot_diagnosis"]

# Colours that stay apart for the colour-blind (Okabe and Ito).
SIGNAL, PART, GRADIENT = "#0072B2", "#56B4E9", "#009E73"
MARKS = {"error": "#D55E00", "warning": "#E69F00"}

_NAMED = 24
"""Layers whose names are written at the axis."""


def plot_diagnosis(diagnosis: Diagnosis) -> Figure:
    """Draw the size of every output, of its part that depends on the input, and of the gradient that comes back.

    Args:
        diagnosis: whose rows are drawn in the order in which they ran; those with findings are marked and named.

    Returns:
        A figure that belongs to no window.
    """
    rows = [row for row in diagnosis.rows if row.kind != "parameter"]
    figure = Figure(figsize=(11, 6.4), layout="constrained")
    figure.suptitle(f"{diagnosis.model}: {_cut(diagnosis.verdict, 110)}", x=0.01, ha="left", fontsize=10)
    forward, backward = figure.subplots(2, 1, sharex=True)
    _draw(forward, rows, [row.rms for row in rows], SIGNAL, "output", "size of the outputs (root mean square)")
    signal = [row.rms * row.spread for row in rows]
    _draw(forward, rows, signal, PART, "its part that depends on the input")
    _draw(
        backward,
        rows,
        [row.slope for row in rows],
        GRADIENT,
        "gradient",
        "gradient of a sample's loss with respect to the output (norm)",
    )
    _mark(forward, rows, [row.rms for row in rows], ("W", "A", "D", "O", "S"))
    _mark(backward, rows, [row.slope for row in rows], ("G",))
    forward.legend(fontsize=8, frameon=False, loc="best")
    if len(rows) <= _NAMED:
        backward.set_xticks(range(len(rows)), [_cut(row.name, 24) for row in rows], rotation=50, ha="right", fontsize=7,
                            rotation_mode="anchor")  # fmt: skip
    else:
        backward.set_xlabel(f"layer, from {rows[0].name} to {rows[-1].name}", fontsize=9)
        backward.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


BEFORE, AFTER = "#7f7f7f", "#0072B2"


def plot_change(change: Change, forward: Axes, backward: Axes) -> None:
    """Draw signals and gradients through the network before and after its initialization.

    Args:
        change: the two diagnoses; layers with findings are marked.
        forward: axes for the part of each output that depends on the input, where signals are lost or explode.
        backward: axes for the gradients that come back.
    """
    for checkup, colour, label in ((change.before, BEFORE, "before"), (change.after, AFTER, "after")):
        rows = [row for row in checkup.rows if row.kind != "parameter"]
        signal, slope = [row.rms * row.spread for row in rows], [row.slope for row in rows]
        _draw(forward, rows, signal, colour, label, "signal: output that depends on the input")
        _draw(backward, rows, slope, colour, label, "gradient of a sample's loss with respect to the output")
        _mark(forward, rows, signal, ("W", "A", "D", "O", "S"), named=False)
        _mark(backward, rows, slope, ("G",), named=False)
        for axes in (forward, backward):
            axes.set_xlabel("layer, in the order in which they run", fontsize=9)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    handles = [Line2D([], [], color=colour, label=label) for colour, label in ((BEFORE, "before"), (AFTER, "after"))]
    shown = {row.severity for checkup in (change.before, change.after) for row in checkup.rows}
    handles += [
        Line2D([], [], color=colour, marker="o", linestyle="", mfc="none", label=severity)
        for severity, colour in MARKS.items()
        if severity in shown
    ]
    forward.legend(handles=handles, fontsize=8, frameon=False, loc="best")


def _draw(axes: Axes, rows: Sequence[Row], values: Sequence[float], colour: str, label: str, title: str = "") -> None:
    points = [(i, value) for i, value in enumerate(values) if value > 0 and math.isfinite(value)]
    if points:
        axes.plot(*zip(*points, strict=True), color=colour, linewidth=1.2, marker="o", markersize=3, label=label)
        axes.set_yscale("log")
    if title:
        axes.set_title(title, loc="left", fontsize=9)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
        axes.yaxis.grid(color="0.92")
        axes.set_axisbelow(True)


def _mark(axes: Axes, rows: Sequence[Row], values: Sequence[float], families: Sequence[str], named: bool = True) -> None:
    """A mark at every layer with a finding above a note, and one label for each rule."""
    seen: dict[str, tuple[int, float, list[str]]] = {}
    for severity, colour in MARKS.items():
        chosen = [i for i, row in enumerate(rows) if row.severity == severity]
        chosen = [i for i in chosen if any(rule.startswith(tuple(families)) for rule in rows[i].rules)]
        heights = [values[i] if values[i] > 0 and math.isfinite(values[i]) else math.nan for i in chosen]
        axes.plot(chosen, heights, "o", color=colour, markersize=6, markerfacecolor="none", markeredgewidth=1.5)
        for i, height in zip(chosen, heights, strict=True):
            for rule in rows[i].rules:
                if rule.startswith(tuple(families)) and not math.isnan(height):
                    seen.setdefault(rule, (i, height, []))[2].append(rows[i].name)
    for rule, (i, height, names) in list(seen.items())[: 6 if named else 0]:
        text = f"{rule} {_cut(listed(names, 1), 28)}"
        axes.annotate(text, (i, height), textcoords="offset points", xytext=(4, 8), fontsize=7, color="0.25")


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 3] + "..."
