"""Gradients of sub-batches, one at a time and without a second derivative; and steps along them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor

from initopt.batches.subbatches import Windows
from initopt.engines.autograd.scale_derivatives import to_cpu
from initopt.engines.base import Gradients, added
from initopt.model.double_backward import plain_attention
from initopt.model.problem import Batch, Part, Problem, as_real, inner_product
from initopt.model.randomness import seeded

__all__ = [
    "gradient_norm",
    "inner_products",
    "mean_gradient",
    "moved",
    "norm_of",
    "parts_of_all",
    "subbatch_gradients",
    "whole",
    "wide_product",
]


def subbatch_gradients(
    problem: Problem, batch: Batch, values: Sequence[Tensor], microbatch: int | None, first: int = 0
) -> Iterator[tuple[Tensor, Gradients]]:
    """The loss, detached, and the gradient of each sub-batch, uncentred, with respect to some tensors.

    Of a model that stays in parts on several ranks, each has its part of the gradient of all, and its share of the loss.

    Args:
        problem: the model, in measuring mode, and how its batches are split.
        batch: on which to take them.
        values: the tensors.
        microbatch: most samples to run at a time; whole sub-batches by default.
        first: number of the sub-batch to begin with.
    """
    numbers = range(first, len(batch.windows))
    if problem.shards is not None:
        shares = problem.shares(batch)
        for d, parts in enumerate(parts_of_all(problem, batch, microbatch)):
            if d >= first:
                yield problem.shards.gradient(problem, batch, parts, shares[d], values)
        return
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


def parts_of_all(problem: Problem, batch: Batch, microbatch: int | None) -> list[list[Part]]:
    """The parts of every sub-batch, each in as many on all ranks, since these run the model together.

    Raises:
        ValueError: if a rank has fewer samples of a sub-batch than others have parts of it.
    """
    numbers = range(len(batch.windows))
    if microbatch is None:
        return [problem.parts(batch, d, None) for d in numbers]
    own = [len(batch.windows.indices[d]) for d in numbers]
    found: list[list[Part]] = []
    for d, sizes in enumerate(zip(*problem.ranks.gather(own, "the samples of sub-batches"), strict=True)):
        count = max(-(-size // microbatch) for size in sizes)
        if count > min(sizes):
            raise ValueError(
                f"microbatch={microbatch} needs {count} passes over the samples of one rank, and another one has "
                f"{min(sizes)}; give all ranks batches of the same size"
            )
        found.append(problem.pieces(batch, d, count))
    return found


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
    if problem.shards is not None:
        counted = problem.shards.counted(parameters, own)
        squares = inner_products(counted, counted).sum()
        return float(problem.ranks.sum(squares, "the norm of a gradient").sqrt())
    return norm_of(problem.summed(own, problem.shares(batch)[d], parameters))


def wide_product(left: Tensor | None, right: Tensor | None) -> Tensor:
    """The inner product of real parts in float64, zero where there is nothing; on their device."""
    if left is None or right is None:
        some = left if right is None else right
        return torch.zeros((), dtype=torch.float64, device="cpu" if some is None else some.device)
    return inner_product(as_real(left.detach()).double(), as_real(right.detach()).double())


def inner_products(lefts: Sequence[Tensor | None], rights: Sequence[Tensor | None]) -> Tensor:
    """Inner products of real parts, tensor by tensor, zero where there is none; float64 on the CPU."""
    products = [wide_product(left, right) for left, right in zip(lefts, rights, strict=True)]
    return to_cpu(products) if products else torch.zeros(0, dtype=torch.float64, device="cpu")


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
