"""Operations whose kernel has no second derivative, or a wrong one, by others that have one.

What is changed here is changed for the present thread, by a mode: one that trains meanwhile sees PyTorch's own. A mode
costs some 30 microseconds for each call of a function of PyTorch, so :func:`watching` looks in the first pass which of
the operations there are, and no mode is on later where there are none.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from initopt._support._torch_private import attention_math, backward_pass, kernels_named, unheard

__all__ = [
    "ModeOverGradients",
    "plain_attention",
    "plain_embedding",
    "plain_kernels",
    "plain_norms",
    "uses_autocast",
    "watching",
]


class ModeOverGradients(TorchFunctionMode):
    """A mode that is on in ``torch.autograd.grad``, too.

    Activation checkpointing runs parts of the model again in a backward pass, and they must meet the same operations.
    """

    def grad(self, outputs: Any, inputs: Any, grad_outputs: Any = None, **options: Any) -> Any:
        """``torch.autograd.grad`` with this mode on, which is off while a mode handles a call.

        It cannot be called with a mode on, so this is the call to the engine that it makes itself.
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
            return backward_pass(outputs, slopes, keep, create_graph, inputs, bool(allow_unused))


def _as_tuple(value: Any) -> tuple[Any, ...]:
    return (value,) if isinstance(value, Tensor) else tuple(value)


class _Plain(ModeOverGradients):
    """A block in which some functions are others.

    Args:
        table: what stands for which function.
    """

    def __init__(self, table: Mapping[Any, Callable[..., Any]]) -> None:
        super().__init__()
        self._table = table

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.autograd.grad:
            return self.grad(*args, **kwargs)
        _session.autocast |= torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda")
        if func not in self._table:
            return func(*args, **kwargs)
        _session.used.add(func)
        if self._table[func] is _open_attention:  # what it calls is to be seen, too
            with self:
                return _open_attention(*args, **kwargs)
        return self._table[func](*args, **kwargs)


def _hard_sigmoid(x: Tensor) -> Tensor:
    return F.relu6(x + 3) / 6


def _hard_sigmoid_of_modules(input: Tensor, inplace: bool = False) -> Tensor:
    return input.copy_(_hard_sigmoid(input)) if inplace else _hard_sigmoid(input)


def _weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    return v * (g / torch.norm_except_dim(v, 2, dim))


def _without_cudnn(function: Callable[..., Any]) -> Callable[..., Any]:
    """The setting is the process's, so it is made for as long as the call takes, by one thread at a time.

    Not on a CPU, where nobody asks for it.
    """

    def call(*args: Any, **kwargs: Any) -> Any:
        if args[0].device.type == "cpu":  # the input
            return function(*args, **kwargs)
        with _CUDNN, torch.backends.cudnn.flags(enabled=False):
            return function(*args, **kwargs)

    return call


_CUDNN = threading.RLock()


def _attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0,
    is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False,
) -> Tensor:  # fmt: skip
    device = query.device.type
    if torch.is_autocast_enabled(device):  # which knows the function that this stands for
        dtype = torch.get_autocast_dtype(device)
        query, key, value = (t.to(dtype) if t.is_floating_point() else t for t in (query, key, value))
        if attn_mask is not None and attn_mask.is_floating_point():
            attn_mask = attn_mask.to(dtype)
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype).masked_fill_(~attn_mask, -torch.inf)
    return attention_math(query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa)


_open_attention = unheard(F.multi_head_attention_forward)
"""``F.multi_head_attention_forward`` that does not hand itself to the modes that are on, and so comes to what it calls."""


def _dense_embedding(
    weight: Tensor, indices: Tensor, padding_idx: int = -1, scale_grad_by_freq: bool = False, sparse: bool = False
) -> Tensor:
    return torch.embedding(weight, indices, padding_idx, scale_grad_by_freq, False)


def _dense_embedding_of_modules(*args: Any, **kwargs: Any) -> Tensor:
    return F.embedding(*args[:6], **(kwargs | {"sparse": False}))


def _normalized(x: Tensor, dimensions: list[int], eps: float) -> Tensor:
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    centred = wide - wide.mean(dimensions, keepdim=True)
    return (centred * (centred.square().mean(dimensions, keepdim=True) + eps).rsqrt()).to(x.dtype)


def _affine(x: Tensor, weight: Tensor | None, bias: Tensor | None, shape: list[int]) -> Tensor:
    scaled = x if weight is None else x * weight.reshape(shape)
    return scaled if bias is None else scaled + bias.reshape(shape)


def _refuse_one(x: Tensor, count: int, of_what: str) -> None:
    """Refuse statistics of a single number, in the words of ``torch.nn.functional``."""
    if count == 1:
        raise ValueError(f"Expected more than 1 {of_what} when training, got input size {x.size()}")


def _composed_layer_norm(
    x: Tensor, normalized_shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5, cudnn_enable: bool = True
) -> Tensor:
    shape = list(normalized_shape)
    return _affine(_normalized(x, list(range(-len(shape), 0)), eps), weight, bias, shape)


def _composed_batch_norm(
    x: Tensor, weight: Any, bias: Any, mean: Any, var: Any, training: bool, momentum: float, eps: float, cudnn: bool
) -> Tensor:
    if not training:
        return torch.batch_norm(x, weight, bias, mean, var, training, momentum, eps, cudnn)
    if mean is not None:
        with torch.no_grad():  # for the running statistics
            torch.batch_norm(x, None, None, mean, var, training, momentum, eps, cudnn)
    return _affine(_normalized(x, [0, *range(2, x.ndim)], eps), weight, bias, [1, -1, *([1] * (x.ndim - 2))])


