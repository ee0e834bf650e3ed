"""A start at a learning rate, as it ran in a race, and tables of such rows."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from statistics import fmean, pstdev
from typing import Any, Literal

from initopt.training.steps import last_fifth

__all__ = ["HEAD", "Cost", "Curve", "Outcome", "Row", "cells", "change", "counted_outcomes", "figure", "plain_row", "table"]

Outcome = Literal["yours", "better", "not told apart", "worse", "dropped", "diverged", "unchanged", "failed"]
"""What became of a start: whether its interval is below or above the loss of the network's own, or holds it; or why it has
none."""


_TELLING = 10
"""Steps of a run that tell whether anything is learned, at least."""


@dataclass(frozen=True)
class Curve:
    """The losses of a run.

    Attributes:
        training: of each step, before it.
        held_out: number of steps, and mean loss on the batches held out after them.
        diverged: why the run counts as diverged; ``None`` if it does not.
    """

    training: tuple[float, ...]
    held_out: tuple[tuple[int, float], ...]
    diverged: str | None = None


@dataclass(frozen=True)
class Row:
    """A start at a learning rate, as it ran.

    Attributes:
        start: its name; ``"own"`` for the network's own.
        lr: learning rate; of the first group of parameters, if there are several.
        outcome: what became of it; see :data:`Outcome`.
        steps: training steps of each run.
        loss: mean loss on the batches held out, over the seeds; infinite if a run diverged.
        difference: to the loss of the network's own start after as many steps and with the same seeds, as a share of that:
            -0.4 is 40 % lower. It is absolute where ``Choice.relative`` is false.
        low: lower end of the interval of the difference; nan for a start that did not come to the end.
        high: its upper end, likewise.
        training_loss: mean loss over the last fifth of the steps of all runs.
        seeds: number of its runs.
        lower: number of seeds in which the loss is lower than that of the network's own.
        diverged: number of runs that diverged.
        cost: of making the start once, in training steps.
        why: why it failed, diverged or did not run; ``""`` otherwise.
        curves: of its runs, one for each seed.
    """

    start: str
    lr: float
    outcome: Outcome
    steps: int
    loss: float
    difference: float
    low: float
    high: float
    training_loss: float
    seeds: int
    lower: int
    diverged: int
    cost: float
    why: str = ""
    curves: tuple[Curve, ...] = field(default=(), repr=False)

    @property
    def start_loss(self) -> float:
        """Mean training loss of the first step of all runs: that of the start; nan without runs."""
        return fmean([curve.training[0] for curve in self.curves if curve.training] or [math.nan])

    @property
    def learns(self) -> bool:
        """Whether the training loss ends below that of the start, by a hundredth of it and by more than batches differ.

        Each run has one loss of its start, so batches are taken to differ as in its last fifth, and twice their standard
        error over the runs is asked for. Fewer than ten steps do not tell: such a row, or one without curves, counts as one
        that learns.
        """
        ends = [last_fifth(curve.training) for curve in self.curves if curve.training]
        if not ends or self.steps < _TELLING:
            return True
        noise = fmean(map(pstdev, ends)) / math.sqrt(len(ends))
        return self.start_loss - self.training_loss > max(0.01 * abs(self.start_loss), 2 * noise)


@dataclass(frozen=True)
class Cost:
    """What a race cost, in training steps.

    Attributes:
        training: steps that were done.
        initialization: time of making the starts, in units of a training step.
        looks: cost of the looks at batches held out, a third of a step for each.
        seconds: of the whole race.
    """

    training: int
    initialization: float
    looks: float
    seconds: float

    @property
    def total(self) -> float:
        """The sum of all parts."""
        return self.training + self.initialization + self.looks

    def __str__(self) -> str:
        return (
            f"{self.total:.0f} training steps: {self.training} of training, {self.initialization:.0f} for making "
            f"the starts, {self.looks:.0f} for looks; {self.seconds:.0f} s"
        )


def plain_row(row: Row) -> dict[str, Any]:
    """The attributes of a row but for its curves."""
    return {f.name: getattr(row, f.name) for f in fields(row) if f.name != "curves"}


HEAD = ("start", "rate", "steps", "loss", "against yours", "lower in", "training", "cost", "")


def change(value: float, relative: bool) -> str:
    """A difference, in percent if it is a share.

    >>> change(-0.4, True), change(-0.4, False)
    ('-40 %', '-0.4')
    """
    return f"{100 * value:+.0f} %" if relative else f"{value:+.2g}"


def counted_outcomes(rows: Iterable[Row]) -> str:
    """How many rows came to which end, in words.

    >>> row = Row("nio", 0.1, "diverged", 9, math.inf, math.nan, math.nan, math.nan, math.inf, 3, 0, 3, 0.0)
    >>> counted_outcomes([row, row])
    '2 diverged'
    """
    words = {
        "worse": "clearly worse",
        "dropped": "dropped on the way",
        "unchanged": "without a change",
        "failed": "not made",
    }
    counts = Counter(words.get(row.outcome, row.outcome) for row in rows)
    return ", ".join(f"{count} {outcome}" for outcome, count in counts.items())


def figure(value: float) -> str:
    """A loss with three digits.

    >>> figure(2.0), figure(0.06312), figure(123.4)
    ('2.00', '0.0631', '123')
    """
    return f"{value:#.3g}".rstrip(".")


def cells(row: Row, relative: bool) -> list[str]:
    """A row in words and figures, one for each column of :data:`HEAD`."""
    shown = ""
    if math.isfinite(row.low):
        shown = f"{change(row.difference, relative)} [{change(row.low, relative)}, {change(row.high, relative)}]"
    elif math.isfinite(row.difference) and row.outcome != "yours":
        shown = change(row.difference, relative)
    words = {
        "dropped": f"dropped after {row.steps}",
        "diverged": f"diverged in {row.diverged}",
        "unchanged": "changes nothing",
    }.get(row.outcome, row.outcome)
    ran = row.seeds > 0
    return [
        row.start,
        f"{row.lr:.3g}",
        str(row.steps) if ran else "",
        figure(row.loss) if math.isfinite(row.loss) else "",
        shown,
        f"{row.lower} of {row.seeds}" if ran and row.outcome != "yours" else "",
        figure(row.training_loss) if math.isfinite(row.training_loss) else "",
        f"{row.cost:.0f}" if row.cost else "",
        words,
    ]


def table(rows: Iterable[Row], relative: bool) -> str:
    """Rows as text."""
    lines = [list(HEAD), *(cells(row, relative) for row in rows)]
    lines = [[cell if len(cell) <= 30 else f"{cell[:29]}…" for cell in line] for line in lines]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEAD))]
    left = {0, len(HEAD) - 1}
    padded = []
    for line in lines:
        pairs = enumerate(zip(line, widths, strict=True))
        padded.append("  ".join(cell.ljust(w) if i in left else cell.rjust(w) for i, (cell, w) in pairs).rstrip())
    return "\n".join([padded[0], "-" * max(map(len, padded)), *padded[1:]])
