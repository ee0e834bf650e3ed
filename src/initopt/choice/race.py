"""The race: runs from several starts side by side, of which the worse half is dropped at each of a few looks.

Where it ends close, the network's own start and those that are close to it run from further seeds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean

from initopt._support.progress import Report
from initopt.choice.judging import Difference
from initopt.choice.runs import Hands, Run, looks_at_the_end
from initopt.choice.starts import nominal_steps
from initopt.comparison.spec.initialization import Initialization

__all__ = ["Entrant", "Plan", "begin_runs", "plan_race", "run_race"]

_FINISHERS = 3
"""Starts beside the network's own that are trained to the end, at least."""


@dataclass(frozen=True)
class Plan:
    """How far each start runs.

    Attributes:
        rungs: numbers of training steps after which the worse half is dropped; the last one is the end.
        runners: number of starts, at a rate each, that run to each of them.
        initialization_steps: cost of making the starts in training steps, by a rough rule, over all seeds.
        seeds: number of runs of each.
        held_out: batches of a look.
        last_looks: number of looks at the end of a run.
    """

    rungs: tuple[int, ...]
    runners: tuple[int, ...]
    initialization_steps: int
    seeds: int
    held_out: int
    last_looks: int

    @property
    def training_steps(self) -> int:
        """Training steps over all runs, if none diverges."""
        before = (0, *self.rungs[:-1])
        return self.seeds * sum(
            runners * (end - begin) for runners, end, begin in zip(self.runners, self.rungs, before, strict=True)
        )

    @property
    def look_steps(self) -> int:
        """The cost of the looks in training steps, a third of one for each batch."""
        return _cost_of_looks(self.seeds * (sum(self.runners[:-1]) + self.last_looks * self.runners[-1]), self.held_out)

    @property
    def cost(self) -> int:
        """The whole cost in training steps."""
        return self.training_steps + self.initialization_steps + self.look_steps

    def affordable(self, entrants: Sequence[Entrant], seeds: int, budget: int | None) -> int:
        """How many of some further seeds of some entrants a budget allows, in training steps."""
        if budget is None:
            return seeds
        return next((n for n in range(seeds, 0, -1) if self.cost + self._cost_of_more(entrants, n) <= budget), 0)

    def _cost_of_more(self, entrants: Sequence[Entrant], seeds: int) -> int:
        starts = {entrant.start.name: nominal_steps(entrant.start) for entrant in entrants}
        looks = _cost_of_looks(seeds * len(entrants) * self.last_looks, self.held_out)
        return seeds * (self.rungs[-1] * len(entrants) + sum(starts.values())) + looks


def _cost_of_looks(number: int, held_out: int) -> int:
    return math.ceil(number * held_out / 3)


def plan_race(
    starts: Sequence[Initialization],
    rates: int,
    steps: int,
    seeds: int,
    held_out: int,
    budget: int | None,
    own_step: bool = False,
) -> Plan:
    """Plan how far each start runs: half are dropped after a quarter of the steps, and half of the others after half.

    Args:
        starts: the network's own first.
        rates: learning rates of each.
        steps: the most training steps of a run.
        seeds: runs of each start at each rate.
        held_out: batches of a look.
        budget: training steps that the race may cost; runs are made shorter until they fit.
        own_step: whether the training step is the user's own, after which there are several looks at the end.

    Raises:
        ValueError: if the budget is too small for runs of ten steps; the message says what is enough.
    """
    challengers = len(starts) * rates - 1
    cost = seeds * sum(map(nominal_steps, starts))
    plan = _planned(challengers, steps, seeds, held_out, cost, own_step)
    if budget is None or plan.cost <= budget:
        return plan
    shorter = range(min(steps, 10), steps)
    fitting = [_planned(challengers, fewer, seeds, held_out, cost, own_step) for fewer in shorter]
    affordable = [plan for plan in fitting if plan.cost <= budget]
    if not affordable:
        least = (fitting or [plan])[0]
        raise ValueError(
            f"a budget of {budget} training steps is too small: {len(starts)} starts at {rates} rate(s) with {seeds} seeds "
            f"cost {least.cost} for runs of {least.rungs[-1]} steps, {least.initialization_steps} of them for making the "
            "starts; raise the budget, or give fewer or cheaper starts"
        )
    return affordable[-1]


