"""Learning curves of several seeds as one."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from initopt.comparison.outcome import Outcome
from initopt.comparison.record import RunRecord
from initopt.comparison.statistics import intervals

__all__ = ["MeanCurve", "outcome_curve", "train_loss_curve"]

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
    """The curve of what counts; from where a run diverged, it counts as untrained.

    Args:
        runs: of one initialization on one network; failed ones are left out.
        outcome: what counts.
        epochs: where the curve is wanted; between its own points, a run is interpolated.
    """
    return _mean(runs, epochs, outcome.subset, outcome.value, outcome.untrained)


def train_loss_curve(runs: Sequence[RunRecord], epochs: Sequence[float]) -> MeanCurve:
    """The curve of the training loss; from where a run diverged, it no longer counts, since it has no loss.

    Args:
        runs: of one initialization on one network; failed ones are left out.
        epochs: where the curve is wanted.
    """
    return _mean(runs, epochs, "train", lambda point: point.loss, math.nan)


def _mean(
    runs: Sequence[RunRecord],
    epochs: Sequence[float],
    subset: str,
    value: Callable[..., float],
    diverged: float,
) -> MeanCurve:
    grid = np.asarray(epochs, dtype=float)
    rows, ends = [], []
    for run in runs:
        if run.status == "failed":
            continue
        points = [(point.epoch, value(point)) for point in run.curve if point.subset == subset]
        points = [(epoch, found) for epoch, found in points if math.isfinite(found)]
        row = np.full(len(grid), math.nan)
        if points:
            at, found = np.array(points).T
            row = np.interp(grid, at, found, left=math.nan, right=math.nan)
        if run.status == "diverged":
            row[grid > (points[-1][0] if points else -math.inf)] = diverged
            ends += points[-1:]
        rows.append(row)
    table = np.array(rows).reshape(len(rows), len(grid))
    known = np.isfinite(table)
    mean = np.where(known, table, 0).sum(0) / np.where(known.any(0), known.sum(0), math.nan)
    return MeanCurve(grid, mean, *intervals(table), len(rows), tuple(ends))
