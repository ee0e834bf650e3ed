"""Accuracy against the learning rate over two decades: docs/assets/learning-rates.png."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy import array
from records import Results
from subjects import NETWORKS, TWO_DECADES

from initopt._support.files import write_file

__all__ = ["LINES", "draw", "networks_of"]

PICTURE = Path(__file__).parents[2] / "docs" / "assets" / "learning-rates.png"
LINES = {"default": ("#7f7f7f", "o"), "default, warm-up": ("#D55E00", "s"), "uncentred nio": ("#0072B2", "D")}
"""Colours of Okabe and Ito, and markers."""
_ACROSS = 3


def networks_of(results: Results) -> list[str]:
    """Those that every start was trained on."""
    return [name for name in NETWORKS if all(results.of(name, start) for start in LINES)]


def draw(results: Results) -> Path:
    """Write the picture.

    Args:
        results: of the study with ``--wide``.
    """
    names = networks_of(results)
    down = -(-len(names) // _ACROSS)
    figure = Figure(figsize=(3.6 * _ACROSS, 2.6 * down + 0.4), layout="constrained")
    panels = figure.subplots(down, _ACROSS, squeeze=False).flatten()
    for axes, name in zip(panels, names, strict=False):
        _panel(axes, results, name)
    for axes in panels[len(names) :]:
        axes.set_visible(False)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper left", ncols=len(LINES), frameon=False)
    figure.supxlabel("learning rate", fontsize=10)
    figure.supylabel("validation accuracy, %", fontsize=10)
    write_file(PICTURE, lambda path: figure.savefig(path, dpi=110, format="png"))
    return PICTURE


def _panel(axes: Axes, results: Results, name: str) -> None:
    lrs: Sequence[float] = TWO_DECADES[NETWORKS[name].optimizer]
    for start, (colour, marker) in LINES.items():
        found = array([[*results.by_seed(name, start, lr, "validation").values()] for lr in lrs])
        axes.fill_between(lrs, found.min(1), found.max(1), color=colour, alpha=0.15, linewidth=0)
        axes.plot(lrs, found.mean(1), color=colour, marker=marker, markersize=4, label=start)
    axes.set_xscale("log")
    axes.set_title(NETWORKS[name].title, loc="left", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)
