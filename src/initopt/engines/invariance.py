"""Tensors whose scale does not change the loss."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from initopt._support.devices import free_memory
from initopt.batches.nested import map_tensors
from initopt.engines.base import Gradients
from initopt.engines.gradients import subbatch_gradients
from initopt.model.double_backward import plain_attention, uses_autocast
from initopt.model.problem import Batch, Problem, as_real, inner_product
from initopt.model.randomness import seeded

__all__ = ["ALIGNED", "SILENT", "any_is_low", "fits_memory", "in_low_precision", "in_precision", "scale_invariant"]

ALIGNED = 5e-4
"""Least cosine of gradient and weight, in some sub-batch, of a tensor whose scale matters.

Networks with batch norm show at most 1e-4 for weights in front of a norm (its epsilon, and rounding), and deep networks
without norm 2e-3 or more for every weight.
"""


def scale_invariant(
    problem: Problem, batch: Batch, microbatch: int | None = None, memory_budget: float | None = None
) -> list[bool]:
    r"""Find those of ``problem.scale_params`` that can be multiplied by a number without changing the loss.

    Where L(a W) = L(W) for all a > 0, as for a weight in front of a norm, :math:`\langle dL/dW, W \rangle = 0`, and the
    gradient is the larger the smaller the weight is: its scale says nothing about the network, and only acts as a learning
    rate of this tensor (van Laarhoven, arXiv 1706.05350). The test is that the cosine of the two is below :data:`ALIGNED`
    in every sub-batch. Where the gradient is exactly zero, as in a branch that ends in zeros, the derivative :math:`h` of
    the other gradients along some direction takes its place, for :math:`\langle h, W \rangle = 0` there, too. A tensor that
    the loss does not reach is not among them, nor is one of a single number.

    Args:
        problem: the model, in measuring mode, and how its batches are split.
        batch: on which to look; costs a training step.
        microbatch: most samples to run at a time; whole sub-batches by default.
        memory_budget: bytes that this may take; by default, what is free.

    Returns:
        A truth value for each of ``problem.scale_params``.
    """
    if not in_low_precision(problem):
        return _invariant(problem, batch, microbatch, {}, ALIGNED)
    # Rounding to 8 or 11 bits alone makes cosines of 1e-3. Autocast leaves float64 alone.
    problem.ranks.agree("tensors whose scale does not matter")
    try:
        if not fits_memory(problem, torch.float64, memory_budget):
            raise MemoryError
        with problem.state.stand_ins(torch.float64) as leaves:
            return _invariant(problem, in_precision(batch, torch.float64), microbatch, leaves, ALIGNED)
    except Exception as error:  # also a kernel of the user's own that has the one precision only, say
        problem.ranks.tell(error)  # so that all ranks look in the same way
        eps = max(torch.finfo(parameter.value.dtype).eps for parameter in problem.scale_params)
        return _invariant(problem, batch, microbatch, {}, max(eps, _AUTOCAST_EPS))


_AUTOCAST_EPS = torch.finfo(torch.bfloat16).eps


def in_low_precision(problem: Problem) -> bool:
    """Whether a model computes in less than single precision, by its parameters or by autocast."""
    return any_is_low(p.value.dtype for p in problem.scale_params)


def any_is_low(dtypes: Iterable[torch.dtype]) -> bool:
    """Whether one of the precisions that a model computes in is less than single, that of autocast included."""
    return any(torch.finfo(dtype).bits < 32 for dtype in dtypes) or uses_autocast()


def fits_memory(problem: Problem, dtype: torch.dtype, memory_budget: float | None = None) -> bool:
    """Whether there is room for copies of all parameters and a few gradients of them in a precision, and to spare."""
    count = sum(parameter.numel() for parameter in problem.model.parameters())
    free = free_memory(problem.device) if memory_budget is None else memory_budget
    return free is None or 6 * count * torch.finfo(dtype).bits / 8 < free / 2


def in_precision(batch: Batch, dtype: torch.dtype) -> Batch:
    """The batch with its floating-point tensors in another precision."""
    return replace(batch, data=map_tensors(lambda t: t.to(dtype) if t.is_floating_point() else t, batch.data))


SILENT = -1.0
"""Value in the place of a cosine, where the gradient is exactly zero."""


def _invariant(
    problem: Problem, batch: Batch, microbatch: int | None, leaves: Mapping[Tensor, Tensor], threshold: float
) -> list[bool]:
    cosines = _cosines(problem, batch, microbatch, leaves).tolist()
    own = {number for number, cosine in enumerate(cosines) if cosine == SILENT}
    silent = sorted(set.intersection(*problem.ranks.gather(own, "tensors without a gradient")))
    cosines = [1.0 if cosine == SILENT else cosine for cosine in cosines]
    if silent:
        for number, cosine in zip(silent, _second_cosines(problem, batch, microbatch, leaves, silent), strict=True):
            cosines[number] = cosine
    pairs = zip(cosines, problem.scale_params, strict=True)
    return [cosine < threshold and parameter.value.numel() > 1 for cosine, parameter in pairs]


def _second_cosines(
    problem: Problem, batch: Batch, microbatch: int | None, leaves: Mapping[Tensor, Tensor], silent: Sequence[int]
) -> list[float]:
    """Cosines of weights and of the derivative of the other gradients along a random direction, on a sub-batch.

    1 where there is no second derivative, which those who take one will say.
    """
    weights = [leaves.get(p.value, p.value) for p in (problem.scale_params[number] for number in silent)]
    others = [leaves.get(p.value, p.value) for p in problem.grad_params]
    generator = torch.Generator("cpu").manual_seed(0)
    part = problem.parts(batch, 0, microbatch)[0]
    try:
        with plain_attention(), seeded(*part.seed):
            loss = problem.seen(batch, part)[0]
            gradients = torch.autograd.grad(loss, others, create_graph=True, allow_unused=True)
            directions = [torch.randn(w.shape, generator=generator, dtype=w.dtype, device="cpu").to(w) for w in others]
            products = [
                inner_product(gradient, direction).cpu()
                for gradient, direction in zip(gradients, directions, strict=True)
                if gradient is not None and gradient.requires_grad
            ]
            found: Gradients = [None] * len(weights)
            if products:
                found = torch.autograd.grad(torch.stack(products).sum(), weights, allow_unused=True)
        found = problem.summed(found, problem.shares(batch)[0], weights)
    except Exception as error:
        problem.ranks.tell(error)  # so that all ranks do without
        return [1.0] * len(silent)
    cosines = [_cosine(derivative, weight) for derivative, weight in zip(found, weights, strict=True)]
    return [1.0 if cosine == SILENT else cosine for cosine in cosines]


def _cosines(problem: Problem, batch: Batch, microbatch: int | None, leaves: Mapping[Tensor, Tensor]) -> Tensor:
    """The largest cosine of gradient and weight over the sub-batches, for each tensor; ``SILENT`` without a gradient."""
    values = [leaves.get(parameter.value, parameter.value) for parameter in problem.scale_params]
    found = torch.full((len(values),), SILENT, dtype=torch.float64, device="cpu")
    shares = problem.shares(batch)
    for share, (_, own) in zip(shares, subbatch_gradients(problem, batch, values, microbatch), strict=True):
        gradients = problem.summed(own, share, values)
        cosines = [_cosine(gradient, value) for gradient, value in zip(gradients, values, strict=True)]
        found = torch.maximum(found, torch.tensor(cosines, dtype=torch.float64, device="cpu"))
    return found


def _cosine(gradient: Tensor | None, value: Tensor) -> float:
    if gradient is None:
        return 1.0  # does not take part, which is another matter
    # In float64: the squares of what is beyond 1.8e19 overflow in single precision, of what is beyond 256 in half.
    wide, weight = as_real(gradient.detach()).double(), as_real(value.detach()).double()
    if not wide.any():
        return SILENT
    cosine = float(inner_product(wide, weight).abs() / (wide.norm() * weight.norm()))
    return cosine if math.isfinite(cosine) else 1.0  # a weight of zero, or beyond all bounds
