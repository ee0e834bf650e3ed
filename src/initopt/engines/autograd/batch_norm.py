r"""Batch norm on batch statistics with a second derivative in few passes over the data.

With :math:`\hat x = (x - \mu) s` and :math:`s = 1 / \sqrt{\operatorname{var} + \epsilon}`, the first derivatives are

.. math:: \bar x = \gamma s \, P(\bar y), \quad \bar\gamma = \sum \bar y \hat x, \quad \bar\beta = \sum \bar y, \qquad
    P(z) = z - \tfrac1n \sum z - \hat x \tfrac1n \sum z \hat x,

and for :math:`u, v_\gamma, v_\beta` coming in for them, with :math:`A = \langle u, \bar x \rangle` in each channel,

.. math::
    \bar{\bar y} &= \gamma s \, P(u) + v_\gamma \hat x + v_\beta, \\
    \bar{\bar x} &= s \, P(h) - s \hat x A / n, \quad
    h = -\tfrac{\gamma s}{n} \left( u \sum \bar y \hat x + \bar y \sum u \hat x \right) + v_\gamma \bar y, \\
    \bar{\bar \gamma} &= A / \gamma.

P is what the fused kernel of the first derivative computes, so that two calls of it do most of the work. Autograd's own
formula goes over the data some forty times, which makes it the larger half of a double backward with batch norm on a CPU.
"""

from __future__ import annotations

import itertools
from typing import Any, Protocol

import torch
from torch import Tensor

from initopt._support._torch_private import batch_norm_backward, batch_norm_forward

__all__ = ["batch_norm"]

_APART = 1 << 14
"""Numbers in a group of samples from which on it is faster to normalize the groups one after the other, in the cache, than
all at once as channels of their own, which takes copies."""


class Phase(Protocol):
    """The derivative, of the two, for which the graph is being walked."""

    second: bool


def batch_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, phase: Phase, groups: int | None = None
) -> Tensor:
    """Batch norm by the statistics of the batch, over all dimensions but the second.

    Args:
        x: input, shape ``(B, C, ...)``.
        weight: shape ``(C,)``, or ``(groups, C)``.
        bias: the same.
        eps: is added to the variance.
        phase: which derivative is being taken.
        groups: if given, x consists of as many equal groups of samples, each of which has statistics, a weight and a bias
            of its own.
    """
    if groups is None:
        return _normalized(x, weight, bias, eps, phase)
    if x.numel() < _APART * groups:
        channels = x.reshape(groups, -1, *x.shape[1:]).transpose(0, 1).flatten(1, 2)
        flat_weight, flat_bias = (None if t is None else t.flatten() for t in (weight, bias))
        y = _normalized(channels, flat_weight, flat_bias, eps, phase)
        return y.reshape(y.shape[0], groups, -1, *y.shape[2:]).transpose(0, 1).flatten(0, 1)
    parameters = [itertools.repeat(None, groups) if t is None else t.unbind() for t in (weight, bias)]
    return torch.cat([_normalized(part, w, b, eps, phase) for part, w, b in zip(x.chunk(groups), *parameters, strict=True)])


def _normalized(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, phase: Phase) -> Tensor:
    y: Tensor = _BatchNorm.apply(x, weight, bias, eps, phase)  # type: ignore[no-untyped-call]
    return y


class _BatchNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, phase: Phase) -> Tensor:
        ctx.eps, ctx.phase = eps, phase
        ctx.has_weight, ctx.has_bias = weight is not None, bias is not None
        scale = x.new_ones(x.shape[1]) if weight is None else weight
        y, mean, invstd = batch_norm_forward(x, scale, bias, eps)
        ctx.save_for_backward(x, scale, mean, invstd)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, scale, mean, invstd = ctx.saved_tensors
        if ctx.phase.second:
            dx, dw, db = batch_norm_backward(dy, x, scale, mean, invstd, ctx.eps)
        else:
            arguments = (dy, x, scale, mean, invstd, ctx.eps, ctx.phase)
            dx, dw, db = _BatchNormGradients.apply(*arguments)  # type: ignore[no-untyped-call]
        return dx, dw if ctx.has_weight else None, db if ctx.has_bias else None, None, None


class _BatchNormGradients(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, dy: Tensor, x: Tensor, weight: Tensor, mean: Tensor, invstd: Tensor, eps: float, phase: Phase
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.eps, ctx.phase = eps, phase
        dx, dw, db = batch_norm_backward(dy, x, weight, mean, invstd, eps)
        ctx.save_for_backward(dy, x, weight, mean, invstd, dw.detach().clone(), db.detach().clone())
        return dx, dw, db

    @staticmethod
    def backward(ctx: Any, u: Tensor, vw: Tensor, vb: Tensor) -> tuple[Tensor | None, ...]:
        dy, x, weight, mean, invstd, sum_dyx, sum_dy = ctx.saved_tensors
        if not ctx.phase.second:
            return (*_differentiable(dy, x, weight, ctx.eps, (u, vw, vb)), None, None, None, None)
        count = x.numel() // x.shape[1]
        shape = [1, -1, *([1] * (x.ndim - 2))]
        p, sum_ux, sum_u = batch_norm_backward(u, x, weight, mean, invstd, ctx.eps)
        others = [0, *range(2, x.ndim)]
        bracket = (u * dy).sum(others) - (sum_u * sum_dy + sum_ux * sum_dyx) / count
        gain = weight * invstd
        slope = vw * invstd
        ddy = torch.addcmul(p, x, slope.view(shape)).add_((vb - slope * mean).view(shape))
        h = (u * (-gain * sum_dyx / count).view(shape)).addcmul_(dy, (vw - gain * sum_ux / count).view(shape))
        ddx = batch_norm_backward(h, x, torch.ones_like(weight), mean, invstd, ctx.eps)[0]
        pull = gain * bracket * invstd**2 / count
        ddx = ddx.addcmul_(x, (-pull).view(shape)).add_((pull * mean).view(shape))
        return ddy, ddx, invstd * bracket, None, None, None, None


def _differentiable(
    dy: Tensor, x: Tensor, weight: Tensor, eps: float, vectors: tuple[Tensor, Tensor, Tensor]
) -> tuple[Tensor, ...]:
    """The same by autograd, for a loss that contains gradients itself and is differentiated twice more."""
    with torch.enable_grad():
        x, dy, weight = (t if t.requires_grad else t.detach().requires_grad_() for t in (x, dy, weight))
        bias = torch.zeros_like(weight, requires_grad=True)
        y = torch.nn.functional.batch_norm(x, None, None, weight, bias, True, 0.0, eps)
        first = torch.autograd.grad(y, (x, weight, bias), dy, create_graph=True)
        return torch.autograd.grad(first, (dy, x, weight), vectors, create_graph=True)
