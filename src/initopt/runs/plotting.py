"""Pictures of a result."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from initopt.diagnosis.plotting import plot_change
from initopt.gram.measurement import TITLES, Measurement
from initopt.methods.records import LayerRecord, StepRecord, steps_taken
from initopt.model.parameters import is_bias as is_bias_name

if TYPE_CHECKING:  # the result draws itself by this module
    from initopt.runs.result import Result

__all__ = ["plot_result"]

# Colours that stay apart for the colour-blind (Okabe and Ito).
BEFORE, AFTER, BOUND = "#7f7f7f", "#0072B2", "#D55E00"
_NAMED_TICKS = 40


def plot_result(result: Result) -> Figure:
    """Draw a result.

    Top: GradCosine, or the objective of a method that has none, and gradient norm over the steps, the norm's bound drawn in
    and constrained steps marked, or the output variance of each layer; before against after, with standard errors. Bottom:
    the scale of every tensor in network order.

    Args:
        result: the result of a run.

    Returns:
        A figure that belongs to no window.
    """
    change = result.diagnosis
    figure = Figure(figsize=(11, 6.6 if change is None else 9.6), layout="constrained")
    count = steps_taken(result.history)
    verdict = result.verdict.partition(":")[0]
    title = f"{result.method}: {count} step{'s' if count != 1 else ''} in {result.seconds:.1f} s, {verdict}"
    figure.suptitle(title, x=0.01, ha="left")
    steps = [record for record in result.history if isinstance(record, StepRecord)]
    layers = [record for record in result.history if isinstance(record, LayerRecord)]
    mosaic = "CCcn;SSSS" if layers else "CNcn;SSSS"
    heights = [1.15, 1]
    if change is not None:
        mosaic, heights = f"{mosaic};FBBB", [*heights, 1]
    axes = figure.subplot_mosaic(mosaic, width_ratios=[3, 3, 1.3, 1.3], height_ratios=heights)
    if layers:
        _plot_layers(axes["C"], layers)
    else:
        split = any(record.grad_cosine is not None for record in steps) or not steps
        centred = any(record.centred_grad_norm is not None for record in steps)
        cosine = ("grad_cosine", TITLES["centred_grad_cosine" if centred else "grad_cosine"])
        _plot_steps(axes["C"], steps, *(cosine if split else ("objective", "objective")))
        kappa = result.options.get("max_decrease")
        if kappa is not None and any(record.predicted_decrease is not None for record in steps):
            title = "predicted decrease / loss"
            _plot_steps(axes["N"], steps, "predicted_decrease", title, kappa)
        else:
            _plot_steps(axes["N"], steps, "grad_norm", "gradient norm", result.options.get("max_grad_norm"))
    shown = result.before is not None and "centred_grad_cosine" in result.before.sem
    for place, name in (("c", "centred_grad_cosine" if shown else "grad_cosine"), ("n", "grad_norm")):
        _plot_change(axes[place], result.before, result.after, name, TITLES[name])
    if result.tried_scales is None:
        _plot_scales(axes["S"], result.scales, "scale of each tensor, in network order")
    else:
        _plot_scales(axes["S"], result.tried_scales, "scales that were tried and given up, in network order")
    if change is not None:
        plot_change(change, axes["F"], axes["B"])
    return figure


def _tidy(axes: Axes, title: str) -> None:
    axes.set_title(title, loc="left", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)
    axes.yaxis.grid(color="0.92")
    axes.set_axisbelow(True)


def _plot_steps(axes: Axes, history: Sequence[StepRecord], name: str, title: str, bound: object = None) -> None:
    _tidy(axes, title)
    history = [record for record in history if getattr(record, name) is not None]
    steps = [record.step for record in history]
    values = [getattr(record, name) for record in history]
    axes.plot(steps, values, color=AFTER, linewidth=1.2)
    held = [(record.step, getattr(record, name)) for record in history if record.constrained]
    handles = []
    if held:
        axes.plot(*zip(*held, strict=True), "o", color=BOUND, markersize=3)
        handles.append(Line2D([], [], color=BOUND, marker="o", linestyle="", markersize=3, label="constrained step"))
    if isinstance(bound, (int, float)) and np.isfinite(bound):
        axes.axhline(bound, color=BOUND, linewidth=1, linestyle="--")
        handles.append(Line2D([], [], color=BOUND, linestyle="--", linewidth=1, label=f"bound {bound:g}"))
    floors = [record.noise_cosine for record in history if record.noise_cosine]
    if name == "grad_cosine" and floors:
        axes.axhline(floors[-1], color=BEFORE, linewidth=1, linestyle=":")
        label = f"{floors[-1]:.2f} by shared samples alone"
        handles.append(Line2D([], [], color=BEFORE, linestyle=":", linewidth=1, label=label))
    if name != "grad_cosine" and values and min(values) > 0 and max(values) > 10 * min(values):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
    if handles:
        axes.legend(handles=handles, fontsize=8, frameon=False, loc="best")
    axes.set_xlabel("step", fontsize=9)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _plot_layers(axes: Axes, layers: Sequence[LayerRecord]) -> None:
    _tidy(axes, "variance of each layer's output, in the order in which they run")
    positions = np.arange(len(layers))
    for name, label, colour in (("before", "at its turn", BEFORE), ("after", "with its new weight", AFTER)):
        values = [getattr(record, f"variance_{name}") for record in layers]
        axes.plot(positions, values, "o", color=colour, markersize=4, label=label)
    axes.set_yscale("log")
    axes.axhline(1, color="0.6", linewidth=0.8)
    axes.legend(fontsize=8, frameon=False, loc="best")
    axes.set_xlabel("layer", fontsize=9)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _plot_change(axes: Axes, before: Measurement | None, after: Measurement | None, name: str, title: str) -> None:
    _tidy(axes, title)
    axes.set_xticks([0, 1], ["before", "after"])
    axes.set_xlim(-0.5, 1.9)
    if before is None or after is None:
        axes.set_yticks([])
        axes.text(0.5, 0.5, "not measured\n(measure_batches=0)", ha="center", va="center", fontsize=8, color="0.4",
                  transform=axes.transAxes)  # fmt: skip
        return
    for x, measurement, colour in ((0, before, BEFORE), (1, after, AFTER)):
        value = getattr(measurement, name)
        error = np.nan_to_num(measurement.sem.get(name, np.nan))
        axes.errorbar(x, value, yerr=error, fmt="o", color=colour, markersize=6, capsize=4)
        axes.annotate(f"{value:.3g}", (x, value), textcoords="offset points", xytext=(8, 0), fontsize=8, va="center")
    axes.margins(y=0.25)
    if name == "grad_norm":
        axes.set_ylim(bottom=0)
    axes.set_xlabel(f"{before.num_batches} held-back batches,\nmean ± std. error", fontsize=8)


def _plot_scales(axes: Axes, scales: dict[str, float], title: str) -> None:
    _tidy(axes, title)
    names, values = list(scales), np.array(list(scales.values()))
    positions = np.arange(len(names))
    is_bias = np.array([is_bias_name(name) for name in names], dtype=bool)
    axes.axhline(1, color="0.6", linewidth=0.8)
    axes.vlines(positions, 1, values, color="0.8", linewidth=1)
    for chosen, marker, label in ((~is_bias, "o", "weight"), (is_bias, "^", "bias")):
        if chosen.any():
            face = AFTER if label == "weight" else "white"
            axes.plot(positions[chosen], values[chosen], marker, color=AFTER, mfc=face, markersize=4, label=label)
    if is_bias.any() and not is_bias.all():
        axes.legend(fontsize=8, frameon=False, loc="best")
    if len(names) <= _NAMED_TICKS:
        axes.set_xticks(positions, names, rotation=60, ha="right", rotation_mode="anchor", fontsize=7)
    else:
        axes.set_xlabel(f"tensor, from {names[0]} to {names[-1]}", fontsize=9)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlim(-0.8, len(names) - 0.2)
