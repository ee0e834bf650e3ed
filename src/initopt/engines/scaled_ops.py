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

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from initopt.engines.base import Gradients
from initopt.engines.contraction import along_weights
from initopt.parameters import NamedParameter
from initopt.problem import inner_product

__all__ = ["ScaledOps"]

aten = torch.ops.aten


class _Operation(ABC):
    """A map that is linear in its input and in its weight, with its transposes."""

    @abstractmethod
    def apply(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor: ...

    @abstractmethod
    def input_gradient(self, x: Tensor, weight: Tensor, dy: Tensor) -> Tensor: ...

    @abstractmethod
    def weight_gradient(self, x: Tensor, weight: Tensor, dy: Tensor) -> Tensor: ...

    def bias_gradient(self, dy: Tensor) -> Tensor:
        return dy.flatten(0, -2).sum(0)

    def bias_length(self, dy: Tensor) -> int:
        return dy.shape[-1]


class _Linear(_Operation):
    """y = x W^T + b over the last dimension."""

    def apply(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(x, weight, bias)

    def input_gradient(self, x: Tensor, weight: Tensor, dy: Tensor) -> Tensor:
        return dy @ weight

    def weight_gradient(self, x: Tensor, weight: Tensor, dy: Tensor) -> Tensor:
        return dy.flatten(0, -2).T @ x.flatten(0, -2)


class _Addmm(_Operation):
    """y = b + x W, as the Conv1D of GPT-2 has it."""

    def apply(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return x @ weight if bias is None else torch.addmm(bias, x, weight)

    def input_gradient(self, x: Tensor, weight: Tensor, dy: Tensor) -> Tensor:
        return dy @ weight.T

    def weight_gradient(self, x: Tensor, weight: Tensor, dy: Tensor) -> Tensor:
        return x.T @ dy


class _Convolution(_Operation):
    """Convolutions of any dimension, strided, dilated, grouped or transposed."""

    def __init__(
        self, dimensions: int, stride: Any, padding: Any, dilation: Any, groups: int, output_padding: Any = None
    ) -> None:
        def each(value: Any) -> list[int]:
            return [value] * dimensions if isinstance(value, int) else [int(v) for v in value] * (dimensions // len(value))

        transposed = output_padding is not None
        extra = each(output_padding) if transposed else [0] * dimensions
        self._arguments = (each(stride), each(padding), each(dilation), transposed, extra, groups)

    def apply(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        y: Tensor = aten.convolution(x, weight, bias, *self._arguments)
        return y

    def _backward(self, x: Tensor, weight: Tensor, dy: Tensor, which: tuple[bool, bool, bool]) -> tuple[Tensor, ...]:
        gradients: tuple[Tensor, ...] = aten.convolution_backward(dy, x, weight, None, *self._arguments, which)
        return gradients

    def input_gradient(self, x: Tensor, weight: Tensor, dy: Tensor) -> Tensor:
        return self._backward(x, weight, dy, (True, False, False))[0]

    def weight_gradient(self, x: Tensor, weight: Tensor, dy: Tensor) -> Tensor:
        return self._backward(x, weight, dy, (False, True, False))[1]

    def bias_gradient(self, dy: Tensor) -> Tensor:
        return dy.sum([0, *range(2, dy.ndim)])

    def bias_length(self, dy: Tensor) -> int:
        return dy.shape[1]


class _Phase:
    """Which of the two derivatives the graph is being walked for, and whether the values of the first are wanted."""

    def __init__(self) -> None:
        self.second = False
        self.values_wanted = True


class _Forward(torch.autograd.Function):
    """y = alpha op(x, W) + b at alpha = 1."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, scale: Tensor, operation: _Operation, phase: _Phase
    ) -> Tensor:
        ctx.operation, ctx.phase, ctx.has_bias = operation, phase, bias is not None
        ctx.save_for_backward(x, weight, scale)
        return operation.apply(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, scale = ctx.saved_tensors
        operation: _Operation = ctx.operation
        phase: _Phase = ctx.phase
        dx = dw = db = None
        if phase.second:
            if ctx.needs_input_grad[0]:
                dx = operation.input_gradient(x, weight, dy)
                dscale = inner_product(dx, x)
            else:
                dscale = inner_product(operation.apply(x, weight, None), dy)
            if ctx.has_bias and ctx.needs_input_grad[2]:
                db = operation.bias_gradient(dy)
            return dx, None, db, dscale, None, None
        if ctx.needs_input_grad[0]:
            dx = _InputGradient.apply(dy, x, weight, scale, operation, phase)  # type: ignore[no-untyped-call]
        # A hook on the weight may do anything with the value, so its derivative may depend on it.
        values_wanted = phase.values_wanted or bool(weight._backward_hooks)
        arguments = (x, dy, weight, ctx.has_bias, operation, values_wanted)
        dw, db = _ParameterGradients.apply(*arguments)  # type: ignore[no-untyped-call]
        return dx, dw, db, None, None, None


class _InputGradient(torch.autograd.Function):
    """dx = alpha op^T(dy, W)."""

    @staticmethod
    def forward(
        ctx: Any, dy: Tensor, x: Tensor, weight: Tensor, scale: Tensor, operation: _Operation, phase: _Phase
    ) -> Tensor:
        ctx.operation, ctx.phase = operation, phase
        ctx.save_for_backward(dy, weight)
        return operation.input_gradient(x, weight, dy)

    @staticmethod
    def backward(ctx: Any, u: Tensor) -> tuple[Tensor | None, ...]:
        dy, weight = ctx.saved_tensors
        operation: _Operation = ctx.operation
        ddy = operation.apply(u, weight, None)
        if ctx.phase.second:
            return ddy, None, None, inner_product(ddy, dy), None, None
        # A loss that contains gradients itself (a gradient penalty): plain operations, which autograd can go on with.
        return ddy, None, operation.weight_gradient(u, weight, dy), None, None, None


class _ParameterGradients(torch.autograd.Function):
    """dW and db. They do not depend on the weight."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, dy: Tensor, weight: Tensor, has_bias: bool, operation: _Operation, values_wanted: bool
    ) -> tuple[Tensor, Tensor | None]:
        ctx.operation = operation
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, dy, weight)
        if not values_wanted:
            zero = weight.new_zeros(())
            return zero.expand_as(weight), zero.expand(operation.bias_length(dy)) if has_bias else None
        return operation.weight_gradient(x, weight, dy), operation.bias_gradient(dy) if has_bias else None

    @staticmethod
    def backward(ctx: Any, vw: Tensor | None, vb: Tensor | None) -> tuple[Tensor | None, ...]:
        x, dy, weight = ctx.saved_tensors
        if vw is None and vb is None:
            return (None,) * 6
        if vw is None:
            vw = torch.zeros_like(weight)
        dx = ctx.operation.input_gradient(x, vw, dy) if ctx.needs_input_grad[0] else None
        ddy = ctx.operation.apply(x, vw, vb) if ctx.needs_input_grad[1] else None
        return dx, ddy, None, None, None, None


Call = tuple[Tensor, Tensor, Tensor | None, _Operation]
"""Input, weight, bias and operation of a call that can be replaced."""


def _linear_call(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Call | None:
    return (input, weight, bias, _Linear()) if input.ndim >= 2 and weight.ndim == 2 else None


def _addmm_call(input: Tensor, mat1: Tensor, mat2: Tensor, *, beta: float = 1, alpha: float = 1) -> Call | None:
    plain = beta == 1 and alpha == 1 and input.ndim == 1
    return (mat1, mat2, input, _Addmm()) if plain else None


def _convolution_call(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1,
    groups: int = 1,
) -> Call | None:  # fmt: skip
    if isinstance(padding, str) or input.ndim != weight.ndim:  # "same" padding; an input without batch dimension
        return None
    return input, weight, bias, _Convolution(weight.ndim - 2, stride, padding, dilation, groups)


def _transposed_call(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Any = 1, padding: Any = 0, output_padding: Any = 0,
    groups: int = 1, dilation: Any = 1,
) -> Call | None:  # fmt: skip
    if input.ndim != weight.ndim:
        return None
    return input, weight, bias, _Convolution(weight.ndim - 2, stride, padding, dilation, groups, output_padding)


_CALLS: dict[Callable[..., Any], Callable[..., Call | None]] = {
    F.linear: _linear_call,
    torch.addmm: _addmm_call,
    torch.conv1d: _convolution_call,
    torch.conv2d: _convolution_call,
    torch.conv3d: _convolution_call,
    torch.conv_transpose1d: _transposed_call,
    torch.conv_transpose2d: _transposed_call,
    torch.conv_transpose3d: _transposed_call,
}


class _Replacing(TorchFunctionMode):
    def __init__(self, scales: dict[nn.Parameter, Tensor], phase: _Phase) -> None:
        super().__init__()
        self._scales = scales
        self._phase = phase

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.autograd.grad:
            return self._grad(*args, **kwargs)
        if func in _CALLS and "out" not in kwargs and torch.is_grad_enabled():
            call = _CALLS[func](*args, **kwargs)
            if call is not None and self._replaceable(call):
                x, weight, bias, operation = call
                scale = self._scales[weight]  # type: ignore[index]
                return _Forward.apply(x, weight, bias, scale, operation, self._phase)  # type: ignore[no-untyped-call]
        return func(*args, **kwargs)

    def _grad(self, outputs: Any, inputs: Any, grad_outputs: Any = None, **options: Any) -> Any:
        """``torch.autograd.grad`` with this mode on, which is off while a mode handles a call.

        Activation checkpointing runs parts of the model again in a backward pass, and they must meet the same operations.
        ``torch.autograd.grad`` cannot be called with a mode on, so this is the call to the engine that it makes itself.
        """
        options.pop("only_inputs", None)  # always true
        create_graph = options.pop("create_graph", False)
        retain_graph = options.pop("retain_graph", None)
        allow_unused = options.pop("allow_unused", None)
        if any(options.values()):  # batched or materialized gradients: the loss's own business
            options |= {"create_graph": create_graph, "retain_graph": retain_graph, "allow_unused": allow_unused}
            return torch.autograd.grad(outputs, inputs, grad_outputs, **options)
        outputs, inputs = _as_tuple(outputs), _as_tuple(inputs)
        given = (None,) * len(outputs) if grad_outputs is None else _as_tuple(grad_outputs)
        slopes = tuple(torch.ones_like(y) if dy is None else dy for y, dy in zip(outputs, given, strict=True))
        keep = create_graph if retain_graph is None else retain_graph
        with self:
            return torch.autograd.Variable._execution_engine.run_backward(
                outputs, slopes, keep, create_graph, inputs, bool(allow_unused), accumulate_grad=False
            )

    def _replaceable(self, call: Call) -> bool:
        x, weight, bias, _ = call
        # Subclasses, lower precision under autocast and functorch's wrappers have dispatch of their own.
        return (
            isinstance(weight, nn.Parameter)
            and weight in self._scales
            and type(x) in (Tensor, nn.Parameter)
            and x.layout is torch.strided
            and x.dtype == weight.dtype
            and not torch.is_autocast_enabled(x.device.type)
            and not torch._C._functorch.maybe_current_level()
            and (bias is None or bias.dtype == weight.dtype)
        )


def _as_tuple(value: Any) -> tuple[Any, ...]:
    return (value,) if isinstance(value, Tensor) else tuple(value)


class ScaledOps:
    """Replaced operations of one evaluation, and the derivative along the weights through them.

    Args:
        parameters: those that have a scale.
    """

    def __init__(self, parameters: Sequence[NamedParameter]) -> None:
        self._parameters = parameters
        self._phase = _Phase()
        replaced = [p.value for p in parameters if type(p.value) is nn.Parameter and p.value.is_floating_point()]
        self._scales = {weight: weight.new_ones((), requires_grad=True) for weight in replaced}

    @contextmanager
    def replacing(self) -> Iterator[None]:
        """The block in which the model runs forward and its first derivatives are taken."""
        # Backward passes stay in this thread, where the mode is.
        with torch.autograd.set_multithreading_enabled(False), _Replacing(self._scales, self._phase):
            yield

    @contextmanager
    def values_unwanted(self) -> Iterator[None]:
        """A block in which first derivatives by replaced operations come out as zeros, to be differentiated only."""
        self._phase.values_wanted = False
        try:
            yield
        finally:
            self._phase.values_wanted = True

    def along_weights(self, gradients: Gradients, vectors: Gradients) -> Tensor:
        """:func:`initopt.engines.contraction.along_weights` through the replaced operations."""
        self._phase.second = True
        with self.replacing():
            return along_weights(gradients, vectors, self._parameters, self._scales)
