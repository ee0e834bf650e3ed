r"""Linear layers whose second derivative is taken along their weight, not with respect to all of it.

What a scale needs of a Hessian-vector product is one number per tensor, :math:`\langle dW_k, W_k \rangle`. Autograd would
form :math:`dW_k` first: two products as expensive as a layer's forward pass, in the weight's gradient with respect to its
own second-order terms. But a linear layer :math:`y = W x` is homogeneous in its weight, so that with a scale
:math:`y = \alpha W x` the same number is a dot product of tensors that are at hand:

- of the forward pass: :math:`\langle \bar y, y \rangle = \langle W^\top \bar y, x \rangle`;
- of the backward pass, :math:`\bar x = \alpha W^\top \bar y`, with the derivative u of :math:`\bar x`:
  :math:`\langle u, \bar x \rangle = \langle W u, \bar y \rangle`.

Counted in forward passes of a linear layer, forward, backward and double backward then take 7 in place of 9, where a
training step takes 3.

:class:`ScaledOps` puts such operations in the place of ``F.linear``, ``torch.addmm`` and the convolutions, where their
weight is a parameter that has a scale. Everything else runs as it would, and autograd's full derivative is contracted with
the tensor. A parameter that is used in both ways gets the sum.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from initopt._support._torch_private import hooks_of, in_functorch, undisturbed
from initopt.engines.autograd.batch_norm import batch_norm
from initopt.engines.autograd.operations import CALLS, Call, Operation
from initopt.engines.autograd.scale_derivatives import along_weights, first_derivatives
from initopt.engines.base import Gradients
from initopt.model.centring import Means
from initopt.model.double_backward import ModeOverGradients
from initopt.model.parameters import NamedParameter
from initopt.model.problem import inner_product

__all__ = ["Replacing", "ScaledOps", "replacing", "scale_leaves"]


class _Phase:
    """What the graph is being walked for: gradients, whose values may not be wanted, or, last, derivatives along scales."""

    def __init__(self, groups: int | None) -> None:
        self.groups = groups
        self.second = False
        self.values_wanted = True


class _Forward(torch.autograd.Function):
    """y = alpha op(x, W) + b at alpha = 1.

    The gradients of W and b go to leaves, which are W and b themselves, or hold one copy for each group of samples.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, leaf: Tensor, bias_leaf: Tensor | None, scale: Tensor, call: Call, phase: _Phase
    ) -> Tensor:
        _, weight, bias, operation = call
        ctx.operation, ctx.phase, ctx.has_bias = operation, phase, bias is not None
        with undisturbed():
            ctx.values_always_wanted = bool(hooks_of(weight) or (bias is not None and hooks_of(bias)))
            ctx.save_for_backward(x, weight, scale)
            return operation.apply(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, scale = ctx.saved_tensors  # under activation checkpointing, this runs a part of the model
        with undisturbed():
            return _Forward._gradients(ctx, dy, x, weight, scale)

    @staticmethod
    def _gradients(ctx: Any, dy: Tensor, x: Tensor, weight: Tensor, scale: Tensor) -> tuple[Tensor | None, ...]:
        operation: Operation = ctx.operation
        phase: _Phase = ctx.phase
        dx = dw = db = None
        if phase.second:
            if ctx.needs_input_grad[0]:
                dx = operation.input_gradient(x, weight, dy)
                dscale = inner_product(dx, x)
            else:
                dscale = inner_product(operation.apply(x, weight, None), dy)
            if ctx.has_bias and ctx.needs_input_grad[2]:
                db = operation.bias_gradient(dy, phase.groups)
            return dx, None, db, dscale, None, None
        if ctx.needs_input_grad[0]:
            dx = _InputGradient.apply(dy, x, weight, scale, operation, phase)  # type: ignore[no-untyped-call]
        # A hook on a parameter may do anything with the value, so its derivative may depend on it.
        values_wanted = phase.values_wanted or ctx.values_always_wanted
        arguments = (x, dy, weight, ctx.has_bias, operation, phase.groups, values_wanted)
        dw, db = _ParameterGradients.apply(*arguments)  # type: ignore[no-untyped-call]
        return dx, dw, db, None, None, None


class _InputGradient(torch.autograd.Function):
    """dx = alpha op^T(dy, W)."""

    @staticmethod
    def forward(
        ctx: Any, dy: Tensor, x: Tensor, weight: Tensor, scale: Tensor, operation: Operation, phase: _Phase
    ) -> Tensor:
        ctx.operation, ctx.phase = operation, phase
        ctx.save_for_backward(dy, weight)
        with undisturbed():
            return operation.input_gradient(x, weight, dy)

    @staticmethod
    def backward(ctx: Any, u: Tensor) -> tuple[Tensor | None, ...]:
        dy, weight = ctx.saved_tensors
        operation: Operation = ctx.operation
        with undisturbed():
            ddy = operation.apply(u, weight, None)
            if ctx.phase.second:
                return ddy, None, None, inner_product(ddy, dy), None, None
            # A loss that contains gradients itself (a gradient penalty): plain operations, which autograd can go on with.
            return ddy, None, operation.weight_gradient(u, weight, dy), None, None, None


class _ParameterGradients(torch.autograd.Function):
    """dW and db. They do not depend on the weight."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        dy: Tensor,
        weight: Tensor,
        has_bias: bool,
        operation: Operation,
        groups: int | None,
        values_wanted: bool,
    ) -> tuple[Tensor, Tensor | None]:
        ctx.operation, ctx.groups = operation, groups
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, dy, weight)
        with undisturbed():
            if values_wanted:
                db = operation.bias_gradient(dy, groups) if has_bias else None
                return operation.weight_gradient(x, weight, dy, groups), db
            zero = weight.new_zeros(())
            copies = () if groups is None else (groups,)
            bias = zero.expand(*copies, operation.bias_length(dy)) if has_bias else None
            return zero.expand(*copies, *weight.shape), bias

    @staticmethod
    def backward(ctx: Any, vw: Tensor | None, vb: Tensor | None) -> tuple[Tensor | None, ...]:
        x, dy, weight = ctx.saved_tensors
        if vw is None and vb is None:
            return (None,) * 7
        with undisturbed():
            if vw is None:
                vw = weight.new_zeros(weight.shape if ctx.groups is None else (ctx.groups, *weight.shape))
            dx = ctx.operation.input_gradient(x, vw, dy, ctx.groups) if ctx.needs_input_grad[0] else None
            ddy = ctx.operation.apply(x, vw, vb, ctx.groups) if ctx.needs_input_grad[1] else None
            return dx, ddy, None, None, None, None, None


class Replacing(ModeOverGradients):
    """A block in which calls of linear operations with the given weights are replaced.

    Args:
        scales: a 0-dimensional leaf for every weight.
        leaves: what the gradient of a parameter goes to, where it is not the parameter itself.
        groups: how many groups of samples the leaves hold copies for.
    """

    def __init__(
        self, scales: Mapping[Tensor, Tensor], leaves: Mapping[Tensor, Tensor] | None = None, groups: int | None = None
    ) -> None:
        super().__init__()
        self.phase = _Phase(groups)
        self.scales = scales
        self.leaves = leaves or {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.autograd.grad:
            return self.grad(*args, **kwargs)
        if func in CALLS and "out" not in kwargs and torch.is_grad_enabled():
            call = CALLS[func](*args, **kwargs)
            if call is not None and self.replaceable(call):
                return self.replaced(call)
        if func is F.batch_norm and torch.is_grad_enabled():
            normalized = self.batch_norm(*args, **kwargs)
            if normalized is not None:
                return normalized
        return self.other(func, args, kwargs)

    def batch_norm(
        self,
        input: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Tensor | None:
        """A batch norm whose second derivative is cheap, if this is a plain one on batch statistics."""
        affine = [t for t in (weight, bias) if t is not None]
        plain = training and running_mean is None and type(input) in (Tensor, nn.Parameter) and len(input) > 1
        if not plain or not all(t.dtype == input.dtype for t in affine) or in_functorch():
            return None
        return batch_norm(input, weight, bias, eps, self.phase)

    def other(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """The result of any other call."""
        return func(*args, **kwargs)

    def replaced(self, call: Call) -> Any:
        """The result of an operation that is replaced."""
        x, weight, bias, _ = call
        bias_leaf = None if bias is None else self.leaves.get(bias, bias)
        leaf = self.leaves.get(weight, weight)
        return _Forward.apply(x, leaf, bias_leaf, self.scales[weight], call, self.phase)  # type: ignore[no-untyped-call]

    def replaceable(self, call: Call) -> bool:
        """Whether this mode replaces an operation."""
        x, weight, bias, _ = call
        # Subclasses, lower precision under autocast and functorch's wrappers have dispatch of their own.
        return (
            isinstance(weight, nn.Parameter)
            and weight in self.scales
            and type(x) in (Tensor, nn.Parameter)
            and x.layout is torch.strided
            and x.dtype == weight.dtype
            and not torch.is_autocast_enabled(x.device.type)
            and not in_functorch()
            and (bias is None or bias.dtype == weight.dtype)
        )


class ScaledOps:
    """Replaced operations of one evaluation, and the derivative along the weights through them.

    Args:
        parameters: those that have a scale.
        mode: replaces the operations; one that replaces those with a parameter as weight, by default.
    """

    def __init__(self, parameters: Sequence[NamedParameter], mode: Replacing | None = None) -> None:
        self._parameters = parameters
        self._mode = Replacing(scale_leaves(parameters)) if mode is None else mode

    @contextmanager
    def replacing(self) -> Iterator[None]:
        """The block in which the model runs forward and its first derivatives are taken."""
        with replacing(self._mode):
            yield

    @contextmanager
    def values_unwanted(self) -> Iterator[None]:
        """A block in which first derivatives by replaced operations come out as zeros, to be differentiated only."""
        self._mode.phase.values_wanted = False
        try:
            yield
        finally:
            self._mode.phase.values_wanted = True

    def along_weights(self, gradients: Gradients, vectors: Gradients, means: Means | None = None) -> Tensor:
        """:func:`initopt.engines.autograd.scale_derivatives.along_weights` through the replaced operations."""
        self._mode.phase.second = True
        mode, parameters = self._mode, self._parameters
        return along_weights(gradients, vectors, parameters, mode.scales, mode.leaves, means, self.replacing)

    def derivatives(self, loss: Tensor) -> tuple[Gradients, Mapping[Tensor, Tensor | None]]:
        """:func:`initopt.engines.autograd.scale_derivatives.first_derivatives` of a loss, which is freed.

        A weight that is only used in replaced operations has a derivative with respect to its scale, and none of its own.
        """
        self._mode.phase.second = True
        with self.replacing():
            return first_derivatives([loss], [torch.ones_like(loss)], self._parameters, self._mode.scales, {})


@contextmanager
def replacing(mode: Replacing) -> Iterator[None]:
    """The block in which a mode is on, and backward passes stay in this thread, where it is."""
    with torch.autograd.set_multithreading_enabled(False), mode:
        yield


def scale_leaves(parameters: Sequence[NamedParameter]) -> dict[Tensor, Tensor]:
    """A scale of 1 for every parameter that an operation can be replaced for."""
    replaced = [p.value for p in parameters if type(p.value) is nn.Parameter and p.value.is_floating_point()]
    # In single precision at least: what is summed up in their derivatives is beyond half precision soon.
    wide = {weight: torch.promote_types(weight.dtype, torch.float32) for weight in replaced}
    return {weight: weight.new_ones((), dtype=dtype, requires_grad=True) for weight, dtype in wide.items()}
