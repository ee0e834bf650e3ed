"""The result of a search for learning rates, and the forms that it is shown in."""

from __future__ import annotations

import math
import os
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from initopt._support.checks import data_frame
from initopt._support.files import Contents, plain, write_folder, write_json
from initopt._support.pages import in_notebook, png
from initopt._support.words import counted, listed
from initopt.choice.rate_runs import RateRuns, Sweep, Warmup

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["CONTENTS", "FORMAT", "LearningRates"]

FORMAT = "initopt learning rates 1"
"""The form of the JSON, with its version."""

CONTENTS = Contents("learning-rates.json", ("plot.png",))
"""What the folder of a search holds."""

_WIDTH = 100

_AS_GOOD = 0.9
"""A rate with this share of the best descent is as good as the best one."""


@dataclass(frozen=True, eq=False)
class LearningRates:
    """The learning rates that suit a start: :func:`initopt.find_lr` returns one.

    Attributes:
        model: class of the model.
        optimizer: class of the optimizer.
        suggested: the rate whose runs of ``steps`` steps end in the lowest mean loss, interpolated between the rates that
            were run by a parabola through the best one and its neighbours; ``None`` if there is no such rate (see ``why``).
        interval: the interval of that rate that holds 95 % of the resamples of the seeds; ``None`` for one seed or without
            a best rate.
        why: the reason for having no suggestion; ``""`` if there is one.
        largest_stable: the largest rate at which, as at all tested ones below, the runs of every seed went well: no loss
            that is not finite, none that ends above its start by more than the noise of batches and the best descent, and
            none that keeps less than a tenth of the best descent. ``None`` if there is none within the range.
        unstable_at: the lowest rate at which a run did not go well; ``None`` if the range ends before, so that the largest
            stable rate is *at least* ``largest_stable``.
        own: the user's rate, where the optimizer has one.
        start_loss: mean loss of the start.
        start_noise: standard deviation of the loss of the start from batch to batch.
        steps: training steps of a run at one rate.
        seeds: one for each order of batches.
        sweeps: the range tests, one for each seed.
        runs: runs at one rate from the start, by their rates.
        warmup: what a warm-up changes; ``None`` if it was not tried.
        steps_spent: training steps of the whole search.
        budget: the most training steps that it could have taken.
        undone: what the budget was not enough for.
        seconds: wall-clock time.
    """

    model: str
    optimizer: str
    suggested: float | None
    interval: tuple[float, float] | None
    why: str
    largest_stable: float | None
    unstable_at: float | None
    own: float | None
    start_loss: float
    start_noise: float
    steps: int
    seeds: tuple[int, ...]
    sweeps: tuple[Sweep, ...] = field(repr=False)
    runs: tuple[RateRuns, ...] = field(repr=False)
    warmup: Warmup | None = field(repr=False)
    steps_spent: int
    budget: int
    undone: tuple[str, ...] = ()
    seconds: float = 0.0

    def at(self, lr: float) -> RateRuns | None:
        """The runs at a rate, to within 5 %; ``None`` if there are none."""
        return next((t for t in self.runs if abs(math.log(t.lr / lr)) < math.log(1.05)), None)

    @property
    def best(self) -> RateRuns | None:
        """The runs at the rate with the largest mean descent."""
        return max((t for t in self.runs if t.whole and not t.diverged), key=lambda t: t.gain, default=None)

    @property
    def verdict(self) -> str:
        """The finding, in a sentence without its full stop."""
        if self.suggested is None:
            return f"no suggestion: {self.why}"
        found = f"{self.optimizer} does best around {_rate(self.suggested)}{self._spread()}, {self._stability()}"
        own = None if self.own is None else self.at(self.own)
        if self.own is None or own is None:
            return found
        assert self.best is not None
        ends = f"ends at a loss of {own.loss:.3g}" if math.isfinite(own.loss) else "diverges"
        return f"{found}; your {_rate(self.own)} {ends}, the best rate at {self.best.loss:.3g}"

    def _spread(self) -> str:
        if self.interval is None:
            return ""
        return f" ({_rate(self.interval[0])} to {_rate(self.interval[1])} over {counted(len(self.seeds), 'seed')})"

    def _stability(self) -> str:
        if self.largest_stable is None:
            return "no rate of the range is stable"
        if self.unstable_at is None:
            return f"and is stable up to {_rate(self.largest_stable)} at least, where the range ends"
        return f"and is stable up to {_rate(self.largest_stable)}"

    @property
    def advice(self) -> str:
        """One sentence that says what to do next."""
        if self.suggested is None:
            return self._without()
        own, best = None if self.own is None else self.at(self.own), self.best
        if self.own and own is not None and best is not None and own.whole and own.gain >= _AS_GOOD * best.gain:
            advice = f"Keep your rate of {_rate(self.own)}, which does nearly as well as any"
        else:
            advice = f"Train at {_rate(self.suggested)}"
            if self.own is not None:
                factor = self.own / self.suggested
                times = f"{factor:.2g} times too high" if factor > 1 else f"{1 / factor:.2g} times too low"
                advice += f" (your {_rate(self.own)} is {times} for this start)"
        if self.warmup is not None and self.warmup.better:
            advice += f", or with a warm-up of {counted(self.warmup.steps, 'step')} at {self._warm_rate()}"
        return f"{advice}; {self.steps} steps do not see what comes later, so try half of it, too, in a long training."

    def _warm_rate(self) -> str:
        assert self.warmup is not None
        return _rate(min((t for t in self.warmup.warm if t.stable), key=lambda t: t.loss).lr)

    def _without(self) -> str:
        if self.undone and "the rates around the best one" in self.undone:
            return "Give it a larger budget."
        if self.why.startswith("the seeds disagree"):
            return "Ask again with more seeds or longer runs (seeds=6, steps=100), or larger batches."
        if self.why.startswith(("every rate", "the lowest rate")):
            return f"Ask again with a lower range (min_lr={_rate(self.runs[0].lr / 1000) if self.runs else '...'})."
        if self.why.startswith("the highest rate"):
            return f"Ask again with a higher range (max_lr={_rate(self.runs[-1].lr * 100)})."
        return (
            "Ask initopt.diagnose(model, loader) whether anything can be learned from this start; if the model is trained "
            "already, ask again with longer runs (steps=200)."
        )

    def __str__(self) -> str:
        head = (
            f"{self.model} with {self.optimizer}: {counted(len(self.seeds), 'order')} of batches, "
            f"{self.steps_spent} training steps of at most {self.budget}, {self.seconds:.1f} s"
        )
        lines = [head, "", *self._table(), ""]
        verdict = f"{self.verdict[:1].upper()}{self.verdict[1:]}."
        lines += textwrap.wrap(verdict, _WIDTH, break_on_hyphens=False)
        if self.warmup is not None:
            lines += textwrap.wrap(f"{self._about_warmup()}.", _WIDTH, break_on_hyphens=False)
        if self.undone:
            lines += textwrap.wrap(f"The budget was not enough for {listed(self.undone)}.", _WIDTH)
        return "\n".join([*lines, "", *textwrap.wrap(self.advice, _WIDTH, break_on_hyphens=False)])

    def _table(self) -> list[str]:
        lines = [f"{'rate':>9}  loss after {self.steps} steps", f"{'start':>9}  {_mean(self.start_loss)}"]
        best = self.best
        for one in self.runs:
            marks = []
            if one is best and self.suggested is not None:
                marks.append("lowest")
            if self.own is not None and self.at(self.own) is one:
                marks.append("yours")
            if one.lr == self.largest_stable:
                marks.append("largest stable")
            marks.append(_fate(one))
            lines.append(f"{one.lr:>9.3g}  {_loss(one):<22}  {', '.join(m for m in marks if m)}".rstrip())
        return lines

    def _about_warmup(self) -> str:
        assert self.warmup is not None
        found = self.warmup
        words = f"a warm-up of {found.steps} of the {self.steps} steps"
        lower = f"the loss ends {'' if found.better else 'no '}lower than at the best rate without"
        if found.factor > found.without:
            return f"With {words}, the peak can be {found.factor} times the largest stable rate; above that rate, {lower}"
        if found.factor > 1:
            return f"Both with {words} and without it, {found.factor} times the largest stable rate goes well; {lower}"
        return f"A warm-up{words[9:]} allows no higher rate than the largest stable one, and {lower}"

    def _repr_html_(self) -> str:
        """The words and the picture, for notebooks."""
        return in_notebook(str(self), self.plot(), "learning rates")

    def to_dict(self) -> dict[str, Any]:
        """The whole result as plain values, for JSON."""
        names = ("model", "optimizer", "suggested", "why", "largest_stable", "unstable_at", "own")
        more = ("start_loss", "start_noise", "steps", "steps_spent", "budget", "seconds")
        found: dict[str, Any] = {"format": FORMAT, "verdict": self.verdict, "advice": self.advice}
        found |= {name: getattr(self, name) for name in names}
        found["interval"] = None if self.interval is None else list(self.interval)
        found |= {name: getattr(self, name) for name in more}
        found |= {"seeds": list(self.seeds), "undone": list(self.undone)}
        found["runs"] = [_of_runs(one) for one in self.runs]
        found["sweeps"] = [
            {"seed": s.seed, "rates": list(s.rates), "losses": list(s.losses), "start": list(s.start)} for s in self.sweeps
        ]
        warmup = self.warmup
        found["warmup"] = warmup and {
            "steps": warmup.steps,
            "factor": warmup.factor,
            "without": warmup.without,
            "better": warmup.better,
            "warm": [_of_runs(one) for one in warmup.warm],
            "cold": [_of_runs(one) for one in warmup.cold],
        }
        return dict(plain(found))

    def to_dataframe(self) -> Any:
        """The runs at one rate as a :class:`pandas.DataFrame`, a row for each rate, seed and warm-up.

        Raises:
            ImportError: without pandas.
        """
        warm = self.warmup.warm if self.warmup is not None else ()
        rows = [
            {"lr": t.lr, "warmup": t.warmup, "seed": seed, "loss": loss, "gain": gain, "stable": t.stable}
            for t in (*self.runs, *warm)
            for seed, loss, gain in zip(self.seeds, t.losses, t.gains, strict=True)
            if not math.isnan(loss)
        ]
        return data_frame(rows, ["lr", "warmup", "seed", "loss", "gain", "stable"])

    def plot(self, others: Mapping[str, LearningRates] | None = None, name: str = "this start") -> Figure:
        """Draw the range tests as a band over the seeds, and the loss after runs at one rate.

        Args:
            others: what was found for other starts of the network, by their names, to be drawn in the same picture.
            name: of this start.

        Returns:
            A figure that belongs to no window.
        """
        from initopt.choice.rate_picture import plot_rates

        return plot_rates({name: self, **(others or {})})

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write ``learning-rates.json`` and ``plot.png`` into a folder, whole or not at all.

        Args:
            folder: is made; one that holds an earlier search, and nothing else, is replaced.

        Returns:
            The folder.

        Raises:
            FileExistsError: if something else is there.
        """

        def write(temporary: Path) -> None:
            write_json(temporary / "learning-rates.json", self.to_dict())
            (temporary / "plot.png").write_bytes(png(self.plot(), 110))

        return write_folder(folder, write, CONTENTS)


def _of_runs(one: RateRuns) -> dict[str, Any]:
    return {
        "lr": one.lr,
        "warmup": one.warmup,
        "losses": list(one.losses),
        "gains": list(one.gains),
        "stable": one.stable,
    }


def _rate(lr: float) -> str:
    return f"{lr:.2g}"


def _mean(loss: float) -> str:
    return f"{loss:.4g}"


def _loss(one: RateRuns) -> str:
    finite = [loss for loss in one.losses if math.isfinite(loss)]
    if not finite:
        return ""
    shown = _mean(sum(finite) / len(finite))
    return f"{shown} ({min(finite):.3g} to {max(finite):.3g})" if len(finite) > 1 else shown


def _fate(one: RateRuns) -> str:
    run = sum(not math.isnan(loss) for loss in one.losses)
    if one.diverged:
        return "diverges" if one.diverged == run else f"{one.diverged} of {run} seeds diverge"
    if one.stable:
        return ""
    return (
        "ends above its start"
        if min(gain for gain in one.gains if not math.isnan(gain)) < 0
        else "loses what it could learn"
    )
