"""The picture of the demo: learning curves, and the gradients before and after."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from initopt.demo.experiment import Experiment
from initopt.demo.recipe import DEPTH
from initopt.demo.starts import Start

__all__ = ["draw", "save_picture"]

COLOURS: dict[Start, str] = {"default": "#7f7f7f", "xavier": "#D55E00", "nio": "#0072B2"}
"""Distinct for the colour-blind, too."""

LABELS: dict[Start, str] = {"nio": "NIO", "xavier": "Xavier, gain of tanh", "default": "PyTorch default"}

LINES: dict[Start, dict[str, Any]] = {
    "nio": {"linewidth": 2.4},
    "xavier": {"linewidth": 1.4, "linestyle": (0, (4, 2))},
    "default": {"linewidth": 2.4},
}


def draw(experiment: Experiment) -> Figure:
    """Draw the learning curves of all starts and the gradients before and after NIO.

    Args:
        experiment: what came out.

    Returns:
        A figure that belongs to no window.
    """
    figure = Figure(figsize=(10.0, 3.9), layout="constrained")
    FigureCanvasAgg(figure)
    curves, cosine, norm = figure.subplots(1, 3, width_ratios=(2.2, 1, 1))
    _draw_curves(curves, experiment)
    _draw_pairs(cosine, experiment, "grad_cosine", "GradCosine")
    _draw_pairs(norm, experiment, "grad_norm", "Gradient norm")
    cosine.axhline(0, color="#bbbbbb", linewidth=0.8, zorder=0)
    _draw_bound(norm, experiment.runs[0].result.options["max_grad_norm"])
    norm.set_ylim(bottom=0)
    for axes in (curves, cosine, norm):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="#e6e6e6", linewidth=0.8)
        axes.set_axisbelow(True)
    return figure


def save_picture(experiment: Experiment, path: Path) -> None:
    """Write the picture as a PNG."""
    draw(experiment).savefig(path, dpi=150, metadata={"Software": None})


def _draw_curves(axes: Axes, experiment: Experiment) -> None:
    epochs = list(range(1, experiment.epochs + 1))
    count = len(experiment.runs)
    for start, label in LABELS.items():
        spreads = [experiment.accuracy(start, epoch) for epoch in epochs]
        axes.plot(
            epochs,
            [s.mean for s in spreads],
            color=COLOURS[start],
            label=label,
            marker="o" if len(epochs) == 1 else None,
            **LINES[start],
        )
        if count > 1 and start != "xavier":
            low, high = [s.mean - s.std for s in spreads], [min(s.mean + s.std, 1) for s in spreads]
            axes.fill_between(epochs, low, high, color=COLOURS[start], alpha=0.22, linewidth=0)
    seeds = f"mean of {count} seeds, band: ± 1 standard deviation" if count > 1 else "one seed"
    axes.set_title(f"{DEPTH}-layer tanh network on 8 x 8 digits\n({seeds})", loc="left", fontsize=10)
    axes.set(xlabel="epoch", ylabel="test accuracy", ylim=(0, 1.005))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    axes.legend(loc="lower right", frameon=False)


def _draw_pairs(axes: Axes, experiment: Experiment, figure: str, title: str) -> None:
    """A thin line for every seed from before to after, and bars at the means."""
    for run in experiment.runs:
        pair = [getattr(run.result.before, figure), getattr(run.result.after, figure)]
        axes.plot([0, 1], pair, color="#c4c4c4", linewidth=1, zorder=1)
        axes.scatter([0, 1], pair, color=[COLOURS["default"], COLOURS["nio"]], s=16, alpha=0.6, linewidth=0, zorder=2)
    before, after = experiment.measured(figure)
    _draw_mean(axes, 0, before.mean, COLOURS["default"])
    _draw_mean(axes, 1, after.mean, COLOURS["nio"])
    axes.set_title(f"{title} at the start\n(bar: mean, thin lines: seeds)", loc="left", fontsize=10)
    axes.set_xticks([0, 1], ["default", "NIO"])
    axes.set_xlim(-0.55, 1.55)
    axes.margins(y=0.15)


def _draw_mean(axes: Axes, place: int, mean: float, colour: str) -> None:
    """A bar at a mean, with the number on its outer side, where no line passes."""
    axes.plot([place - 0.12, place + 0.12], [mean] * 2, color=colour, linewidth=3, zorder=3)
    side = 1 if place else -1
    axes.annotate(
        f"{mean:z.2f}",
        (place + 0.15 * side, mean),
        ha="left" if place else "right",
        va="center",
        fontsize=9,
        color=colour,
        fontweight="bold",
    )


def _draw_bound(axes: Axes, bound: float) -> None:
    """NIO's bound on the gradient norm, which explains where the norm ends up."""
    axes.axhline(bound, color="#555555", linewidth=1, linestyle=":", zorder=1)
    axes.annotate("NIO's bound", (-0.5, bound), xytext=(0, 3), textcoords="offset points", fontsize=8, color="#555555")
