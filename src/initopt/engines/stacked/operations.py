"""Operations that give every group of samples a weight gradient of its own, in one forward pass over all groups."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from initopt._support._torch_private import ATTRIBUTES
from initopt.engines.autograd.batch_norm import batch_norm
from initopt.engines.autograd.operations import Call
from initopt.engines.autograd.scaled import Replacing, scale_leaves
from initopt.engines.stacked.attention import self_attention
from initopt.model.parameters import NamedParameter

__all__ = ["Grouping", "NotCoveredError", "are_positions"]


class NotCoveredError(NotImplementedError):
    """A parameter is used in an operation that has no form with a copy of it for each group."""


class Grouping(Replacing):
    """A block in which every use of a parameter is one of a copy for each group of samples.

    The batch holds the groups one after the other, all of the same size, and the model treats samples apart, but for batch
    norms, which are made to use the statistics of each group. A leaf of shape ``(groups, *shape)`` stands for every
    parameter; it is an expanded view and takes no memory. Linear operations run with the shared weight, and only their
    weight gradient is taken for each group; other operations run on the leaf.

    Args:
        parameters: all whose gradients or scales are asked for.
        groups: how many groups there are.
        batch: how many samples they have together. A tensor is taken to have them along its first dimension if that is
            a multiple of it.
    """

    def __init__(self, parameters: Sequence[NamedParameter], groups: int, batch: int) -> None:
        leaves: dict[Tensor, Tensor] = {
            p.value: p.value.detach().unsqueeze(0).expand(groups, *p.value.shape).requires_grad_() for p in parameters
        }
        scales = scale_leaves(parameters)  # also of those without a scale, for their groups
        super().__init__(scales, leaves, groups)
        self.groups = groups
        self.batch = batch
        self._names: dict[Tensor, str] = {p.value: p.name for p in parameters}

    def replaceable(self, call: Call) -> bool:
        return super().replaceable(call) and _has_samples(self, call[0])

    def batch_norm(self, *args: Any, **kwargs: Any) -> Tensor | None:
        """Each group by its own statistics, and with its own weight and bias: see :func:`_batch_norm`."""
        return _batch_norm(self, *args, **kwargs)

    def used(self, args: Any, kwargs: Mapping[str, Any]) -> list[Tensor]:
        """The parameters among the arguments of a call."""
        return [value for value in _tensors(args, kwargs) if value in self.leaves]

    def other(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        if func in ATTRIBUTES:
            return func(*args, **kwargs)
        used = self.used(args, kwargs)
        if func in _GROUPED:
            result = _GROUPED[func](self, *args, **kwargs)
            if result is not None:
                return result
        result = func(*args, **kwargs)
        if used and _carries_gradient(result) and torch.is_grad_enabled():
            name = getattr(func, "__name__", str(func))
            raise NotCoveredError(
                f"{self._names[used[0]]!r} is used in {name}, which has no form with a copy for each group"
            )
        return result

    def leaf_rows(self, parameter: Tensor | None, batch: int, ndim: int, channels_last: bool) -> Tensor | None:
        """A parameter's leaf with a row for every sample, shaped to broadcast against a tensor of ``ndim`` dimensions."""
        if parameter is None:
            return None
        leaf = self.leaves.get(parameter)
        if leaf is None:
            rows = parameter.unsqueeze(0)
        else:
            rows = leaf.unsqueeze(1).expand(self.groups, batch // self.groups, *parameter.shape).flatten(0, 1)
        ones = [1] * (ndim - 1 - parameter.ndim)
        shape = [*ones, *parameter.shape] if channels_last else [*parameter.shape, *ones]
        return rows.reshape(len(rows), *shape)


def _tensors(args: Any, kwargs: Mapping[str, Any]) -> list[Tensor]:
    found: list[Tensor] = []
    for value in (*args, *kwargs.values()):
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, (list, tuple)):
            found += [item for item in value if isinstance(item, Tensor)]
    return found


