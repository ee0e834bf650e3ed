"""A comparison as text for a screen."""

from __future__ import annotations

import textwrap
from pathlib import Path

from initopt._support.words import columns
from initopt.comparison.analysis.summary import Summary
from initopt.comparison.report.findings import findings
from initopt.comparison.report.tables import results_table

__all__ = ["as_text"]


def as_text(summary: Summary, folder: Path | None) -> str:
    """What every initialization comes to on every network, what that shows, and what to do next.

    Args:
        summary: of the comparison.
        folder: that holds it; ``None`` for one that was published as a file.
    """
    lines = []
    for network in summary.networks:
        results = results_table(network)
        lines += [f"{network.name}: {results.title.lower()}", columns(results.columns, results.rows), ""]
    for paragraph in [*findings(summary), _next(summary, folder)]:
        lines += textwrap.wrap(paragraph, 100, break_on_hyphens=False)
    return "\n".join(lines)


def _next(summary: Summary, folder: Path | None) -> str:
    entries = [entry for network in summary.networks for entry in network.entries]
    if any(entry.missing for entry in entries):
        return "Next, make the same call again: it goes on with the runs that are missing."
    if any(entry.having("failed") for entry in entries):
        return "Next, see why runs failed (their run.json says it); retry_failed=True does them again."
    if folder is None:
        return "These runs come from a file; make a comparison of your own networks with initopt.compare."
    here = Path.cwd()
    shown = folder.relative_to(here) if folder.is_relative_to(here) else folder
    if (folder / "report" / "report.html").is_file():
        return f"Next, open {shown / 'report' / 'report.html'}: it has curves, tests and what cannot be concluded."
    return f"Next, call initopt report {shown} for curves, tests and what cannot be concluded."
