"""What the figures of one network share."""

from __future__ import annotations

from dataclasses import dataclass

from initopt.comparison.style import Style
from initopt.comparison.summary import Entry, NetworkSummary
from initopt.comparison.wording import counted

__all__ = ["FigureContext"]


@dataclass(frozen=True)
class FigureContext:
    """A network as its figures see it.

    Attributes:
        network: its summary.
        entries: the initializations that have something to show.
        styles: of all initializations.
        stem: what the names of the files begin with.
    """

    network: NetworkSummary
    entries: tuple[Entry, ...]
    styles: dict[str, Style]
    stem: str

    @property
    def several(self) -> bool:
        """Whether anything has more than one seed."""
        return max(self._counts()) > 1

    def seeds(self) -> str:
        """How many seeds there are, which every caption says."""
        counts = self._counts()
        return counted(max(counts), "seed") if min(counts) == max(counts) else f"{min(counts)} to {max(counts)} seeds"

    def interval(self) -> str:
        """What bars and bands are, if there are several seeds."""
        few = any(1 < count < 5 for count in self._counts())
        return (
            "95 % bootstrap interval of the mean over seeds" + few * " (for fewer than 5 seeds: their range, which is less)"
        )

    def _counts(self) -> list[int]:
        return [len(entry.runs) - len(entry.having("failed")) for entry in self.entries]
