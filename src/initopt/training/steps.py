"""Training steps, the losses that they leave, and when these are those of a run that diverged."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from statistics import fmean, median, pstdev
from typing import Any

import torch
from torch import Tensor, nn

from initopt._support.errors import LossError
from initopt.batches.nested import batch_size, map_tensors, to_device
from initopt.model.losses import Loss
from initopt.model.randomness import Stream, seeded
from initopt.training.optimizers import needs_closure

__all__ = [
    "OF_ANOTHER_MODEL",
    "Course",
    "OwnStep",
    "Trainer",
    "check_step",
    "clipping",
    "last_fifth",
    "only_own_gradients",
    "parameters_of",
    "refuse_closure",
    "train_steps",
]

OwnStep = Callable[[nn.Module, torch.optim.Optimizer, Any], Any]
"""A training step of the user's own: changes a model by an optimizer on a batch, and returns the loss."""

OF_ANOTHER_MODEL = (
    "the loss gives no gradient to any parameter that is trained: it is the loss of another model than the one that "
    "loss_fn is given, which may be a copy; compute it with the first argument of loss_fn"
)
"""What is wrong with a loss that holds the model of the caller."""

FAR_ABOVE = 3.0
"""A training loss that ends this many times as high as it began is that of a run that diverged."""

_EXPLODED = 30.0
"""And one of which all losses of the end are this many times as high as that of the one batch before the first step."""


def check_step(step: OwnStep | None) -> None:
    """Refuse what cannot be a training step of the user's own.

    Raises:
        TypeError: the message says what can.
    """
    if step is not None and not callable(step):
        raise TypeError(
            f"step must be a function (model, optimizer, batch) -> loss that does one training step; got "
            f"{type(step).__name__}"
        )


def refuse_closure(optimizer: torch.optim.Optimizer, step: OwnStep | None) -> None:
    """Refuse an optimizer whose step needs a closure, where there is no training step of the user's own to call it.

    Raises:
        ValueError: saying what to give.
    """
    if step is None and needs_closure(optimizer):
        raise ValueError(
            f"{type(optimizer).__name__} computes the loss several times in a step: give a step=(model, optimizer, batch) "
            "-> loss"
        )


@dataclass
class Trainer:
    """A model and its optimizer, with what a training step does: zeroed gradients, loss, backward pass, clipping, update.

    Attributes:
        model: is changed.
        optimizer: of its parameters; its rates may change between steps, see :class:`initopt.training.optimizers.Rates`.
        loss: what is minimized.
        own: a step of the user's own, which replaces all of this but the loss as a number.
        backward: the backward pass from the loss.
        clip: is called between the backward pass and the update.
    """

    model: nn.Module
    optimizer: Any
    loss: Loss
    own: OwnStep | None = None
    backward: Callable[[Tensor], object] = torch.Tensor.backward
    clip: Callable[[], object] | None = None

    def step(self, batch: Any) -> Tensor:
        """Do a training step, and return the loss before it, detached, without waiting for the device.

        Args:
            batch: on the device of the model.

        Raises:
            LossError: if a step of the user's own does not return a loss, or the loss is that of another model.
        """
        if self.own is not None:
            return _as_scalar(self.own(self.model, self.optimizer, batch))
        self.optimizer.zero_grad()
        loss = self.loss(self.model, batch, batch_size(batch))
        self.differentiate(loss)
        if self.clip is not None:
            self.clip()
        self.optimizer.step()
        return loss.detach()

    def differentiate(self, loss: Tensor) -> None:
        """Give the parameters the gradients of a loss.

        Raises:
            LossError: if none of them gets one, so that training would do nothing.
        """
        self.backward(loss)
        if all(parameter.grad is None for parameter in parameters_of(self.optimizer)):
            raise LossError(OF_ANOTHER_MODEL)


def _as_scalar(value: Any) -> Tensor:
    if isinstance(value, Tensor) and value.numel() == 1:
        return value.detach().reshape(())
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return torch.tensor(float(value))
    raise LossError(
        "step must return the training loss of the batch, a number or a tensor of one; got "
        + (f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__)
    )