def _planned(challengers: int, steps: int, seeds: int, held_out: int, cost: int, own_step: bool) -> Plan:
    rungs = sorted({max(1, steps // 4), max(1, steps // 2), steps})
    runners = [challengers]
    for _ in rungs[1:]:
        runners.append(min(runners[-1], max(_FINISHERS, math.ceil(runners[-1] / 2))))
    if runners[-1] == challengers:  # nobody would be dropped
        rungs, runners = [steps], [challengers]
    last = len(looks_at_the_end(steps, own_step))
    return Plan(tuple(rungs), tuple(count + 1 for count in runners), cost, seeds, held_out, last)


@dataclass(eq=False)
class Entrant:
    """A start at a rate.

    Attributes:
        start: the start.
        lr: the rate of its first group of parameters.
        is_own: whether it is the network's own start at the user's own rate.
        runs: one for each seed.
        failure: why it does not run: it could not be made, or changes nothing; ``""`` if it does.
        dropped: after how many steps it was dropped; ``None`` if it came to the end.
        difference: of its loss to that of the network's own start, once it is judged.
    """

    start: Initialization
    lr: float
    is_own: bool
    runs: list[Run] = field(default_factory=list)
    failure: str = ""
    dropped: int | None = None
    difference: Difference | None = None

    @property
    def initialization_seconds(self) -> float:
        """The time that making the start takes, the mean over the seeds; 0 for the network's own."""
        return fmean(run.seconds_of_start for run in self.runs) if self.runs else 0.0

    @property
    def diverged(self) -> int:
        """The number of its runs that have diverged."""
        return sum(run.course.diverged is not None for run in self.runs)

    def loss(self) -> float:
        """Mean loss on the batches held out at the last look."""
        return fmean(fmean(run.final()) for run in self.runs) if self.runs and not self.failure else math.inf


def run_race(
    hands: Hands,
    starts: Sequence[Initialization],
    rates: Sequence[float],
    seeds: Sequence[int],
    plan: Plan,
    report: Report,
) -> list[Entrant]:
    """Run a race.

    Args:
        hands: does the runs.
        starts: the network's own first.
        rates: the user's own first.
        seeds: of the runs.
        plan: how far each start runs.
        report: is told of what is done.
    """
    entrants = [Entrant(start, lr, not start.steps and lr == rates[0]) for start in starts for lr in rates]
    begin_runs(hands, entrants, seeds, plan.rungs[0], report)
    running = [entrant for entrant in entrants if not entrant.failure]
    for place, rung in enumerate(plan.rungs[1:], 1):
        challengers = sorted((e for e in running if not e.is_own), key=lambda e: (e.diverged, e.loss()))
        kept = challengers[: plan.runners[place] - 1]
        for entrant in challengers[plan.runners[place] - 1 :]:
            entrant.dropped = plan.rungs[place - 1]
            for run in entrant.runs:
                run.trainer = None
        running = [entrant for entrant in running if entrant.is_own or entrant in kept]
        alive = [(e, i) for e in running for i, run in enumerate(e.runs) if run.trainer is not None]
        calls = [(entrant.runs[i], rung) for entrant, i in alive]
        for (entrant, i), run in zip(alive, hands.do("go_on", calls), strict=True):
            entrant.runs[i] = run
            report(f"{run.course.steps} steps")
    return entrants


def begin_runs(hands: Hands, entrants: Sequence[Entrant], seeds: Sequence[int], rung: int, report: Report) -> None:
    """Make the starts of some entrants with some seeds, and train from them up to a rung.

    Args:
        hands: does the runs.
        entrants: who run; they get a run for each seed.
        seeds: of the runs.
        rung: training steps of each.
        report: is told of what is done.
    """
    starts = {entrant.start.name: entrant.start for entrant in entrants}.values()
    of_start = {start.name: [entrant for entrant in entrants if entrant.start.name == start.name] for start in starts}
    calls = [(seed, start, [entrant.lr for entrant in of_start[start.name]], rung) for seed in seeds for start in starts]
    for (_, start, *_), begun in zip(calls, hands.do("begin", calls), strict=True):
        mine = of_start[start.name]
        if begun.failure or mine[0].failure:
            for entrant in mine:
                entrant.failure = entrant.failure or begun.failure
                entrant.runs.clear()
            continue
        for entrant, run in zip(mine, begun.runs, strict=True):
            entrant.runs.append(run)
        report(start.name)
