"""A comparison, and the text that it is printed as."""

from __future__ import annotations

import os
from dataclasses import dataclass

from initopt.comparison.storage.store import StoredComparison, load_stored

__all__ = ["Comparison", "load_comparison"]


@dataclass(frozen=True)
class Comparison(StoredComparison):
    """A comparison: :func:`initopt.compare` returns one, whose ``str()`` has its tables, findings and what to do next.

    Attributes:
        recipe: how everything was trained.
        networks: their names, in order.
        initializations: their names, in order.
        seeds: of the final runs.
        runs: the final runs that there are.
        selection: the runs that chose learning rates.
        versions: of what the comparison was begun with.
        details: everything else that was the same for all runs: how the networks are made, what the initializations do
            and change in the recipe, the data, the hardware.
        problems: stored runs that cannot be read, a sentence each; they count as missing.
        folder: that holds all of it; ``None`` for a file of published runs.
    """

    def __str__(self) -> str:
        from initopt.comparison.analysis.summary import summarize
        from initopt.comparison.report.text import as_text

        return as_text(summarize(self), self.folder)


def load_comparison(folder: str | os.PathLike[str]) -> Comparison:
    """Read a comparison, finished or not.

    Args:
        folder: that :func:`initopt.compare` wrote, also one of an earlier version; or a file of published runs, such as
            those in ``docs/comparisons``.

    Raises:
        ValueError: if it holds no comparison.
    """
    return Comparison(**vars(load_stored(folder)))
