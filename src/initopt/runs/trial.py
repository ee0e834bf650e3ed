"""A few training steps from the old weights and from the new ones, by the user's own optimizer."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import nn

from initopt._support.words import counted
from initopt.engines.gradients import mean_gradient, whole
from initopt.methods.base import Training
from initopt.model.parameters import Parameters
from initopt.model.preserve import Originals, weights_as
from initopt.model.problem import Problem
from initopt.model.randomness import seeded
from initopt.training.optimizers import Rates, make_optimizer, needs_closure
from initopt.training.steps import Trainer, clipping, train_steps

__all__ = ["Trial", "TrialRun", "check_training", "try_out"]

_SLOWER = 1 / 3
"""Of the learning rate, for new weights that do not bear the whole of it."""

_ERRORS = 3.0
"""Standard errors over the batches from which on a difference is clear."""

_MARGIN = 0.02
"""Share of the loss from which on a difference is clear: another order of the batches makes one of a percent or two."""


Outcome = Literal["better", "worse", "alike", "neither"]


@dataclass(frozen=True)
class TrialRun:
    """Some training steps from one start.

    Attributes:
        lr: learning rate, that of the optimizer's first group.
        course: the loss of each step's batch, before the step; it ends where it is no longer finite.
        begun: the loss before all steps, on each of the batches held back.
        losses: afterwards, on each of the batches held back; all infinite if the run has diverged.
    """

    lr: float
    course: list[float]
    begun: list[float]
    losses: list[float]

    @property
    def loss(self) -> float:
        """Mean of the losses."""
        return sum(self.losses) / len(self.losses)

    @property
    def learns(self) -> bool:
        """Whether the loss has clearly come down."""
        return _clearly_lower(self.losses, self.begun)

    @property
    def explodes(self) -> bool:
        """Whether the loss has clearly gone up."""
        return _clearly_lower(self.begun, self.losses)


@dataclass(frozen=True)
class Trial:
    """Old and new weights trained on the same batches in the same order, and judged on the same batches held back.

    Attributes:
        steps: training steps of each run.
        old: from the old weights.
        new: from the new ones.
        slower: from the new ones at a third of the learning rate, where they are worse, or learn nothing, at the whole.
    """

    steps: int
    old: TrialRun
    new: TrialRun
    slower: TrialRun | None = None

    @property
    def training_steps(self) -> int:
        """Steps of all runs together."""
        return sum(len(run.course) for run in (self.old, self.new, self.slower) if run is not None)

    @property
    def outcome(self) -> Outcome:
        """The outcome of the trial: what the new weights are beside the old ones.

        ``"worse"`` only where the old ones learn in these steps, or the loss of the new ones alone goes up: a network that
        does not learn is not what anybody wants back. ``"neither"`` if neither learns anything.
        """
        if _clearly_lower(self.new.losses, self.old.losses):
            return "better"
        if not self.old.learns and not self.new.learns and (self.old.explodes or not self.new.explodes):
            return "neither"
        worse = _clearly_lower(self.old.losses, self.new.losses)
        return "worse" if worse and (self.old.learns or self.new.explodes) else "alike"

    @property
    def bears_a_third(self) -> bool:
        """Whether the new weights at a third of the learning rate are clearly better than the old ones at the whole."""
        return self.slower is not None and _clearly_lower(self.slower.losses, self.old.losses)

    def __str__(self) -> str:
        after = f"after {counted(self.steps, 'training step')} at your learning rate {self.old.lr:g}"
        new, old = _in_words(self.new.loss), _in_words(self.old.loss)
        if self.outcome == "neither":
            return f"{after}, neither old weights nor new ones have learned anything (loss {old} and {new})"
        if self.outcome == "alike" and _clearly_lower(self.old.losses, self.new.losses):
            return f"{after}, the loss is {new} and falls, where that of the old weights stays at {old}"
        if self.outcome == "alike":
            return f"{after}, old weights and new ones cannot be told apart (loss {old} and {new})"
        return f"{after}, the loss is {new}, and with the old weights {old}"

    def advice(self) -> str | None:
        """The loss of the new weights at a third of the rate, as a sentence without its full stop."""
        if self.slower is None:
            return None
        at = f"At a third of your rate, {self.slower.lr:.3g},"
        if not math.isfinite(self.slower.loss):
            return f"{at} the new weights diverge, too"
        found = f"{at} the new weights come to a loss of {self.slower.loss:.3g}"
        if not self.bears_a_third:
            return f"{found}, which is not clearly better than the old ones at the whole of it"
        return f"{found}, better than the old ones at the whole of it: run this again with such an optimizer to have them"


def _in_words(loss: float) -> str:
    return f"{loss:.3g}" if math.isfinite(loss) else "infinite"


def _clearly_lower(one: Sequence[float], other: Sequence[float]) -> bool:
    """Whether losses are lower than others on the same batches, beyond the noise of these and of their order."""
    if not all(map(math.isfinite, one)):
        return False
    if not all(map(math.isfinite, other)):
        return True
    lower = torch.tensor(other, dtype=torch.float64) - torch.tensor(one, dtype=torch.float64)
    mean = float(lower.mean())
    error = float(lower.std(correction=1)) / math.sqrt(len(lower)) if len(lower) > 1 else 0.0
    return mean > _ERRORS * error and mean > _MARGIN * abs(sum(other) / len(other))


def check_training(training: Training, parameters: Parameters) -> None:
    """Refuse an optimizer that a trial cannot step with, before any work.

    Raises:
        TypeError: if it makes none, or one whose step needs a closure.
        ValueError: if it is one of another model, or its learning rate is 0.
    """
    made = _made(training, parameters)
    if needs_closure(made):
        raise TypeError(
            f"optimizer makes {type(made).__name__}, whose step evaluates the loss several times; initopt knows first "
            "steps of optimizers that take one gradient. Leave optimizer out"
        )
    if not Rates(made).first > 0:
        raise ValueError(
            f"the learning rate of optimizer is {Rates(made).first:g} (a schedule that begins with a warm-up?); pass "
            "functools.partial(torch.optim.AdamW, lr=...) with the rate that the training is going to have"
        )


def _made(training: Training, parameters: Parameters) -> torch.optim.Optimizer:
    values = [parameter.value for parameter in parameters.trainable]
    return make_optimizer(training.optimizer, values)


def try_out(
    problem: Problem,
    training: Training,
    batches: Sequence[Any],
    held: Sequence[Any],
    old: Originals,
    microbatch: int | None,
) -> Trial:
    """Train old and new weights for some steps each; the model has the new ones, before and after.

    The model runs as in the measurements: without dropout unless the method is in ``train_mode``, with batch norms on the
    statistics of the batch.

    Args:
        problem: the model, in measuring mode.
        training: how it is trained.
        batches: a training step each.
        held: the batches that the outcome is judged on.
        old: the old weights.
        microbatch: most samples to run at a time.
    """
    at_work = _AtWork(problem, training, batches, held, microbatch)
    new = {parameter: parameter.detach().clone() for parameter in old}
    trial = Trial(len(batches), at_work.run(old), at_work.run(new))
    if trial.outcome in ("better", "alike"):
        return trial
    return Trial(trial.steps, trial.old, trial.new, at_work.run(new, _SLOWER))


@dataclass(frozen=True)
class _AtWork:
    problem: Problem
    training: Training
    batches: Sequence[Any]
    held: Sequence[Any]
    microbatch: int | None

    def run(self, start: Originals, factor: float = 1.0) -> TrialRun:
        """Train from some weights, judge, and put the present weights back."""
        with weights_as(start):
            optimizer = _made(self.training, self.problem.parameters)
            rates = Rates(optimizer)
            rates.scale(factor)
            step = partial(self._step, itertools.count(1))
            trainer = Trainer(self.problem.model, optimizer, self.problem.loss, own=step)
            begun = self._losses()
            try:
                course = train_steps(trainer, self.batches, self.problem.seed)
            finally:
                optimizer.zero_grad(set_to_none=True)
            losses = [math.inf] * len(self.held) if course.diverged else self._losses()
            return TrialRun(rates.first * factor, course.losses, begun, losses)

    def _step(self, numbers: Iterator[int], model: nn.Module, optimizer: torch.optim.Optimizer, data: Any) -> float:
        """A training step, in as many parts as the engine takes."""
        parameters = [parameter.value for parameter in self.problem.parameters.trainable]
        batch, ranks = whole(self.problem.prepare(data, next(numbers))), self.problem.ranks
        loss, gradients = mean_gradient(self.problem, batch, parameters, self.microbatch)
        if ranks.size > 1:  # as distributed training does: the mean over processes
            shares = [None if g is None else g / ranks.size for g in gradients]
            loss, gradients = ranks.mean(loss, "a loss"), ranks.sum_gradients(shares, parameters, "gradients")
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        clip = clipping(optimizer, self.training.clip_grad_norm)
        if clip is not None:
            clip()
        optimizer.step()
        return loss

    def _losses(self) -> list[float]:
        return [self._loss(data) for data in self.held]

    def _loss(self, data: Any) -> float:
        """Mean loss of a batch, over all processes; infinite if it is not finite."""
        batch = whole(self.problem.prepare(data, 1))
        total = 0.0
        for part in self.problem.parts(batch, 0, self.microbatch):
            with torch.no_grad(), seeded(*part.seed):
                total += float(self.problem.part_loss(batch, part))
        mean = self.problem.ranks.mean(total, "a loss") if self.problem.ranks.size > 1 else total
        return mean if math.isfinite(mean) else math.inf
