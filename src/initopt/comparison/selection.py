"""Which learning rate the final runs of an initialization get."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean

from initopt.comparison.outcome import Outcome
from initopt.comparison.record import RunRecord

__all__ = ["choose_lr"]


def choose_lr(runs: Sequence[RunRecord]) -> float | None:
    """The learning rate with the best mean over seeds on the validation split.

    A run that diverged counts as an untrained network (:class:`initopt.comparison.outcome.Outcome`). A learning rate of
    which a run failed is out, unless there is no other. Of equals, the least wins.

    Args:
        runs: those of one network from one initialization that were made to choose.

    Returns:
        The learning rate, or ``None`` if no run came to a result.
    """
    outcome = Outcome.of(runs, "validation")
    best: tuple[int, float, float] | None = None
    for lr in sorted({run.lr for run in runs}):
        values = [outcome.final(run) for run in runs if run.lr == lr]
        known = [value for value in values if not math.isnan(value)]
        if known:
            mean = fmean(known)
            score = (len(known) - len(values), mean if outcome.higher_is_better else -mean)
            if best is None or score > best[:2]:
                best = (*score, lr)
    return None if best is None else best[2]
