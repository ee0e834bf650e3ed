"""The runs from which learning rates are found: sweeps, and runs at one rate, each from the start."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from statistics import fmean
from typing import Protocol

import numpy as np

__all__ = ["Plan", "RateRuns", "Runner", "Start", "Sweep", "Warmup"]

_HOPELESS = 100.0
"""A run whose loss has risen by this many times its size at the start is ended: early bumps are far smaller."""

_SMOOTHING = 0.8
"""Weight of what was before in the smoothed loss of a sweep: the mean of some five steps."""


class Runner(Protocol):
    """A function that trains from the start, always the same one, with a rate for each step."""

    def __call__(self, seed: int, rates: Sequence[float], hopeless: Callable[[int, float], bool]) -> list[float]:
        """The losses of the steps, each before its update; a run ends early with a loss that is not finite or hopeless.

        Args:
            seed: of the order of the batches and of what the model draws.
            rates: one for each step.
            hopeless: says of a step and its loss whether there is no use in going on.
        """


@dataclass(frozen=True)
class Plan:
    """The plan of a search.

    Attributes:
        seeds: one for each order of batches.
        steps: of a run at one rate.
        sweep_steps: of a sweep.
        warmup_steps: of a warm-up, at the beginning of a run of ``steps``.
        min_lr: the lowest rate.
        max_lr: the highest.
        precision: factor within which the largest stable rate is found.
        budget: training steps that all of it may cost.
        own: the user's rate, if there is one.
    """

    seeds: tuple[int, ...]
    steps: int
    sweep_steps: int
    warmup_steps: int
    min_lr: float
    max_lr: float
    precision: float
    budget: int
    own: float | None

    @property
    def window(self) -> int:
        """Last steps of a run, over which its loss is averaged."""
        return max(1, self.steps // 5)

    @property
    def sweep_rates(self) -> list[float]:
        """The rates of a sweep."""
        return [float(rate) for rate in np.geomspace(self.min_lr, self.max_lr, self.sweep_steps)]

    @property
    def least(self) -> int:
        """The number of steps without which nothing can be said."""
        return len(self.seeds) * (max(self.steps, self.sweep_steps) + self.sweep_steps + 3 * self.steps)


@dataclass(frozen=True)
class Start:
    """The loss of the start, untrained, on the batches of every seed.

    Attributes:
        losses: by seed, for each step; what later runs of that seed are compared with, batch by batch.
    """

    losses: dict[int, tuple[float, ...]] = field(repr=False)

    @property
    def mean(self) -> float:
        """The mean loss over all batches."""
        return fmean(loss for losses in self.losses.values() for loss in losses)

    @property
    def noise(self) -> float:
        """Standard deviation of the loss from batch to batch."""
        return float(np.std([loss for losses in self.losses.values() for loss in losses]))

    def hopeless(self, seed: int) -> Callable[[int, float], bool]:
        """For a seed, whether the loss of a step is so high that the run is given up."""
        most = _HOPELESS * max(abs(self.mean), self.noise)
        return lambda step, loss: loss - self.losses[seed][step] > most


@dataclass(frozen=True)
class Sweep:
    """A range test: one run in which the rate rises from step to step.

    Attributes:
        seed: of the order of batches.
        rates: of each step.
        losses: before each step, up to where the run was given up.
        start: the losses of the start on the same batches.
    """

    seed: int
    rates: tuple[float, ...] = field(repr=False)
    losses: tuple[float, ...] = field(repr=False)
    start: tuple[float, ...] = field(repr=False)

    @cached_property
    def curve(self) -> tuple[float, ...]:
        """By how much the loss is above that of the start on the same batch, smoothed over some five steps."""
        smooth, weight, found = 0.0, 0.0, []
        for loss, start in zip(self.losses, self.start, strict=False):
            if not math.isfinite(loss):
                break
            smooth = _SMOOTHING * smooth + (1 - _SMOOTHING) * (loss - start)
            weight = _SMOOTHING * weight + (1 - _SMOOTHING)
            found.append(smooth / weight)
        return tuple(found)

    @property
    def lowest(self) -> float:
        """The rate at which the smoothed loss is lowest."""
        return self.rates[int(np.argmin(self.curve))] if self.curve else self.rates[0]

    @property
    def steepest(self) -> float:
        """The rate at which the smoothed loss falls fastest per step, which finders commonly suggest."""
        if len(self.curve) < 2:
            return self.rates[0]
        return self.rates[int(np.argmin(np.gradient(self.curve)))]

    def diverged_at(self, noise: float) -> float | None:
        """The first rate at which the loss exceeds that of the start by more than it had fallen, if there is one.

        Args:
            noise: what it has to be above at least.
        """
        deepest = 0.0
        for rate, value in zip(self.rates, self.curve, strict=False):
            deepest = max(deepest, -value)
            if value > max(noise, deepest):
                return rate
        ended = len(self.curve) < len(self.losses) or len(self.losses) < len(self.rates)
        return self.rates[min(len(self.losses), len(self.rates)) - 1] if ended else None


@dataclass(frozen=True)
class RateRuns:
    """Runs at one rate from the start, one for each seed.

    Attributes:
        lr: the rate; the peak, with a warm-up.
        losses: mean loss over the last fifth of the steps, by seed; infinite where it diverged, nan where a run of another
            seed was enough.
        gains: by how much that is below the loss of the start on the same batches; minus infinity where it diverged.
        stable: whether every run went well; see ``LearningRates.largest_stable``.
        warmup: steps of the warm-up.
    """

    lr: float
    losses: tuple[float, ...]
    gains: tuple[float, ...]
    stable: bool = True
    warmup: int = 0

    @property
    def whole(self) -> bool:
        """Whether every seed was run."""
        return not any(math.isnan(loss) for loss in self.losses)

    @property
    def loss(self) -> float:
        """Mean over the seeds that were run; infinite if one diverged."""
        return fmean(loss for loss in self.losses if not math.isnan(loss))

    @property
    def gain(self) -> float:
        """Mean over the seeds that were run; minus infinity if one diverged."""
        return fmean(gain for gain in self.gains if not math.isnan(gain))

    @property
    def diverged(self) -> int:
        """How many runs diverged."""
        return sum(gain == -math.inf for gain in self.gains)


@dataclass(frozen=True)
class Warmup:
    """Runs above the largest stable rate, with and without a warm-up.

    Attributes:
        steps: of the warm-up, out of those of a run.
        factor: the largest multiple of the largest stable rate, of 1, 2, 4 and 8, that is stable with it, as are the ones
            below; 0 if none is.
        without: likewise without a warm-up, at least 1.
        warm: the runs with it.
        cold: the runs without it, at the same rates.
        better: whether the lowest loss with a warm-up is below the lowest of all runs without, beyond two standard errors
            over the seeds.
    """

    steps: int
    factor: int
    without: int
    warm: tuple[RateRuns, ...]
    cold: tuple[RateRuns, ...]
    better: bool
