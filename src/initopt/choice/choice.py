"""The result of a race, and the forms that it is shown in."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from initopt._support.checks import data_frame
from initopt._support.files import Contents, plain, write_folder
from initopt._support.words import counted
from initopt.batches.stream import check_batches
from initopt.choice.rows import Cost, Curve, Row, change, counted_outcomes, figure, plain_row, table
from initopt.choice.starts import OWN, make_start, refuse_shards
from initopt.comparison.spec.initialization import Drawing, Initialization, as_initialization
from initopt.methods import METHODS
from initopt.model.group import ranks_of
from initopt.model.losses import LossFunction
from initopt.model.ranks import ProcessGroup
from initopt.model.wrappers import unreplicated
from initopt.runs.shared import compare_weights
from initopt.schemes import NAMES

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["CONTENTS", "FORMAT", "Choice"]

FORMAT = "initopt choice 1"
"""The form of the JSON, with its version."""

CONTENTS = Contents("choice.json", ("choice.html", "choice.png", "rows.csv"))
"""What the folder of a choice holds."""


@dataclass(frozen=True, eq=False)
class Choice:
    """The start to train from, and at which rate: :func:`initopt.choose` returns one.

    Attributes:
        rows: all starts at all rates, the network's own at the user's own rate first, then the best first.
        best: the row to take: the network's own, unless another one is clearly better.
        cost: of the whole race.
        seeds: number of runs of each row; more where :attr:`Row.seeds` says so, which was close.
        held_out: number of batches that they were judged by.
        seed: of the first run.
        relative: whether differences are shares of the loss of the network's own start: they are unless a loss is not above
            zero.
    """

    rows: tuple[Row, ...]
    best: Row
    cost: Cost
    seeds: int
    held_out: int
    seed: int
    relative: bool
    _starts: dict[str, Initialization] = field(repr=False)
    _loss_fn: LossFunction | None = field(repr=False)
    _batches: Iterable[Any] = field(repr=False)
    _process_group: ProcessGroup = field(repr=False, default=None)

    @property
    def own(self) -> Row:
        """The network's own start at the user's own rate."""
        return self.rows[0]

    @property
    def changes(self) -> bool:
        """Whether another start, or another rate, is clearly better than the user's."""
        return self.best is not self.own

    @property
    def curves(self) -> dict[tuple[str, float], tuple[Curve, ...]]:
        """The losses of all runs, by start and rate."""
        return {(row.start, row.lr): row.curves for row in self.rows}

    @property
    def verdict(self) -> str:
        """The start to train from, in a sentence without its full stop."""
        own, best = self.own, self.best
        if self.changes:
            what = "your own start" if best.start == OWN else best.start
            after = f"after {counted(best.steps, 'step')}"
            if own.diverged:
                found = f"loss {figure(best.loss)} {after}, where yours diverges in {_of_all(own.diverged, own.seeds)}"
            else:
                among = f"lower in {_of_all(best.lower, best.seeds)}"
                found = f"loss {figure(best.loss)} against {figure(own.loss)} {after}, {among}"
            return f"{what} {self._at(best)}: {found}{self._elsewhere()}"
        if own.diverged:
            others = "no other start trains" if self._none_trains else "no other start is clearly better"
            return f"your own start diverges at {own.lr:.3g} in {_of_all(own.diverged, own.seeds)}, and {others}"
        ours = f"loss {figure(own.loss)} after {counted(own.steps, 'step')}"
        ended = [row for row in self.rows[1:] if row.outcome == "not told apart"]
        if not own.learns:
            before = f"{figure(own.start_loss)} before the first"
            nothing = f"your own start learns nothing at {own.lr:.3g} ({ours}, {before})"
            lower = [row for row in ended if row.difference < 0 and row.learns]
            nearest = f"; the nearest is {self._nearest(lower)}" if lower else ""
            return f"{nothing}, and nothing else that was tried is clearly better{nearest}"
        if not ended:
            others = counted_outcomes(self.rows[1:])
            return f"keep yours at {own.lr:.3g}: no other start is better ({ours}{f'; {others}' if others else ''})"
        return f"cannot be told apart: keep yours at {own.lr:.3g} ({ours}; {self._nearest(ended)})"

    def _nearest(self, rows: Sequence[Row]) -> str:
        """The best of some rows that cannot be told from the network's own, with its interval."""
        near = min(rows, key=lambda row: row.difference)
        mean, low, high = (change(value, self.relative) for value in (near.difference, near.low, near.high))
        among = f"lower in {_of_all(near.lower, near.seeds)}"
        return (
            f"{near.start} {self._at(near)} with {figure(near.loss)}, {mean} with an interval from {low} to {high}, {among}"
        )

    @property
    def trains(self) -> bool:
        """Whether the start to take does; the network's own may diverge, or learn nothing."""
        return self.changes or (not self.own.diverged and self.own.learns)

    @property
    def _none_trains(self) -> bool:
        return all(row.diverged or not row.seeds for row in self.rows[1:])

    def _at(self, row: Row) -> str:
        return f"at your rate {row.lr:.3g}" if row.lr == self.own.lr else f"at the rate {row.lr:.3g}"

    def _elsewhere(self) -> str:
        """What would be best at another rate, where that is another start."""
        for row in self.rows[1:]:
            others = [
                r for r in self.rows if r.lr == row.lr and r.outcome not in ("dropped", "diverged", "unchanged", "failed")
            ]
            leads = bool(others) and row is min(others, key=lambda r: r.loss)
            if leads and row.lr != self.best.lr and row.start != self.best.start and row.outcome == "better":
                return f"; with {row.lr:.3g} it would be {row.start}"
        return ""

    @property
    def advice(self) -> str:
        """One sentence that says what to do next."""
        best = self.best
        rate = (
            ""
            if best.lr == self.own.lr
            else f" at a learning rate of {best.lr:.3g} ({best.lr / self.own.lr:.2g} times yours)"
        )
        rates = {row.lr for row in self.rows}
        if rate and best.lr in (min(rates), max(rates)):
            end = "highest" if best.lr == max(rates) else "lowest"
            rate += f", the {end} that was tried: initopt.find_lr looks further"
        if self.changes and best.start == OWN:
            return f"Leave the weights as they are, and train{rate}."
        if self.changes:
            call = self._call
            before = f"call {call}, or .apply(model) of this choice" if call else "call .apply(model) of this choice"
            return f"Before its first training step, {before}; then train{rate or ' as you did'}."
        if self.own.diverged:
            return "Lower the learning rate first; initopt.find_lr looks for one that suits this start."
        if not self.own.learns:
            other = "" if len(rates) > 1 else "a race at other rates (lrs='around') may tell more, "
            return (
                f"Do not train like this yet, unless the network is trained already: {other}initopt.find_lr looks for "
                "a rate that suits this start, and initopt.diagnose says what is wrong with it."
            )
        return "Train as you did; more seeds (seeds=, more_seeds=) and longer runs (steps=) would tell smaller differences."

    @property
    def _call(self) -> str:
        """How to make the best start without this choice; ``""`` where that takes more than a call."""
        steps = self._starts[self.best.start].steps
        if len(steps) != 1:
            return ""
        (step,) = steps
        loss = "" if self._loss_fn is None else ", loss_fn"
        if isinstance(step, Drawing) and step.name in NAMES and step == as_initialization(step.name).steps[0]:
            return f'initopt.schemes.apply_(model, "{step.name}", batch{loss})'
        name = getattr(step, "name", None)
        return f"initopt.{name}(model, batches{loss})" if name in METHODS and step == METHODS[name]() else ""

    def apply(self, model: nn.Module, batches: Iterable[Any] | None = None, seed: int | None = None) -> None:
        """Give a model the best start, in place; nothing changes where that is its own.

        Of a race that several processes have run, this is for all of them to call, and all have the same weights then.

        Args:
            model: a model of the same kind, before its first training step. After an exception its weights are as before.
            batches: for methods that need some; those that the race was given, by default.
            seed: of what is drawn; that of the first run, by default.
        """
        start = self._starts[self.best.start]
        if not start.steps:
            return
        data = self._batches if batches is None else batches
        check_batches(data)
        ranks, model = ranks_of(model, self._process_group), unreplicated(model)
        if ranks.size > 1:
            refuse_shards(model)
        with ranks.together():
            compare_weights(ranks, model)
            make_start(model, start, data, self._loss_fn, self.seed if seed is None else seed, ranks, ranks.end)

    @property
    def table(self) -> str:
        """The rows as text."""
        return table(self.rows, self.relative)

    def __str__(self) -> str:
        cost = self.cost
        starts, rates = (len({getattr(row, name) for row in self.rows}) for name in ("start", "lr"))
        head = ", ".join(counted(n, what) for n, what in ((starts, "start"), (rates, "rate"), (self.seeds, "seed")))
        if self.own.seeds > self.seeds:
            head += f" ({self.own.seeds} where it was close)"
        lines = [
            f"{head}, judged by {self.held_out} batch{'es' if self.held_out > 1 else ''} that no start was trained on",
            "",
            table(self.rows[:_LINES], self.relative),
            *self._reasons(),
            *([f"and {len(self.rows) - _LINES} more: .table has all"] if len(self.rows) > _LINES else []),
            "",
            *textwrap.wrap(f"Verdict: {self.verdict}.", 100),
            *textwrap.wrap(self.advice, 100),
            *textwrap.wrap(f"This cost {cost}.", 100),
        ]
        return "\n".join(lines)

    def _reasons(self) -> Iterator[str]:
        """Why starts could not be made, a line for each."""
        reasons = {row.start: row.why for row in self.rows if row.outcome == "failed"}
        for start, why in reasons.items():
            yield from textwrap.wrap(f"{start} could not be made: {why}", 100, subsequent_indent="  ")

    def _repr_html_(self) -> str:
        from initopt.choice.page import fragment

        return fragment(self)

    def to_dataframe(self) -> Any:
        """The rows as a :class:`pandas.DataFrame`, a column for each attribute of :class:`Row` but the curves.

        Raises:
            ImportError: without pandas.
        """
        return data_frame(list(map(plain_row, self.rows)))

    def to_dict(self) -> dict[str, Any]:
        """The whole choice as plain values for JSON, in the form that docs/choose.md describes."""
        found = {
            "format": FORMAT,
            "verdict": self.verdict,
            "advice": self.advice,
            "changes": self.changes,
            "start": self.best.start,
            "lr": self.best.lr,
            "own_lr": self.own.lr,
            "own_learns": self.own.learns,
            "trains": self.trains,
            "seeds": self.seeds,
            "held_out": self.held_out,
            "relative": self.relative,
            "cost": {f.name: getattr(self.cost, f.name) for f in fields(Cost)} | {"total": self.cost.total},
            "rows": [
                plain_row(row)
                | {"curves": [{f.name: getattr(curve, f.name) for f in fields(Curve)} for curve in row.curves]}
                for row in self.rows
            ],
        }
        return dict(plain(found))

    def plot(self) -> Figure:
        """Draw the losses on the batches held out over the steps, and the differences with their intervals.

        Returns:
            A figure that belongs to no window.
        """
        from initopt.choice.plotting import plot_choice

        return plot_choice(self)

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write ``choice.html``, a page that needs nothing else, ``choice.json``, ``choice.png`` and ``rows.csv``.

        Args:
            folder: is made; one that holds an earlier choice, and nothing else, is replaced.

        Returns:
            The path of the page.

        Raises:
            FileExistsError: if something else is there.
        """
        from initopt.choice.page import write_all

        return write_folder(folder, partial(write_all, self), CONTENTS) / "choice.html"


_ENDED = ("yours", "better", "not told apart", "worse")
"""What becomes of a row that comes to the end."""

_LINES = 14
"""Rows of the table on a terminal."""


def _of_all(count: int, seeds: int) -> str:
    if count < seeds:
        return f"{count} of {seeds} seeds"
    return {1: "the one seed", 2: "both seeds"}.get(seeds, f"all {seeds} seeds")
