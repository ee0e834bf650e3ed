"""The search for learning rates: which runs are made, and what they say."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import fmean

import numpy as np

from initopt._support.errors import NonFiniteError
from initopt._support.words import counted
from initopt.choice.rate_runs import Plan, RateRuns, Runner, Start, Sweep, Warmup

__all__ = ["Search"]

_STEP = math.sqrt(10)
"""Factor between neighbouring rates of the first look, which is halved around the best one."""

_SAME = 1.05
"""Rates within this factor are one."""

_LOST = 0.1
"""A run at a rate above the best one that keeps less than this share of the best descent has lost what it could learn."""

_LITTLE = 0.01
"""A descent by less than this share of the loss does not count: learning how frequent classes are takes no more."""

_FACTORS = (1, 2, 4, 8)
"""Multiples of the largest stable rate that a warm-up is tried at."""

_DRAWS = 1000
"""Resamples of the seeds, for an interval."""

_NO_RATE = 1e-30
"""A rate that moves nothing; some optimizers refuse a zero."""


class _SpentError(Exception):
    """The budget is not enough for another run."""


class Search:
    """The runs, and what follows from them.

    Args:
        runner: trains.
        plan: what is to be done.
        report: is told what is being done, and the steps done.
    """

    def __init__(self, runner: Runner, plan: Plan, report: Callable[[str, int], object] | None = None) -> None:
        self._runner, self._plan = runner, plan
        self._report = report or (lambda doing, steps: None)
        self.spent = 0
        self.undone: list[str] = []
        self.start = Start({})
        self.sweeps: list[Sweep] = []
        self.runs: list[RateRuns] = []
        self.largest_stable: float | None = None
        self.unstable_at: float | None = None
        self.warmup: Warmup | None = None

    def run(self) -> None:
        """Do the whole search, as far as the budget goes."""
        self._look_at_start()
        self._sweep()
        stages = {
            "the rates around the best one": self._scan,
            "your own rate": self._try_own,
            "the largest stable rate to its full precision": self._find_edge,
            "rates between those": self._refine,
            "the warm-up": self._try_warmup,
        }
        for what, stage in stages.items():
            try:
                stage()
            except _SpentError:
                self.undone.append(what)
        self._judge_edge()

    def _train(self, doing: str, seed: int, rates: Sequence[float], hopeless: Callable[[int, float], bool]) -> list[float]:
        if self.spent + len(rates) > self._plan.budget:
            raise _SpentError
        losses = self._runner(seed, rates, hopeless)
        self.spent += len(losses)
        self._report(doing, self.spent)
        return losses

    def _look_at_start(self) -> None:
        steps = max(self._plan.steps, self._plan.sweep_steps)
        found = {
            seed: tuple(self._train("the start", seed, [_NO_RATE] * steps, lambda step, loss: False))
            for seed in self._plan.seeds
        }
        for seed, losses in found.items():
            if len(losses) < steps or not math.isfinite(losses[-1]):
                raise NonFiniteError(
                    f"the loss of the start is {losses[-1]} on batch {len(losses) - 1} of the order of seed {seed}, before "
                    "any training: is there a NaN in its data, or are all of its targets ignored? Leave such batches out"
                )
        self.start = Start(found)

    def _sweep(self) -> None:
        rates = self._plan.sweep_rates
        for seed in self._plan.seeds:
            losses = self._train("range test", seed, rates, self.start.hopeless(seed))
            self.sweeps.append(Sweep(seed, tuple(rates), tuple(losses), self.start.losses[seed][: len(rates)]))

    # Runs at one rate

    @property
    def known(self) -> list[RateRuns]:
        """The runs without a warm-up, by their rates."""
        return sorted(self.runs, key=lambda one: one.lr)

    @property
    def best(self) -> RateRuns | None:
        """The runs at the rate with the largest mean descent."""
        return max((t for t in self.runs if t.whole and not t.diverged), key=lambda t: t.gain, default=None)

    def _try(self, lr: float, warmup: int = 0, enough: bool = False) -> RateRuns:
        """Run all seeds at a rate; with ``enough``, only up to the first that shows it to be unstable."""
        near = next((t for t in self.runs if _same(t.lr, lr)), None) if not warmup else None
        if near is not None and (near.whole or enough):
            return near
        plan = self._plan
        rates = [lr * min(1.0, (step + 1) / (warmup + 1)) for step in range(plan.steps)]
        losses, gains = [], []
        for seed in plan.seeds:
            done = self._train(f"{lr:.2g}", seed, rates, self.start.hopeless(seed))
            whole = len(done) == plan.steps and math.isfinite(done[-1])
            end = fmean(done[-plan.window :]) if whole else math.inf
            start = fmean(self.start.losses[seed][plan.steps - plan.window : plan.steps])
            losses.append(end)
            gains.append(start - end)
            if enough and not self._stable(lr, gains):
                break
        rest = [math.nan] * (len(plan.seeds) - len(losses))
        found = RateRuns(lr, (*losses, *rest), (*gains, *rest), self._stable(lr, gains), warmup)
        if not warmup:
            self.runs = [t for t in self.runs if t is not near] + [found]
        return found

    def _stable(self, lr: float, gains: Sequence[float]) -> bool:
        """Whether no run ends above its start, and none above the best rate has lost what there is to learn."""
        best, noise = self.best, self.start.noise
        ceiling = max(noise, best.gain) if best else noise
        if any(gain == -math.inf or gain < -ceiling for gain in gains):
            return False
        if best is None or lr <= best.lr or not self._clear(best):
            return True
        return all(gain >= _LOST * most for gain, most in zip(gains, best.gains, strict=False))

    @property
    def _noise_of_run(self) -> float:
        """Standard error of the mean loss over the last steps of a run."""
        return self.start.noise / math.sqrt(self._plan.window)

    def _clear(self, one: RateRuns) -> bool:
        """Whether a descent is beyond the noise of seeds, that of the batches of a run, and a hundredth of the loss."""
        least = max(2 * _standard_error(one.gains), self._noise_of_run, _LITTLE * abs(self.start.mean))
        return one.gain > least or (one.gain > 0 and least == 0)

    def _judged(self) -> list[RateRuns]:
        """The runs, each judged by the best one that is known by now."""
        self.runs = [
            RateRuns(t.lr, t.losses, t.gains, self._stable(t.lr, [g for g in t.gains if not math.isnan(g)]))
            for t in self.runs
        ]
        return self.known

    # Stages

    def _within(self, lr: float) -> bool:
        return self._plan.min_lr / _SAME <= lr <= self._plan.max_lr * _SAME

    def _scan(self) -> None:
        """Rates from where the sweeps were lowest: upwards to one that is unstable, downwards to ones that are worse."""
        plan = self._plan
        first = min(max(float(np.median([sweep.lowest for sweep in self.sweeps])), plan.min_lr), plan.max_lr)
        self._try(first)
        lr = first * _STEP
        while self._within(lr) and self._try(lr, enough=True).stable:
            lr *= _STEP
        if not self._within(lr):
            self._try(plan.max_lr, enough=True)
        lr = first / _STEP
        while self._within(lr):
            self._try(lr)
            best, lowest = self.best, self.known[0]
            if best is not None and lowest.gain < 0.9 * best.gain and sum(t.lr < best.lr for t in self.known) > 1:
                break
            lr /= _STEP

    def _try_own(self) -> None:
        if self._plan.own is not None:
            self._try(self._plan.own)

    def _refine(self) -> None:
        """Rates halfway to the neighbours of the best one."""
        best = self.best
        if best is not None and self._clear(best):
            for lr in (best.lr / math.sqrt(_STEP), best.lr * math.sqrt(_STEP)):
                edge = self.unstable_at or math.inf
                if self._within(lr) and lr < edge:
                    self._try(lr)

    def _bracket(self) -> tuple[float | None, float | None]:
        """The highest rate below all that are unstable, and the lowest of these."""
        known = self._judged()
        bad = next((t.lr for t in known if not t.stable), None)
        good = [t.lr for t in known if t.stable and (bad is None or t.lr < bad)]
        return max(good, default=None), bad

    def _judge_edge(self) -> None:
        self.largest_stable, self.unstable_at = self._bracket()

    def _find_edge(self) -> None:
        """Bisect between the highest stable rate and the lowest that is not."""
        self._judge_edge()
        while self.largest_stable is not None and self.unstable_at is not None:
            low, high = self.largest_stable, self.unstable_at
            middle = math.sqrt(low * high)
            if high / low <= self._plan.precision:
                break
            self._try_between(middle)
            self._judge_edge()

    def _try_between(self, lr: float) -> None:
        near = [t for t in self.runs if _same(t.lr, lr)]
        self.runs = [t for t in self.runs if t not in near]
        try:
            self._try(lr, enough=True)
        finally:
            self.runs += near

    def _try_warmup(self) -> None:
        edge, steps = self.largest_stable, self._plan.warmup_steps
        if edge is None or self.unstable_at is None or steps == 0 or self.best is None or not self._clear(self.best):
            return
        warm: list[RateRuns] = []
        cold: list[RateRuns] = []
        for factor in _FACTORS:
            warm.append(self._try(factor * edge, steps, enough=True))
            cold.append(self._try(factor * edge, enough=True))
            if not warm[-1].stable and not cold[-1].stable:
                break
        done = [t for t in warm if t.whole and t.stable]
        better = bool(done) and self._clearly_lower(min(done, key=lambda t: t.loss), self.best)
        self.warmup = Warmup(steps, _reached(warm), max(1, _reached(cold)), tuple(warm), tuple(cold), better)

    def _clearly_lower(self, one: RateRuns, other: RateRuns) -> bool:
        differences = [b - a for a, b in zip(one.losses, other.losses, strict=True)]
        return fmean(differences) > 2 * _standard_error(differences) and fmean(differences) > 0

    # What follows

    def suggestion(self) -> tuple[float | None, tuple[float, float] | None, str]:
        """The rate with the lowest loss at the end, its interval over seeds, and the reason if there is no such rate."""
        plan, best = self._plan, self.best
        steps = counted(plan.steps, "step")
        if best is None:
            lowest = f", the lowest of them {self.known[0].lr:.2g}" if self.known else ""
            return None, None, f"every rate that was run diverges within {steps}{lowest}"
        lrs, table = self._table()
        interval = _interval(lrs, table)
        if self._disagree(best, table):
            each = sorted(lrs[table.argmax(0)])
            between = f"between {each[0]:.2g} and {each[-1]:.2g}"
            return None, interval, f"the seeds disagree: their best rates lie {between}, more than a decade apart"
        if not self._clear(best):
            fall = f"from {self.start.mean:.4g} by {max(best.gain, 0):.2g} within {steps} at best"
            return None, None, f"the loss hardly falls at any rate: {fall}, where batches differ by {self.start.noise:.2g}"
        if best.lr == lrs[0]:
            return None, interval, f"the lowest rate that was run, {best.lr:.2g}, is the best; a better one may lie below"
        if best.lr == lrs[-1] and self.unstable_at is None:
            return None, interval, f"the highest rate that was run, {best.lr:.2g}, is the best; a better one may lie above"
        return _peak(lrs, table.mean(1)), interval, ""

    def _disagree(self, best: RateRuns, table: np.ndarray) -> bool:
        """Whether the best rates of the seeds are more than a decade apart, and it matters: a plateau has no best rate."""
        lrs, _ = self._table()
        each, most = lrs[table.argmax(0)], table.max(0)
        if each.max() <= 10 * each.min():
            return False
        least = max(3 * self._noise_of_run, _LITTLE * abs(self.start.mean))
        return bool(most.min() > least and most.mean() - best.gain > _LOST * most.mean())

    def _table(self) -> tuple[np.ndarray, np.ndarray]:
        """The rates that every seed was run at, and the gains, shape (rates, seeds)."""
        whole = [t for t in self.known if t.whole]
        return np.array([t.lr for t in whole]), np.array([t.gains for t in whole])


def _same(one: float, other: float) -> bool:
    return 1 / _SAME < one / other < _SAME


def _reached(runs: Sequence[RateRuns]) -> int:
    """The largest factor up to which every one was stable; 0 if not even the first was."""
    reached = 0
    for factor, one in zip(_FACTORS, runs, strict=False):
        if not one.stable:
            break
        reached = factor
    return reached


def _standard_error(values: Sequence[float]) -> float:
    return float(np.std(values, ddof=1) / math.sqrt(len(values))) if len(values) > 1 else 0.0


def _peak(lrs: np.ndarray, gains: np.ndarray) -> float:
    """The rate with the largest gain: the vertex of the parabola through it and its neighbours, over log rates."""
    i = int(np.argmax(gains))
    if not 0 < i < len(lrs) - 1 or not np.isfinite(gains[i - 1 : i + 2]).all():
        return float(lrs[i])
    x, y = np.log(lrs[i - 1 : i + 2]), gains[i - 1 : i + 2]
    left, right = (y[1] - y[0]) / (x[1] - x[0]), (y[2] - y[1]) / (x[2] - x[1])
    curvature = (right - left) / (x[2] - x[0])
    if curvature >= 0:
        return float(lrs[i])
    vertex = (x[0] + x[1]) / 2 - left / (2 * curvature)
    return float(np.exp(np.clip(vertex, x[0], x[2])))


def _interval(lrs: np.ndarray, table: np.ndarray) -> tuple[float, float] | None:
    """Where the best rate lies over resamples of the seeds, 95 % of them; ``None`` for one seed.

    They are drawn for each rate by itself: near the largest stable rate, what two runs of a seed share is soon lost.
    """
    rates, seeds = table.shape
    if seeds < 2:
        return None
    drawn = np.random.default_rng(0).integers(seeds, size=(_DRAWS, rates, seeds))
    found = [_peak(lrs, np.take_along_axis(table, draw, 1).mean(1)) for draw in drawn]
    low, high = np.percentile(found, [2.5, 97.5])
    return float(low), float(high)
