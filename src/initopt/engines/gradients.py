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

__all__ = ["gradient_norm", "mean_gradient", "moved", "norm_of", "subbatch_gradients", "whole"]


def subbatch_gradients(
    problem: Problem, batch: Batch, values: Sequence[Tensor], microbatch: int | None, first: int = 0
) -> Iterator[tuple[Tensor, Gradients]]:
    """The loss, detached, and the gradient of each sub-batch, uncentred, with respect to some tensors.

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
                keep = d + 1 < len(losses)
                yield losses[d].detach(), torch.autograd.grad(losses[d], values, retain_graph=keep, allow_unused=True)
        return

    def of_part(part: Part) -> tuple[Tensor, Gradients]:
        with plain_attention(), seeded(*part.seed):
            loss = problem.seen(batch, part)[0]
            return loss.detach(), torch.autograd.grad(loss, values, allow_unused=True)

    for d in numbers:
        yield added(map(of_part, problem.parts(batch, d, microbatch)))


def mean_gradient(
    problem: Problem, batch: Batch, values: Sequence[Tensor], microbatch: int | None
) -> tuple[float, Gradients]:
    """The means of the losses of all sub-batches and of their gradients, uncentred: those of the batch on this rank."""
    count = len(batch.windows)
    loss, total = added(subbatch_gradients(problem, batch, values, microbatch))
    return float(loss) / count, [None if g is None else g / count for g in total]


def gradient_norm(problem: Problem, batch: Batch, microbatch: int | None, d: int) -> float:
    """Norm of the uncentred gradient of one sub-batch."""
    parameters = [parameter.value for parameter in problem.grad_params]
    _, own = next(subbatch_gradients(problem, batch, parameters, microbatch, first=d))
    return norm_of(problem.summed(own, problem.shares(batch)[d], parameters))


def norm_of(gradients: Gradients) -> float:
    """The 2-norm of a gradient."""
    norms = [torch.linalg.vector_norm(as_real(g), dtype=torch.float64).cpu() for g in gradients if g is not None]
    return float(torch.stack(norms).square().sum().sqrt()) if norms else 0.0


def whole(batch: Batch) -> Batch:
    """A batch as one sub-batch."""
    size = batch.windows.batch_size
    return replace(batch, windows=Windows((torch.arange(size, device="cpu"),), size))


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
