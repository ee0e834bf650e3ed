"""All figures of a network."""

from __future__ import annotations

from initopt.comparison.canvas import slug
from initopt.comparison.content import Figure
from initopt.comparison.curve_figures import CurveFigures
from initopt.comparison.figure_context import FigureContext
from initopt.comparison.row_figures import gradients_figure, results_figure
from initopt.comparison.style import styles
from initopt.comparison.summary import NetworkSummary

__all__ = ["network_figures"]


def network_figures(network: NetworkSummary, number: int) -> dict[str, Figure]:
    """Draw all figures of a network.

    Args:
        network: with at least one final run that did not fail.
        number: of the network, for the names of the files.

    Returns:
        Those that have something to show, by what that is: ``"results"``, ``"curves"``, ``"panels"`` (small learning
        curves, where there are too many initializations for bands in one chart) and ``"gradients"``.
    """
    context = FigureContext(
        network,
        tuple(entry for entry in network.entries if len(entry.having("failed")) < len(entry.runs)),
        styles([entry.name for entry in network.entries], network.reference),
        f"{number}-{slug(network.name)}",
    )
    curves = CurveFigures(context)
    found = {
        "results": results_figure(context),
        "curves": curves.together(),
        "panels": curves.beside_reference(),
        "gradients": gradients_figure(context),
    }
    return {name: figure for name, figure in found.items() if figure is not None}