def _carries_gradient(result: Any) -> bool:
    values = result if isinstance(result, (list, tuple)) else (result,)
    return any(isinstance(value, Tensor) and value.requires_grad for value in values)


def _affine(mode: Grouping, y: Tensor, weight: Tensor | None, bias: Tensor | None, channels_last: bool) -> Tensor:
    scale = mode.leaf_rows(weight, len(y), y.ndim, channels_last)
    shift = mode.leaf_rows(bias, len(y), y.ndim, channels_last)
    y = y if scale is None else y * scale
    return y if shift is None else y + shift


def _has_samples(mode: Grouping, x: Tensor) -> bool:
    return x.ndim > 0 and len(x) % mode.batch == 0


def _layer_norm(
    mode: Grouping, input: Tensor, normalized_shape: Any, weight: Tensor | None = None, bias: Tensor | None = None,
    eps: float = 1e-5, cudnn_enable: bool = True,
) -> Tensor | None:  # fmt: skip
    if not _has_samples(mode, input) or input.ndim == len(normalized_shape):
        return None
    return _affine(mode, F.layer_norm(input, normalized_shape, None, None, eps), weight, bias, channels_last=True)


def _rms_norm(
    mode: Grouping, input: Tensor, normalized_shape: Any, weight: Tensor | None = None, eps: float | None = None
) -> Tensor | None:
    if not _has_samples(mode, input) or input.ndim == len(normalized_shape):
        return None
    return _affine(mode, F.rms_norm(input, normalized_shape, None, eps), weight, None, channels_last=True)


def _group_norm(
    mode: Grouping, input: Tensor, num_groups: int, weight: Tensor | None = None, bias: Tensor | None = None,
    eps: float = 1e-5, cudnn_enabled: bool = True,
) -> Tensor | None:  # fmt: skip
    if not _has_samples(mode, input):
        return None
    return _affine(mode, F.group_norm(input, num_groups, None, None, eps), weight, bias, channels_last=False)


def _batch_norm(
    mode: Grouping, input: Tensor, running_mean: Tensor | None, running_var: Tensor | None, weight: Tensor | None = None,
    bias: Tensor | None = None, training: bool = False, momentum: float = 0.1, eps: float = 1e-5,
) -> Tensor | None:  # fmt: skip
    if not _has_samples(mode, input):
        return None
    if not training:
        y = F.batch_norm(input, running_mean, running_var, None, None, False, momentum, eps)
        return _affine(mode, y, weight, bias, channels_last=False)
    if len(input) == mode.groups and input.ndim == 2:
        raise ValueError(f"Expected more than 1 value per channel when training, got input size {[1, *input.shape[1:]]}")
    scale, shift = (None if t is None else mode.leaves.get(t, t.expand(mode.groups, -1)) for t in (weight, bias))
    return batch_norm(input, scale, shift, eps, mode.phase, mode.groups)


