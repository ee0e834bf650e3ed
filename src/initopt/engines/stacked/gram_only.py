"""Operations that leave the Gram matrix of the groups' gradients behind, and not the gradients of their weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from initopt._support._torch_private import in_functorch, layer_norm_backward, layer_norm_forward, undisturbed
from initopt.engines.autograd.operations import Call, Operation
from initopt.engines.base import Gradients, GramSum
from initopt.engines.stacked.contributions import EmbeddingUse, LinearUse, Use, add_uses
from initopt.engines.stacked.operations import Grouping, NotCoveredError, are_positions
from initopt.model.parameters import NamedParameter
from initopt.model.problem import as_real

__all__ = ["GramMode"]


class GramMode(Grouping):
    """As :class:`Grouping`, but what a weight gradient would be made of goes into a Gram matrix at once.

    A weight's share is added when the backward pass has met all its uses, so that at no time more than one block of rows of
    the gradients of one weight is in memory, and the inputs and output gradients only of weights with several uses. What
    other operations leave (norms, biases) is as small as their parameters.

    Args:
        parameters: those that make up the gradients.
        groups: how many groups there are.
        batch: how many samples they have together.
    """

    def __init__(self, parameters: Sequence[NamedParameter], groups: int, batch: int) -> None:
        super().__init__(parameters, groups, batch)
        self._parameters = parameters
        self._total = GramSum(groups)
        self._expected: Counter[Tensor] = Counter()
        self._uses: dict[Tensor, list[Use]] = {}
        self._gradients: dict[Tensor, Tensor] = {}
        self._used_otherwise: set[Tensor] = set()
        self._counting = True
        self._squares: dict[Tensor, Tensor] = {}

    def gram(self, loss: Tensor) -> Tensor:
        """The Gram matrix, from the sum of the groups' losses; float64, on the CPU. Frees the graph."""
        leaves = [self.leaves[p.value] for p in self._parameters]
        with self._in_backward():
            rest: Gradients = torch.autograd.grad(loss, leaves, allow_unused=True)
        for parameter, gradient in zip(self._parameters, rest, strict=True):
            self._close(parameter.value, gradient)
        return self._total.matrix()

    def broken(self, d: int) -> list[str]:
        """Names of the parameters whose gradient in a group is not finite."""
        return [
            p.name for p in self._parameters if p.value in self._squares and not torch.isfinite(self._squares[p.value][d])
        ]

    @contextmanager
    def _in_backward(self) -> Iterator[None]:
        """A block in which activation checkpointing may run operations once more, which do not count as uses."""
        self._counting = False
        try:
            yield
        finally:
            self._counting = True

    def announce(self, weight: Tensor) -> None:
        """Expect a use of a weight to be met in the backward pass."""
        self._expected[weight] += self._counting

    def meet_gradient(self, parameter: Tensor | None, gradient: Tensor | None) -> None:
        """Take in a part of the gradient of a small parameter, in every group: shape ``(groups, *parameter.shape)``."""
        if parameter is not None and gradient is not None and parameter in self.leaves:
            known = self._gradients.get(parameter)
            self._gradients[parameter] = gradient if known is None else known + gradient

    def meet(self, weight: Tensor, use: Use) -> None:
        """Take in a use of a weight."""
        if weight not in self.leaves:
            return
        uses = self._uses.setdefault(weight, [])
        uses.append(use)
        if len(uses) == self._expected[weight] and weight not in self._used_otherwise:
            self._close(weight, None)

    def _close(self, parameter: Tensor, gradient: Tensor | None) -> None:
        """Add the share of a parameter, of whose gradient a part may be at hand."""
        uses = self._uses.pop(parameter, [])
        part = self._gradients.pop(parameter, None)
        if part is not None:
            gradient = part if gradient is None else gradient + part
        if not uses and gradient is None:
            return
        share = GramSum(self.groups)
        with torch.no_grad(), undisturbed():  # by this mode itself
            if uses:
                add_uses(share, parameter, uses, gradient)
            else:
                assert gradient is not None
                share.add_rows(as_real(gradient).reshape(self.groups, -1))
        self._total.add_sum(share)
        self._squares[parameter] = share.sqnorms()

    def other(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        if func is F.embedding and torch.is_grad_enabled():
            found = self._taken(*args, **kwargs)
            if found is not None:
                return found
        if func is F.layer_norm and torch.is_grad_enabled():
            normalized = self._normalized(*args, **kwargs)
            if normalized is not None:
                return normalized
        if func is not F.multi_head_attention_forward:  # which comes back as linear layers, or not at all
            self._used_otherwise.update(self.used(args, kwargs))
        return super().other(func, args, kwargs)

    def grad(self, *args: Any, **options: Any) -> Any:
        if self._counting:
            raise NotCoveredError("the loss takes gradients itself")
        return super().grad(*args, **options)

    def replaced(self, call: Call) -> Any:
        x, weight, bias, _ = call
        self.announce(weight)
        leaves = [None if p is None else self.leaves.get(p, p) for p in (weight, bias)]
        return _Linear.apply(x, *leaves, call, self)  # type: ignore[no-untyped-call]

    def _taken(
        self, input: Tensor, weight: Tensor, padding_idx: int | None = None, max_norm: float | None = None,
        norm_type: float = 2.0, scale_grad_by_freq: bool = False, sparse: bool = False,
    ) -> Tensor | None:  # fmt: skip
        if weight not in self.leaves or max_norm is not None or scale_grad_by_freq or input.ndim == 0:
            return None
        index = input
        if len(input) % self.batch != 0 or are_positions(input):  # the same for all samples: of shape (T,) or (1, T)
            one = input[0] if len(input) == 1 else input
            index = one.unsqueeze(0).expand(self.batch, *one.shape)
        ignored = None if padding_idx is None or padding_idx == -1 else padding_idx % len(weight)
        self.announce(weight)
        taken: Tensor = _Taken.apply(index, self.leaves[weight], weight, ignored, self)  # type: ignore[no-untyped-call]
        return taken

    def _normalized(
        self, input: Tensor, normalized_shape: Any, weight: Tensor | None = None, bias: Tensor | None = None,
        eps: float = 1e-5,
    ) -> Tensor | None:  # fmt: skip
        """Layer norm with nothing kept but its input: an input of ``weight``'s multiplication would be as large."""
        affine = [p for p in (weight, bias) if p is not None]
        plain = type(input) in (Tensor, nn.Parameter) and all(p in self.leaves and p.dtype == input.dtype for p in affine)
        if not affine or not plain or len(input) % self.batch or input.ndim == len(normalized_shape):
            return None
        if torch.is_autocast_enabled(input.device.type) or in_functorch():
            return None
        leaves = [None if p is None else self.leaves[p] for p in (weight, bias)]
        y: Tensor = _LayerNorm.apply(input, *leaves, weight, bias, normalized_shape, eps, self)  # type: ignore[no-untyped-call]
        return y


class _LayerNorm(torch.autograd.Function):
    """Layer norm with a weight, a bias or both."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, leaf: Tensor | None, bias_leaf: Tensor | None, weight: Tensor | None, bias: Tensor | None,
        shape: Any, eps: float, mode: GramMode,
    ) -> Tensor:  # fmt: skip
        y, mean, invstd = layer_norm_forward(x, shape, weight, bias, eps)
        ctx.parameters, ctx.shape, ctx.mode = (weight, bias), shape, mode
        ctx.save_for_backward(x, mean, invstd)
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, mean, invstd = ctx.saved_tensors
        weight, bias = ctx.parameters
        mode: GramMode = ctx.mode
        by_group = (mode.groups, -1, *ctx.shape)
        mode.meet_gradient(bias, dy.reshape(by_group).sum(1))
        if weight is not None:
            mode.meet_gradient(weight, ((x - mean) * invstd * dy).reshape(by_group).sum(1))
        dx = layer_norm_backward(dy, x, ctx.shape, mean, invstd, weight, bias)
        return dx, None, None, None, None, None, None, None


class _Linear(torch.autograd.Function):
    """y = op(x, W) + b."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, leaf: Tensor, bias_leaf: Tensor | None, call: Call, mode: GramMode) -> Tensor:
        _, weight, bias, operation = call
        ctx.operation, ctx.mode = operation, mode
        ctx.parameters = weight, bias  # what is saved may come back as another tensor
        ctx.save_for_backward(x, weight)
        return operation.apply(x, weight, bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, value = ctx.saved_tensors
        weight, bias = ctx.parameters
        operation: Operation = ctx.operation
        mode: GramMode = ctx.mode
        if bias is not None:
            mode.meet_gradient(bias, operation.bias_gradient(dy, mode.groups))
        dx = operation.input_gradient(x, value, dy) if ctx.needs_input_grad[0] else None
        mode.meet(weight, LinearUse(operation, x, value, dy))
        return dx, None, None, None, None


class _Taken(torch.autograd.Function):
    """Rows of a table."""

    @staticmethod
    def forward(ctx: Any, index: Tensor, leaf: Tensor, weight: Tensor, ignored: int | None, mode: GramMode) -> Tensor:
        ctx.weight, ctx.ignored, ctx.mode = weight, ignored, mode
        ctx.save_for_backward(index)
        return F.embedding(index, weight)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        (index,) = ctx.saved_tensors
        ctx.mode.meet(ctx.weight, EmbeddingUse(index, dy, ctx.ignored))
        return None, None, None, None, None
