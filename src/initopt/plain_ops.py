"""Operations whose kernel has no second derivative, or a wrong one, by others that have one.

What is changed here is changed for the whole process, so each change is made by the first thread that needs it and undone
by the last.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils.weight_norm import WeightNorm

__all__ = [
    "plain_attention",
    "plain_embedding",
    "plain_hard_sigmoid",
    "plain_norms",
    "plain_recurrence",
    "plain_weight_norm",
]


class _Shared:
    """A change of the whole process that lasts as long as any thread is in a block of it."""

    def __init__(self, change: Callable[[], AbstractContextManager[Any]]) -> None:
        self._change = change
        self._lock = threading.Lock()
        self._users = 0
        self._undo = ExitStack()

    @contextmanager
    def __call__(self) -> Iterator[None]:
        with self._lock:
            if self._users == 0:
                self._undo.enter_context(self._change())
            self._users += 1
        try:
            yield
        finally:
            with self._lock:
                self._users -= 1
                if self._users == 0:
                    self._undo.close()


@contextmanager
def _replaced(owners: list[Any], name: str, function: Callable[..., Any]) -> Iterator[None]:
    originals = [getattr(owner, name) for owner in owners]
    for owner in owners:
        setattr(owner, name, function)
    try:
        yield
    finally:
        for owner, original in zip(owners, originals, strict=True):
            setattr(owner, name, original)


def _hard_sigmoid(x: Tensor) -> Tensor:
    return F.relu6(x + 3) / 6


@contextmanager
def _hard_sigmoids() -> Iterator[None]:
    kernels = [torch._C._nn]
    with (
        _replaced(kernels, "hardsigmoid", _hard_sigmoid),
        _replaced(kernels, "hardsigmoid_", lambda x: x.copy_(_hard_sigmoid(x))),
    ):
        yield


def _weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    return v * (g / torch.norm_except_dim(v, 2, dim))


_embedding = torch.embedding


def _dense_embedding(
    weight: Tensor, indices: Tensor, padding_idx: int = -1, scale_grad_by_freq: bool = False, sparse: bool = False
) -> Tensor:
    return _embedding(weight, indices, padding_idx, scale_grad_by_freq, False)


_layer_norm, _batch_norm, _instance_norm = torch.layer_norm, torch.batch_norm, torch.instance_norm


def _normalized(x: Tensor, dimensions: list[int], eps: float) -> Tensor:
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    centred = wide - wide.mean(dimensions, keepdim=True)
    return (centred * (centred.square().mean(dimensions, keepdim=True) + eps).rsqrt()).to(x.dtype)


def _affine(x: Tensor, weight: Tensor | None, bias: Tensor | None, shape: list[int]) -> Tensor:
    scaled = x if weight is None else x * weight.reshape(shape)
    return scaled if bias is None else scaled + bias.reshape(shape)


def _composed_layer_norm(
    x: Tensor, normalized_shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5, cudnn_enable: bool = True
) -> Tensor:
    shape = list(normalized_shape)
    return _affine(_normalized(x, list(range(-len(shape), 0)), eps), weight, bias, shape)


def _composed_batch_norm(
    x: Tensor, weight: Any, bias: Any, mean: Any, var: Any, training: bool, momentum: float, eps: float, cudnn: bool
) -> Tensor:
    if not training:
        return _batch_norm(x, weight, bias, mean, var, training, momentum, eps, cudnn)
    if mean is not None:
        with torch.no_grad():  # for the running statistics
            _batch_norm(x, None, None, mean, var, training, momentum, eps, cudnn)
    return _affine(_normalized(x, [0, *range(2, x.ndim)], eps), weight, bias, [1, -1, *([1] * (x.ndim - 2))])


def _composed_instance_norm(
    x: Tensor, weight: Any, bias: Any, mean: Any, var: Any, from_input: bool, momentum: float, eps: float, cudnn: bool
) -> Tensor:
    if not from_input:
        return _instance_norm(x, weight, bias, mean, var, from_input, momentum, eps, cudnn)
    if mean is not None:
        with torch.no_grad():  # for the running statistics
            _instance_norm(x, None, None, mean, var, from_input, momentum, eps, cudnn)
    return _affine(_normalized(x, list(range(2, x.ndim)), eps), weight, bias, [1, -1, *([1] * (x.ndim - 2))])


@contextmanager
def _composed_norms() -> Iterator[None]:
    with (
        _replaced([torch], "layer_norm", _composed_layer_norm),
        _replaced([torch], "batch_norm", _composed_batch_norm),
        _replaced([torch], "instance_norm", _composed_instance_norm),
    ):
        yield


plain_hard_sigmoid = _Shared(_hard_sigmoids)
"""``F.hardsigmoid``: mobile networks are full of it, and torch (2.13) has no second derivative of its kernel."""

plain_weight_norm = _Shared(
    # The parametrization, and the older hook.
    lambda: _replaced([torch, sys.modules[WeightNorm.__module__]], "_weight_norm", _weight_norm)
)
"""Weight norm: the double backward of torch's kernel takes the norms for constants where there is one per row or column,
and is silently wrong (seen in torch 2.13: off by more than the value itself)."""

plain_norms = _Shared(_composed_norms)
"""Layer, batch and instance norm: the third derivative of torch's kernels takes the statistics for constants, and is
silently wrong (seen in torch 2.13); that of group norm and RMS norm is right."""

plain_embedding = _Shared(lambda: _replaced([torch], "embedding", _dense_embedding))
"""Embeddings with sparse gradients: their third derivative is silently wrong, too (seen in torch 2.13)."""

plain_attention = _Shared(lambda: sdpa_kernel(SDPBackend.MATH))
"""Scaled dot-product attention: the fused kernels have no second derivative."""

plain_recurrence = _Shared(lambda: torch.backends.cudnn.flags(enabled=False))
"""Recurrent layers: cuDNN has no second derivative of them, nor a first one in evaluation mode."""
