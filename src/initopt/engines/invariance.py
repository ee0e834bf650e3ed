"""Tensors whose scale does not change the loss."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from initopt.engines.gradients import subbatch_gradients
from initopt.problem import Batch, Problem, as_real, inner_product

__all__ = ["ALIGNED", "scale_invariant"]

ALIGNED = 5e-4
"""Least cosine of gradient and weight, in some sub-batch, of a tensor whose scale matters.

Networks with batch norm show at most 1e-4 for weights in front of a norm (its epsilon, and rounding), and deep networks
without norm 2e-3 or more for every weight.
"""


def scale_invariant(problem: Problem, batch: Batch, microbatch: int | None = None) -> list[bool]:
    r"""Which of ``problem.scale_params`` the loss does not change with, when they are multiplied by a number.

    Where L(a W) = L(W) for all a > 0, as for a weight in front of a norm, :math:`\langle dL/dW, W \rangle = 0`, and the
    gradient is the larger the smaller the weight is: its scale says nothing about the network, and is but a learning rate
    of this tensor (van Laarhoven, arXiv 1706.05350). The test is that the cosine of the two is below :data:`ALIGNED` in
    every sub-batch. A tensor without a gradient is not among them, nor is one of a single number.

    Args:
        problem: the model, in measuring mode, and how its batches are split.
        batch: on which to look; costs a training step.
        microbatch: most samples to run at a time; whole sub-batches by default.

    Returns:
        A truth value for each of ``problem.scale_params``.
    """
    batch = replace(batch, centred=False)  # a centred gradient vanishes in a network that ignores its input
    values = [parameter.value for parameter in problem.scale_params]
    found = torch.zeros(len(values), dtype=torch.float64, device="cpu")
    for gradients in subbatch_gradients(problem, batch, values, microbatch):
        cosines = [_cosine(gradient, value) for gradient, value in zip(gradients, values, strict=True)]
        found = torch.maximum(found, torch.tensor(cosines, dtype=torch.float64, device="cpu"))
    return [cosine < ALIGNED and value.numel() > 1 for cosine, value in zip(found.tolist(), values, strict=True)]


def _cosine(gradient: Tensor | None, value: Tensor) -> float:
    if gradient is None:
        return 1.0  # does not take part, which is another matter
    dense, value = gradient.detach(), value.detach()
    product = inner_product(dense, value).abs().double()
    norms = as_real(dense).norm().double() * as_real(value).norm().double()
    return float(product / norms) if norms > 0 else 1.0
