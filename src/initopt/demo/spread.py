"""Means over seeds, and how far they can be trusted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

__all__ = ["Spread"]

_STUDENT_95 = (math.nan, 12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26)
"""Two-sided 95 % quantiles of Student's t, by degrees of freedom; beyond, 2.26 is a little too careful."""


@dataclass(frozen=True)
class Spread:
    """The mean of some values, a value per seed, with its uncertainty.

    Attributes:
        mean: their mean.
        std: their standard deviation; ``nan`` for one value.
        count: how many there are.
    """

    mean: float
    std: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Summarize values.

        >>> Spread.of([1.0, 3.0])
        Spread(mean=2.0, std=1.4142135623730951, count=2)
        """
        return cls(fmean(values), stdev(values) if len(values) > 1 else math.nan, len(values))

    @property
    def sem(self) -> float:
        """Standard error of the mean."""
        return self.std / math.sqrt(self.count)

    @property
    def margin(self) -> float:
        """Half the width of the 95 % confidence interval of the mean; ``nan`` for one value.

        >>> round(Spread(mean=0.0, std=1.0, count=4).margin, 2)
        1.59
        """
        return _STUDENT_95[min(self.count, len(_STUDENT_95)) - 1] * self.sem
