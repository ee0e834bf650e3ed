"""The race: runs from several starts side by side, of which the worse half is dropped at each of a few looks."""

from __future__ import annotations

import copy
import math
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from statistics import fmean
from typing import Any

from torch import Tensor, nn

from initopt._support.errors import InitoptWarning
from initopt._support.progress import Report
from initopt.choice.batches import Batches
from initopt.choice.starts import make_start, nominal_steps
from initopt.comparison.spec.initialization import Initialization
from initopt.model.losses import LossFunction, as_loss
from initopt.model.parameters import trainable_parameters
from initopt.training.looks import losses_on
from initopt.training.optimizers import OptimizerFactory, make_optimizer
from initopt.training.steps import Course, OwnStep, Trainer, clipping, train_steps

__all__ = ["Entrant", "Plan", "Race", "Run", "plan_race"]

_FINISHERS = 3
"""Starts beside the network's own that are trained to the end, at least."""

_LAST_LOOKS = (0.8, 0.9)
"""Where in the training there are looks beside the one at the end: one alone depends on the last few batches."""


@dataclass(frozen=True)
class Plan:
    """Who runs how far.

    Attributes:
        rungs: numbers of training steps after which the worse half is dropped; the last one is the end.
        runners: how many starts, at a rate each, run to each of them.
        initialization_steps: what making the starts costs in training steps, by a rough rule, over all seeds.
        seeds: how many runs each has.
    """

    rungs: tuple[int, ...]
    runners: tuple[int, ...]
    initialization_steps: int
    seeds: int

    @property
    def training_steps(self) -> int:
        """Training steps over all runs, if none diverges."""
        before = (0, *self.rungs[:-1])
        return self.seeds * sum(
            runners * (end - begin) for runners, end, begin in zip(self.runners, self.rungs, before, strict=True)
        )

    @property
    def cost(self) -> int:
        """All of it in training steps."""
        return self.training_steps + self.initialization_steps


def plan_race(starts: Sequence[Initialization], rates: int, steps: int, seeds: int, budget: int | None) -> Plan:
    """Say who runs how far: half are dropped after a quarter of the steps, and half of the others after half.

    Args:
        starts: the network's own first.
        rates: learning rates of each.
        steps: the most training steps of a run.
        seeds: runs of each start at each rate.
        budget: training steps that all of it may cost; runs are made shorter until they fit.

    Raises:
        ValueError: if the budget is too small for runs of ten steps; the message says what is enough.
    """
    challengers = len(starts) * rates - 1
    cost = seeds * sum(map(nominal_steps, starts))
    plan = _planned(challengers, steps, seeds, cost)
    if budget is None or plan.cost <= budget:
        return plan
    fitting = [_planned(challengers, fewer, seeds, cost) for fewer in range(min(steps, 10), steps)]
    affordable = [plan for plan in fitting if plan.cost <= budget]
    if not affordable:
        least = (fitting or [plan])[0]
        raise ValueError(
            f"a budget of {budget} training steps is too small: {len(starts)} starts at {rates} rate(s) with {seeds} seeds "
            f"cost {least.cost} for runs of {least.rungs[-1]} steps, {least.initialization_steps} of them for making the "
            "starts; raise the budget, or give fewer or cheaper starts"
        )
    return affordable[-1]


