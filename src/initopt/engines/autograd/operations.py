"""Operations that are linear in an input and in a weight, and the calls of torch that are such operations."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from initopt._support._torch_private import convolution, convolution_backward

__all__ = ["CALLS", "Call", "Matrix", "Operation"]


class Operation(ABC):
    """A map that is linear in its input and in its weight, with its transposes.

    ``groups`` says how many equal groups of samples, along the first dimension, have a weight of their own; the weight, the
    bias and their gradients then have a first dimension more, of that size.
    """

    @abstractmethod
    def apply(self, x: Tensor, weight: Tensor, bias: Tensor | None, groups: int | None = None) -> Tensor: ...

    @abstractmethod
    def input_gradient(self, x: Tensor, weight: Tensor, dy: Tensor, groups: int | None = None) -> Tensor: ...

    @abstractmethod
    def weight_gradient(self, x: Tensor, weight: Tensor, dy: Tensor, groups: int | None = None) -> Tensor: ...

    @abstractmethod
    def weight_gradient_rows(self, x: Tensor, weight: Tensor, dy: Tensor, groups: int, rows: slice) -> Tensor:
        """Some rows (of the first dimension) of the weight gradient of every group, shape ``(groups, rows, ...)``."""

    @abstractmethod
    def has_rows(self) -> bool:
        """Whether some rows cost less than all."""

    @abstractmethod
    def bias_gradient(self, dy: Tensor, groups: int | None = None) -> Tensor: ...

    @abstractmethod
    def bias_length(self, dy: Tensor) -> int: ...


class Matrix(Operation):
    """A matrix product over the last dimension."""

    def bias_gradient(self, dy: Tensor, groups: int | None = None) -> Tensor:
        return dy.flatten(0, -2).sum(0) if groups is None else _rows(dy, groups).sum(1)

    def bias_length(self, dy: Tensor) -> int:
        return dy.shape[-1]

    def has_rows(self) -> bool:
        return True

    def factors(self, x: Tensor, dy: Tensor, groups: int) -> tuple[Tensor, Tensor]:
        """The two factors of the weight gradient of a group, of shape ``(groups, positions, features)`` each.

        >>> op, x, dy = _Linear(), torch.ones(4, 3), torch.ones(4, 2)
        >>> [factor.shape for factor in op.factors(x, dy, groups=2)]
        [torch.Size([2, 2, 3]), torch.Size([2, 2, 2])]
        """
        return _rows(x, groups), _rows(dy, groups)


def _rows(tensor: Tensor, groups: int) -> Tensor:
    return tensor.reshape(groups, -1, tensor.shape[-1])


class _Linear(Matrix):
    """y = x W^T + b."""

    def apply(self, x: Tensor, weight: Tensor, bias: Tensor | None, groups: int | None = None) -> Tensor:
        if groups is None:
            return F.linear(x, weight, bias)
        return _grouped_product(x, weight.transpose(1, 2), bias)

    def input_gradient(self, x: Tensor, weight: Tensor, dy: Tensor, groups: int | None = None) -> Tensor:
        return dy @ weight if groups is None else _grouped_product(dy, weight, None)

    def weight_gradient(self, x: Tensor, weight: Tensor, dy: Tensor, groups: int | None = None) -> Tensor:
        if groups is None:
            return dy.flatten(0, -2).T @ x.flatten(0, -2)
        return _rows(dy, groups).transpose(1, 2) @ _rows(x, groups)

    def weight_gradient_rows(self, x: Tensor, weight: Tensor, dy: Tensor, groups: int, rows: slice) -> Tensor:
        return _rows(dy, groups)[..., rows].transpose(1, 2) @ _rows(x, groups)


class _Addmm(Matrix):
    """y = b + x W, as the Conv1D of GPT-2 has it."""

    def apply(self, x: Tensor, weight: Tensor, bias: Tensor | None, groups: int | None = None) -> Tensor:
        if groups is None:
            return x @ weight if bias is None else torch.addmm(bias, x, weight)
        return _grouped_product(x, weight, bias)

    def input_gradient(self, x: Tensor, weight: Tensor, dy: Tensor, groups: int | None = None) -> Tensor:
        return dy @ weight.T if groups is None else _grouped_product(dy, weight.transpose(1, 2), None)

    def weight_gradient(self, x: Tensor, weight: Tensor, dy: Tensor, groups: int | None = None) -> Tensor:
        return x.T @ dy if groups is None else _rows(x, groups).transpose(1, 2) @ _rows(dy, groups)

    def weight_gradient_rows(self, x: Tensor, weight: Tensor, dy: Tensor, groups: int, rows: slice) -> Tensor:
        return _rows(x, groups)[..., rows].transpose(1, 2) @ _rows(dy, groups)


def _grouped_product(x: Tensor, matrices: Tensor, bias: Tensor | None) -> Tensor:
    rows = _rows(x, len(matrices))
    product = rows @ matrices if bias is None else torch.baddbmm(bias.unsqueeze(1), rows, matrices)
    return product.reshape(*x.shape[:-1], matrices.shape[-1])


_APART = 3e7
"""Products of two numbers in the convolution of one group of samples above which a CPU is faster with a call for each group
than with a grouped convolution: measured with 16 to 256 channels and 2 to 64 groups."""


class _Convolution(Operation):
    """Convolutions of any dimension, strided, dilated, grouped or transposed.

    Groups of samples with a weight of their own become groups of channels, or, if they are large and on a CPU, calls of
    their own.
    """

    def __init__(
        self, dimensions: int, stride: Any, padding: Any, dilation: Any, groups: int, output_padding: Any = None
    ) -> None:
        def each(value: Any) -> list[int]:
            return [value] * dimensions if isinstance(value, int) else [int(v) for v in value] * (dimensions // len(value))

        self._transposed = output_padding is not None
        self._extra = each(output_padding) if self._transposed else [0] * dimensions
        self._place = (each(stride), each(padding), each(dilation))
        self._channel_groups = groups

    def _arguments(self, groups: int | None) -> dict[str, Any]:
        stride, padding, dilation = self._place
        return {
            "stride": stride, "padding": padding, "dilation": dilation, "transposed": self._transposed,
            "output_padding": self._extra, "groups": self._channel_groups * (groups or 1),
        }  # fmt: skip

    def _runs_apart(self, x: Tensor, weight: Tensor, groups: int) -> bool:
        """Whether the groups are convolved one after the other; ``weight`` is that of one group."""
        places = x.numel() / x.shape[1] / math.prod(self._place[0])
        work = places / groups * weight.numel()
        return x.device.type == "cpu" and work >= _APART

    def apply(self, x: Tensor, weight: Tensor, bias: Tensor | None, groups: int | None = None) -> Tensor:
        if groups is None:
            return convolution(x, weight, bias, **self._arguments(None))
        if self._runs_apart(x, weight[0], groups):
            biases = [None] * groups if bias is None else bias
            return torch.cat([self.apply(*each) for each in zip(x.chunk(groups), weight, biases, strict=True)])
        flat_bias = None if bias is None else bias.flatten()
        y = convolution(_to_channels(x, groups), weight.flatten(0, 1), flat_bias, **self._arguments(groups))
        return _to_samples(y, groups)

    def _backward(
        self, x: Tensor, weight: Tensor, dy: Tensor, groups: int | None, which: tuple[bool, bool, bool]
    ) -> tuple[Tensor, ...]:
        if groups is not None:
            x, dy, weight = _to_channels(x, groups), _to_channels(dy, groups), weight.flatten(0, 1)
        return convolution_backward(dy, x, weight, which, **self._arguments(groups))

    def input_gradient(self, x: Tensor, weight: Tensor, dy: Tensor, groups: int | None = None) -> Tensor:
        if groups is not None and self._runs_apart(x, weight[0], groups):
            each = zip(x.chunk(groups), weight, dy.chunk(groups), strict=True)
            return torch.cat([self.input_gradient(*one) for one in each])
        dx = self._backward(x, weight, dy, groups, (True, False, False))[0]
        return dx if groups is None else _to_samples(dx, groups)

    def weight_gradient(self, x: Tensor, weight: Tensor, dy: Tensor, groups: int | None = None) -> Tensor:
        if groups is None:
            return self._backward(x, weight, dy, None, (False, True, False))[1]
        if self._runs_apart(x, weight, groups):
            each = zip(x.chunk(groups), dy.chunk(groups), strict=True)
            return torch.stack([self.weight_gradient(own_x, weight, own_dy) for own_x, own_dy in each])
        expanded = weight.unsqueeze(0).expand(groups, *weight.shape)  # only its shape matters
        dw = self._backward(x, expanded, dy, groups, (False, True, False))[1]
        return dw.reshape(groups, -1, *dw.shape[1:])

    def weight_gradient_rows(self, x: Tensor, weight: Tensor, dy: Tensor, groups: int, rows: slice) -> Tensor:
        if not self.has_rows():
            return self.weight_gradient(x, weight, dy, groups)[:, rows]
        own_x, own_dy = (x[:, rows], dy) if self._transposed else (x, dy[:, rows])
        return self.weight_gradient(own_x, weight[rows], own_dy, groups)

    def has_rows(self) -> bool:
        return self._channel_groups == 1

    def bias_gradient(self, dy: Tensor, groups: int | None = None) -> Tensor:
        if groups is None:
            return dy.sum([0, *range(2, dy.ndim)])
        return dy.reshape(groups, -1, *dy.shape[1:]).sum([1, *range(3, dy.ndim + 1)])

    def bias_length(self, dy: Tensor) -> int:
        return dy.shape[1]


def _to_channels(x: Tensor, groups: int) -> Tensor:
    return x.reshape(groups, -1, *x.shape[1:]).transpose(0, 1).flatten(1, 2)


def _to_samples(x: Tensor, groups: int) -> Tensor:
    return x.reshape(x.shape[0], groups, -1, *x.shape[2:]).transpose(0, 1).flatten(0, 1)


Call = tuple[Tensor, Tensor, Tensor | None, Operation]
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


CALLS: dict[Callable[..., Any], Callable[..., Call | None]] = {
    F.linear: _linear_call,
    torch.addmm: _addmm_call,
    torch.conv1d: _convolution_call,
    torch.conv2d: _convolution_call,
    torch.conv3d: _convolution_call,
    torch.conv_transpose1d: _transposed_call,
    torch.conv_transpose2d: _transposed_call,
    torch.conv_transpose3d: _transposed_call,
}
"""For each function, what makes a :data:`Call` of its arguments: ``None`` if that cannot be replaced."""
