"""Gradients of sub-batches, one at a time and without a second derivative; and steps along them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor

from initopt.batches.subbatches import Windows
from initopt.engines.base import Gradients, added
from initopt.model.double_backward import plain_attention
from initopt.model.problem import Batch, Part, Problem, as_real
from initopt.model.randomness import seeded

__all__ = ["batch_gradient", "gradient_norm", "moved", "subbatch_gradients", "whole"]


def subbatch_gradients(
    problem: Problem, batch: Batch, values: Sequence[Tensor], microbatch: int | None, first: int = 0
) -> Iterator[Gradients]:
    """The gradient of each sub-batch, uncentred, with respect to some tensors.

    Args:
        problem: the model, in measuring mode, and how its batches are split.
        batch: on which to take them.
        values: the tensors.
        microbatch: most samples to run at a time; whole sub-batches by default.
        first: number of the sub-batch to begin with.
    """
    numbers = range(first, len(batch.windows))
    if problem.batch_norm == "batch":
        with plain_attention(), seeded(*batch.seed):
            losses = problem.seen_windows(batch)[0]
            for d in numbers:
                yield torch.autograd.grad(losses[d], values, retain_graph=d + 1 < len(losses), allow_unused=True)
        return

    def of_part(part: Part) -> tuple[Tensor, Gradients]:
        with plain_attention(), seeded(*part.seed):
            loss = problem.seen(batch, part)[0]
            return loss.detach(), torch.autograd.grad(loss, values, allow_unused=True)

    for d in numbers:
        yield added(map(of_part, problem.parts(batch, d, microbatch)))[1]


def gradient_norm(problem: Problem, batch: Batch, microbatch: int | None, d: int) -> float:
    """Norm of the uncentred gradient of one sub-batch."""
    parameters = [parameter.value for parameter in problem.grad_params]
    own = next(subbatch_gradients(problem, batch, parameters, microbatch, first=d))
    gradients = problem.summed(own, problem.shares(batch)[d], parameters)
    norms = [torch.linalg.vector_norm(as_real(g), dtype=torch.float64).cpu() for g in gradients if g is not None]
    return float(torch.stack(norms).square().sum().sqrt()) if norms else 0.0


def whole(batch: Batch) -> Batch:
    """A batch as one sub-batch."""
    size = batch.windows.batch_size
    return replace(batch, windows=Windows((torch.arange(size, device="cpu"),), size))


def batch_gradient(
    problem: Problem, batch: Batch, values: Sequence[Tensor], microbatch: int | None
) -> tuple[Tensor, Gradients]:
    """The mean loss of a whole batch, detached, and its uncentred gradient: those of a training step.

    Args:
        problem: the model, in measuring mode.
        batch: on which to take them; its sub-batches do not count.
        values: the tensors that the gradient is with respect to.
        microbatch: most samples to run at a time; all of them by default.
    """

    def of_part(part: Part) -> tuple[Tensor, Gradients]:
        with seeded(*part.seed), torch.enable_grad():
            loss = problem.part_loss(batch, part)
            return loss.detach(), torch.autograd.grad(loss, values, allow_unused=True)

    return added(map(of_part, problem.parts(whole(batch), 0, microbatch)))


@contextmanager
def moved(parameters: Sequence[Tensor], directions: Gradients, length: float) -> Iterator[None]:
    """Hold parameters moved by ``length`` times a direction within a block; they are exactly as they were afterwards."""
    moving = [(p, u) for p, u in zip(parameters, directions, strict=True) if u is not None]
    kept = [p.detach().clone() for p, _ in moving]
    try:
        with torch.no_grad():
            for parameter, direction in moving:
                parameter.add_(direction, alpha=length)
        yield
    finally:
        with torch.no_grad():
            for (parameter, _), value in zip(moving, kept, strict=True):
                parameter.copy_(value)