def _batch_norm_of_modules(
    input: Tensor, running_mean: Any, running_var: Any, weight: Any = None, bias: Any = None, training: bool = False,
    momentum: float = 0.1, eps: float = 1e-5,
) -> Tensor:  # fmt: skip
    if training:
        _refuse_one(input, input.numel() // max(input.shape[1], 1), "value per channel")
    return _composed_batch_norm(input, weight, bias, running_mean, running_var, training, momentum, eps, False)


def _composed_instance_norm(
    x: Tensor, weight: Any, bias: Any, mean: Any, var: Any, from_input: bool, momentum: float, eps: float, cudnn: bool
) -> Tensor:
    if not from_input:
        return torch.instance_norm(x, weight, bias, mean, var, from_input, momentum, eps, cudnn)
    if mean is not None:
        with torch.no_grad():  # for the running statistics
            torch.instance_norm(x, None, None, mean, var, from_input, momentum, eps, cudnn)
    return _affine(_normalized(x, list(range(2, x.ndim)), eps), weight, bias, [1, -1, *([1] * (x.ndim - 2))])


def _instance_norm_of_modules(
    input: Tensor, running_mean: Any = None, running_var: Any = None, weight: Any = None, bias: Any = None,
    use_input_stats: bool = True, momentum: float = 0.1, eps: float = 1e-5,
) -> Tensor:  # fmt: skip
    if use_input_stats:
        _refuse_one(input, input.shape[2:].numel(), "spatial element")
    return _composed_instance_norm(input, weight, bias, running_mean, running_var, use_input_stats, momentum, eps, False)


_KERNELS: dict[Any, Callable[..., Any]] = {
    F.hardsigmoid: _hard_sigmoid_of_modules,
    **dict.fromkeys(kernels_named("_C._nn.hardsigmoid"), _hard_sigmoid),
    **dict.fromkeys(kernels_named("_C._nn.hardsigmoid_"), lambda x: x.copy_(_hard_sigmoid(x))),
    **dict.fromkeys(kernels_named("_weight_norm"), _weight_norm),
    torch.lstm: _without_cudnn(torch.lstm),
    torch.gru: _without_cudnn(torch.gru),
    torch.rnn_tanh: _without_cudnn(torch.rnn_tanh),
    torch.rnn_relu: _without_cudnn(torch.rnn_relu),
}
"""What is wanted whenever a model runs.

- ``F.hardsigmoid``: mobile networks are full of it, and torch (2.13) has no second derivative of its kernel.
- Weight norm: the double backward of torch's kernel takes the norms for constants where there is one per row or column, and
  is silently wrong (seen in torch 2.13: off by more than the value itself).
- Recurrent layers: cuDNN has no second derivative of them, nor a first one in evaluation mode.
"""

_ATTENTION: dict[Any, Callable[..., Any]] = {
    F.scaled_dot_product_attention: _attention,
    F.multi_head_attention_forward: _open_attention,
}

_NORMS: dict[Any, Callable[..., Any]] = {
    F.layer_norm: _composed_layer_norm,
    torch.layer_norm: _composed_layer_norm,
    F.batch_norm: _batch_norm_of_modules,
    torch.batch_norm: _composed_batch_norm,
    F.instance_norm: _instance_norm_of_modules,
    torch.instance_norm: _composed_instance_norm,
}

_EMBEDDINGS: dict[Any, Callable[..., Any]] = {
    F.embedding: _dense_embedding_of_modules,
    torch.embedding: _dense_embedding,
}


_PLAIN = _KERNELS | _ATTENTION


class _Session(threading.local):
    """What is known in a thread of the model that runs in it."""

    def __init__(self) -> None:
        self.used: set[Any] = set()
        self.watched = self.known = self.autocast = False


_session = _Session()


@contextmanager
def watching() -> Iterator[None]:
    """A block in which one model runs, so that modes are on only for operations that its passes have had by then."""
    before = dict(vars(_session))
    _session.used, _session.watched, _session.known, _session.autocast = set(), True, False, False
    try:
        yield
    finally:
        vars(_session).update(before)


def uses_autocast() -> bool:
    """Whether the model that runs in this thread, or its loss, has been seen to use autocast."""
    return _session.autocast


@contextmanager
def plain_kernels() -> Iterator[None]:
    """The block of a forward pass, in which hard sigmoids, weight norm and recurrent layers have all derivatives."""
    if not _needed(_KERNELS):
        yield
        return
    with _Plain(_KERNELS | {function: function for function in _ATTENTION}):  # attention is only looked for
        yield
    _session.known = _session.watched


@contextmanager
def plain_attention() -> Iterator[None]:
    """Scaled dot-product attention by plain operations: the fused kernels have no second derivative.

    Backward passes stay in this thread, where the mode is.
    """
    if not _needed(_PLAIN):
        yield
        return
    with torch.autograd.set_multithreading_enabled(False), _Plain(_PLAIN):
        yield


def _needed(table: Mapping[Any, Callable[..., Any]]) -> bool:
    return not _session.known or not _session.used.isdisjoint(table)


@contextmanager
def plain_norms() -> Iterator[None]:
    """Layer, batch and instance norm by plain operations.

    The third derivative of torch's kernels takes the statistics for constants, and is silently wrong (seen in torch 2.13);
    that of group norm and RMS norm is right.
    """
    with _Plain(_NORMS):
        yield


@contextmanager
def plain_embedding() -> Iterator[None]:
    """Embeddings with sparse gradients: their third derivative is silently wrong, too (seen in torch 2.13)."""
    with _Plain(_EMBEDDINGS):
        yield
