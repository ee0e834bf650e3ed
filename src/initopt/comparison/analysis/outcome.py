"""Which number of a run counts, also of one that diverged."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from initopt.comparison.analysis.statistics import intervals
from initopt.comparison.storage.record import CurvePoint, RunRecord

__all__ = ["TRAIN_LOSS", "MeanCurve", "Outcome", "outcome_curve"]

_ROUNDING = 1e-6
"""The most by which the end of an epoch may miss a whole number."""


@dataclass(frozen=True)
class Outcome:
    """What the runs of one network are judged by.

    A run that diverged counts with the value of an untrained network: that is what it leaves to its user, the value
    where it was last looked at would depend on when that was, and to leave it out would flatter what makes runs diverge.
    The same goes for a value that is not finite. A run that failed (an exception) has no value.

    Attributes:
        subset: what is looked at, ``"test"``, ``"validation"`` or ``"train"``.
        measure: ``"accuracy"``, or ``"loss"`` for a task without one.
        untrained: the median over all runs before their first step; where none was looked at then, the worst value
            of any run; ``nan`` where there is none either.
    """

    subset: str
    measure: Literal["accuracy", "loss"]
    untrained: float

    @classmethod
    def of(cls, runs: Sequence[RunRecord], subset: str = "test") -> Outcome:
        """The outcome of a network, from all its runs."""
        points = [point for run in runs for point in run.curve if point.subset == subset]
        measure: Literal["accuracy", "loss"] = (
            "accuracy" if points and all(point.accuracy is not None for point in points) else "loss"
        )
        bare = cls(subset, measure, math.nan)
        values = [(point.step, bare.value(point)) for point in points if math.isfinite(bare.value(point))]
        at_start = [value for step, value in values if step == 0]
        if at_start:
            return cls(subset, measure, median(at_start))
        worst = min if bare.higher_is_better else max
        return cls(subset, measure, worst((value for _, value in values), default=math.nan))

    @property
    def higher_is_better(self) -> bool:
        """Whether a higher value is better, as of accuracy."""
        return self.measure == "accuracy"

    def value(self, point: CurvePoint) -> float:
        """The value of a point that counts, finite or not."""
        value = point.accuracy if self.measure == "accuracy" else point.loss
        return math.nan if value is None else float(value)

    def points(self, run: RunRecord) -> Iterator[tuple[CurvePoint, float]]:
        """The points of a run that are of the subset, with their values as they count."""
        for point in run.curve:
            if point.subset == self.subset:
                value = self.value(point)
                yield point, value if math.isfinite(value) else self.untrained

    def final(self, run: RunRecord) -> float:
        """The value of a run in the end; ``nan`` for one that failed or was never looked at."""
        if run.status == "failed":
            return math.nan
        if run.status == "diverged":
            return self.untrained
        return next((value for _, value in reversed(list(self.points(run)))), math.nan)

    def first_epoch(self, runs: Sequence[RunRecord]) -> float | None:
        """The epoch at which the runs were first looked at after a pass over the data; ``None`` if not before the end."""
        epochs = {point.epoch for run in runs for point, _ in self.points(run)}
        after = sorted(epoch for epoch in epochs if epoch >= 1 - _ROUNDING)
        return after[0] if len(after) > 1 else None

    def at_epoch(self, run: RunRecord, epoch: float) -> float:
        """The value of a run at an epoch; the untrained one if it diverged before, ``nan`` if it failed."""
        if run.status == "failed":
            return math.nan
        later = (value for point, value in self.points(run) if point.epoch >= epoch - _ROUNDING)
        return next(later, self.untrained if run.status == "diverged" else math.nan)

    def steps_to(self, run: RunRecord, target: float) -> float:
        """Training steps until a run was first seen to reach a value; ``inf`` if it never was."""
        for point, value in self.points(run):
            if value >= target if self.higher_is_better else value <= target:
                return point.step
        return math.inf


TRAIN_LOSS = Outcome("train", "loss", math.nan)
"""The training loss; from where a run diverged, it does not count, since it has none."""

Array = NDArray[np.float64]


@dataclass(frozen=True)
class MeanCurve:
    """The mean over seeds at every point, with its interval.

    Attributes:
        epochs: where, shape (points,).
        mean: the mean, ``nan`` where no seed has a value.
        low: lower end of the interval, ``nan`` where fewer than two seeds have a value.
        high: its upper end.
        count: how many seeds there are.
        ends: epoch and value of the last finite point of every run that diverged.
    """

    epochs: Array
    mean: Array
    low: Array
    high: Array
    count: int
    ends: tuple[tuple[float, float], ...]


def outcome_curve(runs: Sequence[RunRecord], outcome: Outcome, epochs: Sequence[float]) -> MeanCurve:
    """The curve of what counts, at some epochs; from where a run diverged, it counts as untrained.

    The runs are of one initialization on one network; failed ones are left out. Between its own points, a run is
    interpolated.
    """
    grid = np.asarray(epochs, dtype=float)
    rows, ends = [], []
    for run in runs:
        if run.status == "failed":
            continue
        points = [(point.epoch, outcome.value(point)) for point in run.curve if point.subset == outcome.subset]
        points = [(epoch, value) for epoch, value in points if math.isfinite(value)]
        row = np.full(len(grid), math.nan)
        if points:
            at, values = np.array(points).T
            row = np.interp(grid, at, values, left=math.nan, right=math.nan)
        if run.status == "diverged":
            row[grid > (points[-1][0] if points else -math.inf)] = outcome.untrained
            ends += points[-1:]
        rows.append(row)
    table = np.array(rows).reshape(len(rows), len(grid))
    known = np.isfinite(table)
    mean = np.where(known, table, 0).sum(0) / np.where(known.any(0), known.sum(0), math.nan)
    return MeanCurve(grid, mean, *intervals(table), len(rows), tuple(ends))
