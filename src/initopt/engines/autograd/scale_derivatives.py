"""From second derivatives to one number per scaled tensor."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from initopt._support._torch_private import without_hooks
from initopt._support.errors import NonFiniteError
from initopt.engines.base import Gradients
from initopt.model.centring import Means
from initopt.model.double_backward import plain_attention
from initopt.model.parameters import NamedParameter
from initopt.model.problem import as_real, inner_product

__all__ = ["along_weights", "first_derivatives", "to_cpu"]


def along_weights(
    gradients: Gradients,
    vectors: Gradients,
    parameters: Sequence[NamedParameter],
    scales: Mapping[Tensor, Tensor] | None = None,
    leaves: Mapping[Tensor, Tensor] | None = None,
    means: Means | None = None,
    backward: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> Tensor:
    """<dW_k, W_k> of the function sum <v, g> of first derivatives g, for every parameter.

    Args:
        gradients: first derivatives with their graph; ``None`` where there is none.
        vectors: as many tensors v, held fixed.
        parameters: the tensors W_k.
        scales: 0-dimensional leaves of the graph that stand for a part of the dependence on a tensor.
        leaves: leaves of the graph, of the same values, that stand for another part.
        means: leaves of the graph that gradients were centred by; they are told the derivatives with respect to them.
        backward: makes the block in which the graph is walked.

    Returns:
        float64, on the CPU, shape ``(num_scales,)``; zero where the function does not depend on W_k.

    Raises:
        NonFiniteError: naming the parameters for which the result is not finite.
    """
    pairs = [(g, v) for g, v in zip(gradients, vectors, strict=True) if g is not None and v is not None and g.requires_grad]
    if not pairs:
        return torch.zeros(len(parameters), dtype=torch.float64, device="cpu")
    scales, leaves = scales or {}, leaves or {}
    with plain_attention(), backward():  # activation checkpointing runs parts of the model again, now
        found = first_derivatives([g for g, _ in pairs], [v for _, v in pairs], parameters, scales, leaves, means)
    values = _products(*found, parameters, leaves)
    finite = torch.isfinite(values)
    if not finite.all():
        bad = [p.name for p, fine in zip(parameters, finite.tolist(), strict=True) if not fine]
        raise NonFiniteError(
            f"the derivative of the gradients with respect to the scale of {', '.join(map(repr, bad[:3]))} is not finite, "
            "though the gradients are; an operation without a second derivative there (a norm or root at zero, say), or "
            "values beyond the range of this precision (try float64)?"
        )
    return values


def first_derivatives(
    outputs: Sequence[Tensor],
    slopes: Sequence[Tensor],
    parameters: Sequence[NamedParameter],
    scales: Mapping[Tensor, Tensor],
    leaves: Mapping[Tensor, Tensor],
    means: Means | None = None,
) -> tuple[Gradients, Mapping[Tensor, Tensor | None]]:
    """Derivatives with respect to parameters and scales, untouched by gradient hooks; the graph is freed.

    Args:
        outputs: what is differentiated.
        slopes: what comes in for each.
        parameters: the tensors W_k.
        scales: 0-dimensional leaves of the graph that stand for a part of the dependence on a tensor.
        leaves: leaves of the graph, of the same values as tensors, that stand for another part.
        means: leaves of the graph that gradients were centred by; they are told the derivatives with respect to them.

    Returns:
        The derivatives with respect to each tensor or its leaf, and those with respect to its scale; ``None`` where there
        is no dependence.
    """
    weights = [leaves.get(p.value, p.value) for p in parameters]
    centres = [] if means is None else list(means.leaves.values())
    with without_hooks([p.value for p in parameters]):
        found = torch.autograd.grad(outputs, [*weights, *scales.values(), *centres], slopes, allow_unused=True)
    if means is not None:
        means.met(found[len(found) - len(centres) :])
    return found[: len(weights)], dict(zip(scales, found[len(weights) : len(weights) + len(scales)], strict=True))


def _products(
    found: Gradients,
    of_scale: Mapping[Tensor, Tensor | None],
    parameters: Sequence[NamedParameter],
    leaves: Mapping[Tensor, Tensor],
) -> Tensor:
    products = []
    for parameter, derivative in zip(parameters, found, strict=True):
        weight = parameter.value.detach()
        product = torch.zeros((), dtype=torch.float64, device=weight.device)
        if derivative is not None:
            product = inner_product(as_real(derivative).double(), as_real(leaves.get(parameter.value, weight).detach()))
        extra = of_scale.get(parameter.value)
        products.append(product if extra is None else product + extra)
    return to_cpu(products)


def to_cpu(scalars: Sequence[Tensor]) -> Tensor:
    """0-dimensional tensors as one tensor on the CPU, at the cost of one transfer for each device."""
    if len({scalar.device for scalar in scalars}) == 1:
        return torch.stack(list(scalars)).cpu()
    return torch.stack([scalar.cpu() for scalar in scalars])
