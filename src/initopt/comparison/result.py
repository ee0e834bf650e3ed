"""A comparison, and the text that it is printed as."""

from __future__ import annotations

import os
from dataclasses import dataclass

from initopt.comparison.storage.store import StoredComparison, load_stored

__all__ = ["Comparison", "load_comparison"]


@dataclass(frozen=True)
class Comparison(StoredComparison):
    """A comparison: :func:`initopt.compare` returns one, whose ``str()`` has its tables, findings and what to do next."""

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