def _planned(challengers: int, steps: int, seeds: int, cost: int) -> Plan:
    rungs = sorted({max(1, steps // 4), max(1, steps // 2), steps})
    runners = [challengers]
    for _ in rungs[1:]:
        runners.append(min(runners[-1], max(_FINISHERS, math.ceil(runners[-1] / 2))))
    if runners[-1] == challengers:  # nobody would be dropped
        rungs, runners = [steps], [challengers]
    return Plan(tuple(rungs), tuple(count + 1 for count in runners), cost, seeds)


@dataclass
class Run:
    """A training from a start, at a rate, with a seed.

    Attributes:
        seed: of all that is drawn.
        course: of its training losses.
        looks: losses on each batch held out, by the number of training steps before.
    """

    seed: int
    course: Course = field(default_factory=Course)
    looks: dict[int, list[float]] = field(default_factory=dict)
    trainer: Trainer | None = None
    batches: Iterator[Any] = field(default_factory=lambda: iter(()))

    def final(self) -> list[float]:
        """Losses on each batch held out, the mean of the looks of the last fifth of training; infinite if it diverged."""
        last = max(self.looks)
        chosen = [losses for number, losses in self.looks.items() if number >= _LAST_LOOKS[0] * last]
        return [math.inf if self.course.diverged else fmean(losses) for losses in zip(*chosen, strict=True)]

    def training_loss(self) -> float:
        """The mean over the last fifth of the steps; infinite if it diverged."""
        losses = self.course.losses
        return math.inf if self.course.diverged or not losses else fmean(losses[-max(1, len(losses) // 5) :])


@dataclass
class Entrant:
    """A start at a rate.

    Attributes:
        start: what it is.
        lr: the rate of its first group of parameters.
        is_own: whether it is the network's own start at the user's own rate.
        runs: one for each seed.
        initialization_seconds: what making the start costs, the mean over the seeds; 0 for the network's own.
        failure: why it could not be made; ``""`` if it could.
        dropped: after how many steps it was dropped; ``None`` if it came to the end.
    """

    start: Initialization
    lr: float
    is_own: bool
    runs: list[Run] = field(default_factory=list)
    initialization_seconds: float = 0.0
    failure: str = ""
    dropped: int | None = None

    @property
    def diverged(self) -> int:
        """How many of its runs have diverged."""
        return sum(run.course.diverged is not None for run in self.runs)

    def loss(self) -> float:
        """Mean loss on the batches held out at the last look."""
        return fmean(fmean(run.final()) for run in self.runs) if self.runs and not self.failure else math.inf


@dataclass
class Race:
    """Everything that runs share.

    Attributes:
        make_model: gives a new model for a seed, with its own start.
        batches: which all of them see, in the same order for the same seed.
        optimizer: what makes the optimizer.
        places: where an optimizer that is given as such has which parameter.
        loss_fn: the user's.
        step: a training step of the user's own.
        clip_grad_norm: bound on the gradient norm in training.
        seeds: of the runs.
        report: is told of each run to a rung.
    """

    make_model: Callable[[int], nn.Module]
    batches: Batches
    optimizer: OptimizerFactory
    places: dict[int, int] | None
    loss_fn: LossFunction | None
    step: OwnStep | None
    clip_grad_norm: float | None
    seeds: Sequence[int]
    report: Report
    seconds: float = 0.0
    """Time of all training steps."""
    steps: int = 0
    """Training steps done."""
    looks: int = 0
    """Batches that a model was judged by."""
    end: int = 0
    """Training steps of a run that comes to the end."""

    def run(self, starts: Sequence[Initialization], rates: Sequence[float], plan: Plan) -> list[Entrant]:
        """Run it.

        Args:
            starts: the network's own first.
            rates: the user's own first.
            plan: who runs how far.
        """
        self.end = plan.rungs[-1]
        entrants = [Entrant(start, lr, not start.steps and lr == rates[0]) for start in starts for lr in rates]
        self._begin(entrants, starts, plan.rungs[0])
        running = [entrant for entrant in entrants if not entrant.failure]
        for place, rung in enumerate(plan.rungs[1:], 1):
            challengers = sorted((e for e in running if not e.is_own), key=lambda e: (e.diverged, e.loss()))
            kept = challengers[: plan.runners[place] - 1]
            for entrant in challengers[plan.runners[place] - 1 :]:
                self._drop(entrant, plan.rungs[place - 1])
            running = [entrant for entrant in running if entrant.is_own or entrant in kept]
            for entrant in running:
                for run in entrant.runs:
                    self._go_on(run, rung)
        for entrant in entrants:
            for run in entrant.runs:
                run.trainer = None
        return entrants

    def _begin(self, entrants: Sequence[Entrant], starts: Sequence[Initialization], rung: int) -> None:
        """Make all starts, and train from them up to the first rung."""
        for seed in self.seeds:
            own = self.make_model(seed)
            for start in starts:
                mine = [entrant for entrant in entrants if entrant.start is start and not entrant.failure]
                if not mine:
                    continue
                model = copy.deepcopy(own)
                begun = time.perf_counter()
                try:
                    with warnings.catch_warnings():
                        warnings.simplefilter("ignore", InitoptWarning)
                        make_start(model, start, self.batches.training, self.loss_fn, seed)
                except Exception as error:  # whatever a start does not bear: the race goes on without it
                    for entrant in mine:
                        entrant.failure = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
                        entrant.runs.clear()
                    continue
                seconds = (time.perf_counter() - begun) / len(self.seeds) if start.steps else 0.0
                for entrant in mine:
                    entrant.initialization_seconds += seconds
                    copied = model if entrant is mine[-1] else copy.deepcopy(model)
                    run = Run(seed, trainer=self._trainer(copied, entrant.lr), batches=self.batches.order(seed))
                    entrant.runs.append(run)
                    self._go_on(run, rung)

    def _trainer(self, model: nn.Module, lr: float) -> Trainer:
        if not model.training:
            model.train()
        parameters: list[Tensor] = [parameter.value for parameter in trainable_parameters(model)]
        optimizer = make_optimizer(self.optimizer, parameters, self.places, lr)
        clip = clipping(optimizer, self.clip_grad_norm)
        return Trainer(model, optimizer, as_loss(self.loss_fn), own=self.step, clip=clip)

    def _go_on(self, run: Run, rung: int) -> None:
        """Train up to a rung, and look."""
        looks = {rung, *(round(share * rung) for share in _LAST_LOOKS)} if rung == self.end else {rung}
        assert run.trainer is not None
        for stop in sorted(looks):
            missing = stop - run.course.steps
            if missing <= 0 or run.course.diverged:
                continue
            begun = time.perf_counter()
            before = run.course.steps
            train_steps(run.trainer, islice(run.batches, missing), run.seed, run.course)
            self.seconds += time.perf_counter() - begun
            self.steps += run.course.steps - before
            losses = [math.inf] * len(self.batches.held_out)
            if not run.course.diverged:
                losses = losses_on(run.trainer.model, self.batches.held_out, run.trainer.loss, run.seed)
                self.looks += len(losses)
                if not all(map(math.isfinite, losses)):
                    run.course.diverged = f"the loss on batches held out is {fmean(losses)} after step {run.course.steps}"
            run.looks[run.course.steps] = losses
        if rung == self.end and not run.course.diverged:
            run.course.end(run.training_loss())
        if run.trainer.own is None:
            run.trainer.optimizer.zero_grad()  # whose memory the others need
        self.report(f"{run.course.steps} steps")

    def _drop(self, entrant: Entrant, rung: int) -> None:
        entrant.dropped = rung
        for run in entrant.runs:
            run.trainer = None