def _instance_norm(
    mode: Grouping, input: Tensor, running_mean: Tensor | None = None, running_var: Tensor | None = None,
    weight: Tensor | None = None, bias: Tensor | None = None, use_input_stats: bool = True, momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor | None:  # fmt: skip
    if not _has_samples(mode, input):
        return None
    y = F.instance_norm(input, running_mean, running_var, None, None, use_input_stats, momentum, eps)
    return _affine(mode, y, weight, bias, channels_last=False)


def _embedding(
    mode: Grouping, input: Tensor, weight: Tensor, padding_idx: int | None = None, max_norm: float | None = None,
    norm_type: float = 2.0, scale_grad_by_freq: bool = False, sparse: bool = False,
) -> Tensor | None:  # fmt: skip
    leaf = mode.leaves.get(weight)
    if leaf is None or max_norm is not None or scale_grad_by_freq or sparse or input.ndim == 0:
        return None
    if _has_samples(mode, input) and not are_positions(input):
        offsets = torch.arange(mode.groups, device=input.device) * len(weight)
        rows = input.reshape(mode.groups, -1) + offsets.unsqueeze(1)
        found = F.embedding(rows.reshape(input.shape), leaf.flatten(0, 1))
    else:  # positions, say, which are the same for all samples: of shape (T,) or (1, T)
        shared = input[0] if len(input) == 1 else input
        found = leaf[:, shared].unsqueeze(1).expand(-1, mode.batch // mode.groups, *shared.shape, -1).flatten(0, 1)
    if padding_idx is not None and padding_idx != -1:  # its row has no gradient
        found = torch.where((input == padding_idx % len(weight)).unsqueeze(-1), found.detach(), found)
    return found


def are_positions(index: Tensor) -> bool:
    """Whether these are the positions of a sequence that happens to be as long as the batch."""
    return index.ndim == 1 and torch.equal(index, torch.arange(len(index), dtype=index.dtype, device=index.device))


def _prelu(mode: Grouping, input: Tensor, weight: Tensor) -> Tensor | None:
    if not _has_samples(mode, input):
        return None
    slope = mode.leaf_rows(weight, len(input), max(input.ndim, 2), channels_last=False)
    assert slope is not None
    return torch.where(input > 0, input, input * slope)


def _expand(mode: Grouping, input: Tensor, *sizes: Any) -> Tensor | None:
    """A token that is the same for all samples, as vision transformers have: ``token.expand(batch, -1, -1)``."""
    shape = tuple(sizes[0]) if len(sizes) == 1 and isinstance(sizes[0], (tuple, list, torch.Size)) else sizes
    if input not in mode.leaves or input.ndim < 2 or len(input) != 1 or len(shape) != input.ndim:
        return None
    if shape[0] <= 0 or shape[0] % mode.batch:
        return None
    rows = mode.leaf_rows(input, shape[0], input.ndim + 1, channels_last=True)
    assert rows is not None
    return rows.flatten(0, 1).expand(*shape)


def _elementwise(function: Any) -> Callable[..., Tensor | None]:
    def grouped(mode: Grouping, input: Any, other: Any, **options: Any) -> Tensor | None:
        left, right = (isinstance(value, Tensor) and value in mode.leaves for value in (input, other))
        if left == right or options:
            return None
        parameter, x = (input, other) if left else (other, input)
        if not isinstance(x, Tensor) or x.ndim == 0 or not _has_samples(mode, x):
            return None
        shape = parameter
        if parameter.ndim == x.ndim and len(parameter) == 1:  # (1, ...) beside (batch, ...)
            rows = mode.leaf_rows(parameter, len(x), x.ndim + 1, channels_last=True)
            assert rows is not None
            shape = rows.flatten(0, 1)
        elif parameter.ndim < x.ndim:
            found = mode.leaf_rows(parameter, len(x), x.ndim, channels_last=True)
            assert found is not None
            shape = found
        else:
            return None
        result: Tensor = function(shape, x) if left else function(x, shape)
        return result

    return grouped


_GROUPED: dict[Any, Callable[..., Any]] = {
    F.layer_norm: _layer_norm,
    torch.layer_norm: _layer_norm,
    F.rms_norm: _rms_norm,
    F.group_norm: _group_norm,
    F.batch_norm: _batch_norm,  # without gradients, as of a teacher in the model; with them, see the base class
    F.instance_norm: _instance_norm,
    F.embedding: _embedding,
    F.multi_head_attention_forward: self_attention,
    F.prelu: _prelu,
    Tensor.expand: _expand,
} | {
    name: _elementwise(function)
    for function, names in {
        torch.add: (torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__),
        torch.sub: (torch.sub, Tensor.sub, Tensor.__sub__),
        torch.mul: (torch.mul, Tensor.mul, Tensor.__mul__, Tensor.__rmul__),
        torch.div: (torch.div, Tensor.div, Tensor.__truediv__),
    }.items()
    for name in names
}
