"""Tensors whose scale does not change the loss, of a model that stays in parts on several devices."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from initopt.engines.base import Gradients
from initopt.engines.gradients import inner_products, moved, subbatch_gradients
from initopt.engines.invariance import ALIGNED, SILENT
from initopt.model.problem import Batch, Problem, as_real
from initopt.model.sharded import own_part

__all__ = ["scale_invariant_in_parts"]


def scale_invariant_in_parts(problem: Problem, batch: Batch, microbatch: int | None = None) -> list[bool]:
    """As :func:`initopt.engines.invariance.scale_invariant`, with products of parts, and the same answer on all ranks.

    Where the gradient is exactly zero, that after a small random step of the other tensors takes its place.
    """
    values = [parameter.value for parameter in problem.scale_params]
    cosines = torch.full((len(values),), SILENT, dtype=torch.float64, device="cpu")
    for _, gradients in subbatch_gradients(problem, batch, values, microbatch):
        cosines = torch.maximum(cosines, _cosines(problem, values, gradients))
    silent = [number for number, cosine in enumerate(cosines.tolist()) if cosine == SILENT]
    if silent:
        found = _after_a_step(problem, batch, microbatch, [values[number] for number in silent])
        cosines[silent] = torch.where(found == SILENT, 1.0, found)
    pairs = zip(cosines.tolist(), values, strict=True)
    return [cosine < ALIGNED and value.numel() > 1 for cosine, value in pairs]


def _cosines(problem: Problem, values: Sequence[Tensor], gradients: Gradients) -> Tensor:
    """The cosine of gradient and weight for each tensor; ``SILENT`` without a gradient, 1 for what does not take part."""
    assert problem.shards is not None
    own = problem.shards.counted(values, gradients)
    weights = problem.shards.counted(values, [own_part(value) for value in values])
    there = torch.tensor([float(g is not None) for g in gradients], dtype=torch.float64, device="cpu")
    products = [inner_products(own, weights), inner_products(own, own), inner_products(weights, weights), there]
    along, square, weight, reached = problem.ranks.sum(torch.stack(products), "cosines of gradients and weights")
    found = along.abs() / (square.sqrt() * weight.sqrt())
    found = torch.where(torch.isfinite(found), found, 1.0)  # a weight of zero, or beyond all bounds
    found = torch.where(square == 0, SILENT, found)
    return torch.where(reached == 0, 1.0, found)


def _after_a_step(problem: Problem, batch: Batch, microbatch: int | None, silent: Sequence[Tensor]) -> Tensor:
    """Cosines of weights and of their gradients in the first sub-batch, when all other tensors have moved a little."""
    assert problem.shards is not None
    others = [p.value for p in problem.parameters.trainable if all(p.value is not value for value in silent)]
    parts = [own_part(value) for value in others]
    directions: list[Tensor | None] = []
    for number, (value, part) in enumerate(zip(others, parts, strict=True)):
        generator = torch.Generator("cpu").manual_seed(number + len(others) * problem.shards.place(value))
        drawn = torch.randn(part.shape, generator=generator, dtype=part.dtype, device="cpu").to(part.device)
        size = float(as_real(part).double().square().mean().sqrt()) if part.numel() else 1.0
        directions.append(drawn * (size if math.isfinite(size) and size > 0 else 1.0))
    precision = max(torch.finfo(value.dtype).eps for value in silent)
    with moved(parts, directions, math.sqrt(precision)):
        _, gradients = next(subbatch_gradients(problem, batch, silent, microbatch))
    return _cosines(problem, silent, gradients)
