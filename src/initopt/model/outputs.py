"""A look at the outputs of a network: the loss, and how much of them depends on the input."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from initopt._support.errors import LossError
from initopt.batches.nested import batch_size, map_tensors, take, to_device
from initopt.model.centring import Output
from initopt.model.problem import Batch, Part, Problem
from initopt.model.randomness import seeded

__all__ = ["Outputs", "look", "mismatched_loss"]


@dataclass(frozen=True)
class Outputs:
    """The outputs of a network on a batch.

    Attributes:
        loss: mean over the sub-batches.
        spread: root mean square deviation of the outputs from their mean over samples and positions, relative to their
            root mean square; 0 if they do not depend on the inputs, nan if the model returns no tensor that counts.
    """

    loss: float
    spread: float


def look(problem: Problem, batch: Batch, microbatch: int | None = None) -> Outputs:
    """Run every sub-batch once and look at the outputs.

    Args:
        problem: whose centring is settled, with the model in measuring mode.
        batch: to look at.
        microbatch: most samples to run at a time.
    """
    losses: list[float] = []
    moments: dict[str, _Moments] = {}
    shares = problem.shares(batch)
    for d, loss, outputs in _passes(problem, batch, microbatch):
        losses.append(shares[d] * loss)
        for output in outputs:
            moments.setdefault(output.name, _Moments()).add(output.layout.rows(output.value.detach()))
    loss = sum(losses) / len(batch.windows)
    if problem.ranks.union:
        found = problem.ranks.gather((loss, {name: each.to_cpu() for name, each in moments.items()}), "outputs")
        loss, moments = sum(other for other, _ in found), {}
        for _, others in found:
            for name, each in others.items():
                moments.setdefault(name, _Moments()).join(each)
    deviation = sum(each.deviation() for each in moments.values())
    square = sum(each.square() for each in moments.values())
    spread = (deviation / square) ** 0.5 if square > 0 else (0.0 if moments else float("nan"))
    return Outputs(loss, spread)


def mismatched_loss(problem: Problem, data: Any) -> tuple[float, float] | None:
    """The loss of some samples, and that with the targets of others.

    The two are alike as long as the outputs have nothing to do with the targets. ``None`` where a batch does not show
    what its targets are, has too few samples to tell, or cannot be run, which is left to those who run it next.

    Args:
        problem: the model, in measuring mode, and its loss.
        data: a batch as the user gave it.

    Raises:
        LossError: if the loss is none, or the targets are visibly wrong.
    """
    try:
        size = batch_size(data)
        window = torch.arange(min(size, problem.microbatch or _MANY, _MANY), device="cpu")
        whole = take(to_device(data, problem.device), window, size)
        if isinstance(whole, (tuple, list)) and len(whole) == 2:
            targets = _rolled(whole[1])
            swapped: Any = None if targets is None else (whole[0], targets)
        else:
            targets = _rolled(whole.get("labels")) if isinstance(whole, dict) else None
            swapped = None if targets is None else whole | {"labels": targets}
        if swapped is None or len(window) < _FEW:
            return None
        found = []
        for either in (whole, swapped):
            with seeded(problem.seed):
                copied = map_tensors(torch.clone, either)  # the model may write into its inputs
                found.append(float(problem.loss_on(copied, len(window)).detach()))
    except LossError:
        raise
    except Exception:
        return None
    return found[0], found[1]


_FEW, _MANY = 16, 64
"""Samples from which on losses are compared, and the most that are taken."""


def _rolled(targets: Any) -> Tensor | None:
    return targets.roll(1, 0) if isinstance(targets, Tensor) and targets.ndim > 0 else None


def _passes(problem: Problem, batch: Batch, microbatch: int | None) -> Iterator[tuple[int, float, Sequence[Output]]]:
    """The number of the sub-batch, its loss or a part of that, and the outputs."""
    if problem.batch_norm == "batch":
        with seeded(*batch.seed):
            losses, outputs = problem.seen_windows(batch)
        yield 0, float(torch.stack([loss.detach() for loss in losses]).sum()), outputs
        return
    for d in range(len(batch.windows)):
        for part in problem.parts(batch, d, microbatch):
            yield d, *_pass(problem, batch, part)


def _pass(problem: Problem, batch: Batch, part: Part) -> tuple[float, Sequence[Output]]:
    with seeded(*part.seed):
        loss, outputs = problem.seen(batch, part)
    return float(loss.detach()), outputs


class _Moments:
    """Sums over the rows of an output, in float64."""

    def __init__(self) -> None:
        self._count = 0
        self._mean: Tensor | None = None
        self._deviation = 0.0

    def add(self, rows: Tensor) -> None:
        """Add rows, shape ``(rows, channels)``, by the update of Chan, Golub and LeVeque, which loses no digits."""
        rows = rows.double()
        mean = rows.mean(0)
        self._join(mean, len(rows), float((rows - mean).square().sum()))

    def join(self, other: _Moments) -> None:
        """Add all that another one has seen."""
        if other._mean is not None:
            self._join(other._mean, other._count, other._deviation)

    def _join(self, mean: Tensor, count: int, deviation: float) -> None:
        self._deviation += deviation
        if self._mean is None:
            self._mean, self._count = mean, count
            return
        gap, total = mean - self._mean, self._count + count
        self._deviation += float(gap.square().sum()) * self._count * count / total
        self._mean = self._mean + gap * (count / total)
        self._count = total

    def to_cpu(self) -> _Moments:
        """The same on the CPU, as another process can have it."""
        self._mean = None if self._mean is None else self._mean.cpu()
        return self

    def deviation(self) -> float:
        """Sum of the squared deviations from the mean."""
        return self._deviation

    def square(self) -> float:
        """Sum of the squares."""
        return self._deviation + (0.0 if self._mean is None else self._count * float(self._mean.square().sum()))
