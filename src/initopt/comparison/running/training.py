"""One training run, from a start that is there already, with a curve of what it did."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from statistics import median
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from initopt.batches.nested import to_device
from initopt.comparison.running.batches import EpochOrder, training_batches
from initopt.comparison.running.evaluation import Judge, hits, share
from initopt.comparison.running.mixup import mixed
from initopt.comparison.spec.recipe import Recipe, lr_factor
from initopt.comparison.storage.record import CurvePoint, Subset
from initopt.model.centring import watching
from initopt.model.losses import Loss
from initopt.model.randomness import Stream, seeded
from initopt.training.optimizers import Rates
from initopt.training.steps import Course, Trainer

if TYPE_CHECKING:
    from lightning_fabric import Fabric

__all__ = ["Trained", "train"]


@dataclass
class Trained:
    """What training left.

    Attributes:
        curve: all looks.
        steps: training steps done.
        diverged: why the run counts as diverged; ``None`` if it does not.
        step_seconds: median over the looks of the mean time of a step since the last one, its batch included; ``None``
            without steps.
    """

    curve: list[CurvePoint] = field(default_factory=list)
    steps: int = 0
    diverged: str | None = None
    step_seconds: float | None = None


def train(
    fabric: Fabric,
    model: nn.Module,
    dataset: Dataset[Any],
    loss: Loss,
    recipe: Recipe,
    lr: float,
    judge: Judge,
    subset: Subset,
    seed: int,
    loaders: int = 0,
) -> Trained:
    """Train a model in place.

    Args:
        fabric: where and in which precision.
        model: at its start.
        dataset: the training set.
        loss: what is minimized.
        recipe: how.
        lr: peak learning rate.
        judge: looks at the model.
        subset: what it looks at, ``"validation"`` or ``"test"``.
        seed: of the order of the data, and of what the model draws.
        loaders: how many other processes make the batches.

    Returns:
        The curve and how it ended; a run that diverges ends where its loss is no longer finite.
    """
    optimizer = recipe.create_optimizer(model, lr)
    order = EpochOrder(len(dataset), recipe.batch_size, seed, fabric.global_rank, fabric.world_size)  # type: ignore[arg-type]
    ready, updates = fabric.setup(model, optimizer)
    clip = None
    if recipe.clip_grad_norm is not None:
        clip = partial(fabric.clip_gradients, ready, updates, max_norm=recipe.clip_grad_norm, error_if_nonfinite=False)
    trainer = Trainer(ready, updates, loss, backward=fabric.backward, clip=clip)
    return _Training(fabric, trainer, Rates(updates), dataset, order, recipe, judge, subset, seed, loaders).run()


@dataclass
class _Training:
    _fabric: Fabric
    _trainer: Trainer
    _rates: Rates
    _dataset: Dataset[Any]
    _order: EpochOrder
    _recipe: Recipe
    _judge: Judge
    _subset: Subset
    _seed: int
    _loaders: int
    _found: Trained = field(default_factory=Trained)
    _course: Course = field(default_factory=Course)

    def run(self) -> Trained:
        with seeded(self._seed, Stream.MODEL, self._fabric.global_rank), watching(self._trainer.model) as outputs:
            self._look()
            self._train(outputs)
        return self._found

    def _train(self, outputs: list[Any]) -> None:
        looks = _looks(len(self._order), self._recipe.looks_per_epoch)
        times: list[float] = []
        for epoch in range(self._recipe.epochs):
            self._order.epoch = epoch
            losses: list[Tensor] = []
            found: list[Tensor | None] = []
            begun = time.perf_counter()
            for step, data in enumerate(training_batches(self._dataset, self._order, self._loaders), 1):
                outputs.clear()
                batch = to_device(data, self._fabric.device)
                losses.append(self._step(batch, epoch * len(self._order) + step - 1))
                found.append(hits(outputs[-1] if outputs else None, batch))
                if step in looks:
                    values = self._over_processes(losses)  # waits for the device, too
                    times.append((time.perf_counter() - begun) / len(values))
                    if self._met_divergence(values, found):
                        break
                    losses, found = [], []
                    self._look()
                    begun = time.perf_counter()
            if self._found.diverged:
                break
        self._found.step_seconds = median(times)
        if not self._found.diverged:
            self._found.diverged = self._ended_badly()

    def _step(self, batch: Any, number: int) -> Tensor:
        recipe = self._recipe
        self._rates.scale(lr_factor(number, recipe.epochs * len(self._order), recipe.schedule, recipe.warmup_steps))
        if recipe.mixup:
            batch = mixed(batch, recipe.mixup, self._seed, self._order.epoch, self._fabric.global_rank, number)
        return self._trainer.step(batch)

    def _over_processes(self, losses: Sequence[Tensor]) -> list[float]:
        stacked = torch.stack(list(losses)).double()
        if self._fabric.world_size > 1:
            reduced = self._fabric.all_reduce(stacked, reduce_op="mean")
            assert isinstance(reduced, Tensor)
            stacked = reduced
        found: list[float] = stacked.tolist()
        return found

    def _met_divergence(self, losses: Sequence[float], found: list[Tensor | None]) -> bool:
        """Write down the losses since the last look, up to one that is not finite."""
        counted = self._course.note(losses)
        self._found.steps, self._found.diverged = self._course.steps, self._course.diverged
        mean = losses[len(counted) - 1] if self._course.diverged else math.fsum(losses) / len(losses)
        self._point("train", mean, share(found[: len(counted)]))
        return self._course.diverged is not None

    def _look(self) -> None:
        self._point(self._subset, *self._judge(self._trainer.model))

    def _point(self, subset: Subset, loss: float, accuracy: float | None) -> None:
        steps = self._found.steps
        self._found.curve.append(CurvePoint(steps, steps / len(self._order), subset, loss, accuracy))

    def _ended_badly(self) -> str | None:
        last = {point.subset: point.loss for point in self._found.curve}
        if not math.isfinite(last[self._subset]):
            return f"the {self._subset} loss is {last[self._subset]} after the last step"
        self._course.end()
        return self._course.diverged


def _looks(steps: int, looks: int) -> set[int]:
    """After which steps of an epoch to look; the last is always one of them.

    >>> sorted(_looks(16, 3)), sorted(_looks(2, 5))
    ([5, 11, 16], [1, 2])
    """
    return {max(round(steps * number / looks), 1) for number in range(1, looks + 1)}
