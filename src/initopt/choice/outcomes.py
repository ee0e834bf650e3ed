"""What became of the starts of a race: who is better than the network's own, and with whom it is close."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean

import numpy as np
from numpy.typing import NDArray

from initopt.choice.judging import LEVEL, compared
from initopt.choice.race import Entrant
from initopt.choice.rows import Curve, Outcome, Row
from initopt.choice.runs import NOTHING, Run

__all__ = ["Judging", "best_of"]

_CLOSE = 2
"""Starts that run from further seeds where none is clearly better, at most."""


class Judging:
    """Judges the starts of a race that has been run, against the network's own.

    Args:
        entrants: of the race.
        looks: how many times it may be judged in all, now included; the chance of an error is shared evenly among them.

    Attributes:
        relative: whether differences are shares of the loss: they are unless a loss is not above zero.
    """

    def __init__(self, entrants: Sequence[Entrant], looks: int) -> None:
        self._entrants = entrants
        self._own = next(entrant for entrant in entrants if entrant.is_own)
        self._level = 1 - (1 - LEVEL) / looks
        self.relative = self._all_above_zero()
        self._judge(self._entrants)

    def _all_above_zero(self) -> bool:
        return all(bool((_losses(e) > 0).all()) for e in self._entrants if not e.failure)

    def _judge(self, entrants: Sequence[Entrant]) -> None:
        """Compare those that have come to the end, and as many runs as each has, with the network's own."""
        ended = [e for e in entrants if _has_ended(e) and not any(run.course.diverged for run in self._against(e))]
        if not ended:
            return
        own = _losses(self._own)[: len(ended[0].runs)]
        found = compared(
            [_losses(e) for e in ended], own, len(self._entrants) - 1, relative=self.relative, level=self._level
        )
        for entrant, difference in zip(ended, found, strict=True):
            entrant.difference = difference

    def _against(self, entrant: Entrant) -> list[Run]:
        """The runs of the network's own start with the seeds of another one."""
        return self._own.runs[: len(entrant.runs)]

    def close(self) -> list[Entrant]:
        """The network's own start and those that end lower in every seed, the lowest two at most.

        None at all if a start is clearly better, or none is lower in every seed.
        """
        outcomes = [self._outcome(entrant) for entrant in self._entrants]
        if "better" in outcomes:
            return []
        found = [
            entrant
            for entrant, outcome in zip(self._entrants, outcomes, strict=True)
            if outcome == "not told apart"
            and _lower(entrant.runs, self._against(entrant)) == len(entrant.runs)
            and self._trains_lower(entrant)
        ]
        found.sort(key=lambda entrant: entrant.loss())
        return [self._own, *found[:_CLOSE]] if found else []

    def look_again(self, entrants: Sequence[Entrant]) -> None:
        """Judge those that have run from further seeds once more; for the others the first look stands."""
        for entrant in entrants:
            entrant.difference = None
        if self.relative and not self._all_above_zero():
            self.relative = False
            self._judge([entrant for entrant in self._entrants if entrant not in entrants])
        self._judge(entrants)

    def _trains_lower(self, entrant: Entrant) -> bool:
        return fmean(map(Run.training_loss, entrant.runs)) < fmean(map(Run.training_loss, self._against(entrant)))

    def _outcome(self, entrant: Entrant) -> Outcome:
        if entrant.is_own:
            return "yours"
        if entrant.failure:
            return "unchanged" if entrant.failure == NOTHING else "failed"
        if entrant.diverged:
            return "diverged"
        if entrant.dropped is not None:
            return "dropped"
        if entrant.difference is None:  # since the network's own diverges
            pairs = zip(entrant.runs, self._against(entrant), strict=True)
            as_good = all(fmean(run.final()) <= fmean(own.final()) for run, own in pairs if not own.course.diverged)
            return "better" if as_good else "not told apart"
        if entrant.difference.high < 0 and self._trains_lower(entrant):
            return "better"
        return "worse" if entrant.difference.low > 0 else "not told apart"

    def rows(self, step_seconds: float) -> tuple[Row, ...]:
        """What became of each, the network's own start first, then the best first.

        Args:
            step_seconds: time of a training step, in units of which the cost of a start is given.
        """
        rows = [self._row(entrant, step_seconds) for entrant in self._entrants if not entrant.is_own]
        rows.sort(key=lambda row: (not row.seeds, row.diverged, -row.steps, row.loss))
        return (self._row(self._own, step_seconds), *rows)

    def _row(self, entrant: Entrant, step_seconds: float) -> Row:
        runs, difference = entrant.runs, entrant.difference
        return Row(
            start=entrant.start.name,
            lr=entrant.lr,
            outcome=self._outcome(entrant),
            steps=max((run.course.steps for run in runs), default=0),
            loss=entrant.loss(),
            difference=difference.mean if difference else self._plain_difference(entrant),
            low=difference.low if difference else math.nan,
            high=difference.high if difference else math.nan,
            training_loss=fmean(map(Run.training_loss, runs)) if runs else math.inf,
            seeds=len(runs),
            lower=_lower(runs, self._against(entrant), entrant.dropped),
            diverged=entrant.diverged,
            cost=entrant.initialization_seconds / step_seconds,
            why=entrant.failure or next((run.course.diverged for run in runs if run.course.diverged), ""),
            curves=tuple(_curve(run) for run in runs),
        )

    def _plain_difference(self, entrant: Entrant) -> float:
        """A difference that has no interval; of a start that was dropped, to what the network's own had then."""
        losses = [fmean(run.final()) for run in entrant.runs]
        own = [_loss_after(run, entrant.dropped) for run in self._against(entrant)]
        if not losses or not all(map(math.isfinite, [*losses, *own])):
            return math.nan
        if self.relative:
            return math.expm1(fmean(math.log(a / b) for a, b in zip(losses, own, strict=True)))
        return fmean(losses) - fmean(own)


def best_of(rows: Sequence[Row]) -> Row:
    """The row to take: the network's own, the first, unless others are clearly better; of these, the lowest loss."""
    better = [row for row in rows if row.outcome == "better"]
    return min(better, key=lambda row: row.loss, default=rows[0])


def _losses(entrant: Entrant) -> NDArray[np.float64]:
    return np.array([run.final() for run in entrant.runs])


def _has_ended(entrant: Entrant) -> bool:
    return not (entrant.is_own or entrant.failure or entrant.diverged) and entrant.dropped is None


def _lower(runs: Sequence[Run], own: Sequence[Run], steps: int | None = None) -> int:
    """The number of runs that end lower than the network's own with the same seed, or than it was after some steps."""
    return sum(fmean(a.final()) < _loss_after(b, steps) for a, b in zip(runs, own, strict=True))


def _loss_after(run: Run, steps: int | None) -> float:
    """The loss of a run on the batches held out after some steps; by default at its end."""
    return fmean(run.final() if steps is None else run.looks.get(steps, [math.inf]))


def _curve(run: Run) -> Curve:
    looks = tuple((number, fmean(losses)) for number, losses in sorted(run.looks.items()))
    return Curve(tuple(run.course.losses), looks, run.course.diverged)