def parameters_of(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """The parameters of all groups that train."""
    return [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]


def only_own_gradients(optimizer: torch.optim.Optimizer) -> Callable[[Tensor], object]:
    """A backward pass that leaves other gradients alone: a loss that holds another model reaches the user's own."""
    parameters = parameters_of(optimizer)

    def backward(loss: Tensor) -> None:
        for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters, allow_unused=True), strict=True):
            parameter.grad = gradient

    return backward


def clipping(optimizer: torch.optim.Optimizer, max_norm: float | None) -> Callable[[], object] | None:
    """A function that clips the gradient of all parameters of an optimizer to a norm; ``None`` for no bound."""
    return None if max_norm is None else partial(torch.nn.utils.clip_grad_norm_, parameters_of(optimizer), max_norm)


def last_fifth(losses: Sequence[float]) -> Sequence[float]:
    """The losses of the last fifth of some steps, of one at least."""
    return losses[-max(1, len(losses) // 5) :]


@dataclass
class Course:
    """The training losses of a run, up to one that is not finite.

    Attributes:
        losses: of each step, before it.
        diverged: why the run counts as diverged; ``None`` if it does not.
    """

    losses: list[float] = field(default_factory=list)
    diverged: str | None = None

    @property
    def steps(self) -> int:
        """Training steps done, one that gave no finite loss included."""
        return len(self.losses)

    def note(self, losses: Sequence[float]) -> list[float]:
        """Go on with the losses of further steps.

        Returns:
            Those that count: up to the first that is not finite, by which the run has diverged.
        """
        bad = next((number for number, loss in enumerate(losses) if not math.isfinite(loss)), None)
        counted = list(losses if bad is None else losses[: bad + 1])
        self.losses += counted
        if bad is not None:
            self.diverged = f"the training loss of step {self.steps} is {losses[bad]}"
        return counted

    def end(self) -> None:
        """Say at the end whether the run has diverged: whether its last fifth lies far above its first steps.

        Single batches differ, small ones by far more than three times. So the median of the first five steps stands for
        the beginning, and seven eighths of the last fifth have to lie above all five. Where losses are not above zero,
        "three times" of one says nothing, and the rise has to be beyond what single batches differ by, too. A run that
        explodes in the first steps is known by losses in the end that all lie far above the one before them.
        """
        if self.diverged or not self.losses:
            return
        begin, end = self.losses[:5], sorted(last_fifth(self.losses))
        first, last = median(begin), fmean(end)
        size = abs(first) if min(self.losses) > 0 else max(abs(first), pstdev(end))
        if last - first > (FAR_ABOVE - 1) * size and (end[len(end) // 8] > max(begin) or len(self.losses) < 10):
            self.diverged = f"the training loss is {last:.3g} in the end, and was {first:.3g} in the first steps"
        elif end[0] > _EXPLODED * self.losses[0] > 0:
            self.diverged = (
                f"the training loss is {last:.3g} in the end, and was {self.losses[0]:.3g} before the first step"
            )


def train_steps(
    trainer: Trainer,
    batches: Iterable[Any],
    seed: int,
    course: Course | None = None,
    before: Callable[[int], object] | None = None,
) -> Course:
    """Train on some batches, in the modes that the model's modules have, until they end or the loss is not finite.

    What the model draws in a step follows from the seed and the number of the step alone: runs from several starts see the
    same noise, and a run that is broken off and goes on ends as if it had not been.

    Args:
        trainer: does the steps.
        batches: of any device; they stay as they are, whatever the model does to its inputs.
        seed: of what the model draws.
        course: of the steps before, to go on with; it is changed.
        before: is called before each step with its number, from 0 on, over all calls: to change the rates, say.

    Returns:
        The course of all steps.
    """
    course = Course() if course is None else course
    device = next(iter(trainer.model.parameters())).device
    for data in batches:
        if course.diverged:
            break
        if before is not None:
            before(course.steps)
        with seeded(seed, Stream.MODEL, course.steps), torch.enable_grad():
            loss = trainer.step(map_tensors(torch.clone, to_device(data, device)))
        course.note([float(loss)])
    return course
