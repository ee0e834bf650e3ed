r"""The nonlinearity that follows a layer, and the gain that makes up for it.

The gain of a function f, :math:`1 / \sqrt{\mathbb E f(z)^2}` for a standard normal z, keeps the size of signals; that of
ReLU is He's :math:`\sqrt 2`. Where :func:`torch.nn.init.calculate_gain` has a value, that is used instead; it differs for
tanh (5/3 in place of 1.59), sigmoid and SELU.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from initopt._support.checks import check_choice
from initopt.batches.nested import named_tensors

__all__ = ["NONLINEARITIES", "Follower", "Watch", "gain_of"]

_FUNCTIONS: dict[str, Callable[..., Tensor]] = {
    "celu": F.celu,
    "elu": F.elu,
    "gelu": F.gelu,
    "hardswish": F.hardswish,
    "hardtanh": F.hardtanh,
    "leaky_relu": F.leaky_relu,
    "logsigmoid": F.logsigmoid,
    "mish": F.mish,
    "relu": F.relu,
    "relu6": F.relu6,
    "selu": F.selu,
    "sigmoid": torch.sigmoid,
    "silu": F.silu,
    "softplus": F.softplus,
    "softsign": F.softsign,
    "tanh": torch.tanh,
}
_TEXTBOOK = ("leaky_relu", "relu", "selu", "sigmoid", "tanh")

NONLINEARITIES: tuple[str, ...] = ("linear", *_FUNCTIONS)
"""The nonlinearities whose gain is known, by name."""

_PASSING = {
    *("add", "add_", "sub", "cat", "concat", "stack", "clone", "contiguous", "to", "float", "double", "half", "bfloat16"),
    *("view", "reshape", "flatten", "unflatten", "transpose", "permute", "movedim", "swapaxes", "unsqueeze", "squeeze"),
    *("expand", "chunk", "split", "unbind", "narrow", "pad", "interpolate", "__getitem__", "mean", "roll"),
    *("batch_norm", "layer_norm", "group_norm", "instance_norm", "rms_norm", "normalize"),
    *("dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout"),
    *("avg_pool1d", "avg_pool2d", "avg_pool3d", "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d"),
}
"""Functions after which a layer's nonlinearity may still follow: shapes, sums, norms and pools."""

_POOLS = {F.max_pool1d, F.max_pool2d, F.max_pool3d, F.adaptive_max_pool1d, F.adaptive_max_pool2d, F.adaptive_max_pool3d}

_LINEAR = {
    *("linear", "bilinear", "addmm", "conv1d", "conv2d", "conv3d"),
    *("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"),
}

Follower = tuple[str, tuple[Any, ...], dict[str, Any]]
"""Name of a nonlinearity, with the arguments after its input."""


class Watch(TorchFunctionMode):
    """A block in which a model runs and is watched for what becomes of the output of its layers.

    An output is followed through norms, sums, pools and changes of shape to the first nonlinearity; a product, or the next
    layer, ends the search.

    Args:
        weights: those of the layers.
    """

    def __init__(self, weights: set[Tensor]) -> None:
        super().__init__()
        self.followers: dict[Tensor, Follower] = {}
        self._weights = weights
        # With the tensors themselves, so that no other gets their id.
        self._origins: dict[int, tuple[Tensor, frozenset[Tensor]]] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        given = [tensor for _, tensor in named_tensors([list(args), kwargs])] if self._concerns(func, name) else []
        origins = frozenset(layer for tensor in given for layer in self._origins.get(id(tensor), (None, ()))[1])
        result = func(*args, **kwargs)
        plain = name.removesuffix("_")
        if name in _LINEAR:
            self._mark(result, frozenset(tensor for tensor in given if tensor in self._weights))
        elif plain in _FUNCTIONS or plain == "prelu":
            for layer in origins:
                self.followers.setdefault(layer, _follower(plain, args[1:], kwargs))
            self._mark(result, frozenset())
        elif origins:
            self._mark(result, origins)
        return result

    @staticmethod
    def _concerns(func: Any, name: str) -> bool:
        return name in _LINEAR or name in _PASSING or name.removesuffix("_") in {*_FUNCTIONS, "prelu"} or func in _POOLS

    def _mark(self, result: Any, origins: frozenset[Tensor]) -> None:
        for _, tensor in named_tensors(result):
            self._origins[id(tensor)] = (tensor, origins)


def _follower(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Follower:
    if name == "prelu":
        slope = args[0] if args else kwargs["weight"]
        return "leaky_relu", (float(slope.detach().mean()),), {}
    return name, args, {key: value for key, value in kwargs.items() if key not in ("input", "inplace")}


def gain_of(name: str, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None) -> float:
    """The gain of a nonlinearity.

    Args:
        name: one of :data:`NONLINEARITIES`.
        args: its arguments after the input.
        kwargs: the same by name.

    Raises:
        ValueError: for an unknown name; the message lists the known ones.

    >>> round(gain_of("relu"), 6), round(gain_of("gelu"), 3)
    (1.414214, 1.534)
    """
    kwargs = dict(kwargs or {})
    check_choice("nonlinearity", name, NONLINEARITIES)
    if name == "linear":
        return 1.0
    if name in _TEXTBOOK:
        slope = kwargs.get("negative_slope", next(_numbers(args), None)) if name == "leaky_relu" else None
        return float(nn.init.calculate_gain(name, slope))  # type: ignore[arg-type]
    nodes, weights = np.polynomial.hermite_e.hermegauss(100)
    values = _FUNCTIONS[name](torch.from_numpy(nodes), *(a for a in args if not isinstance(a, bool)), **kwargs)
    return 1 / math.sqrt(float(values.square() @ torch.from_numpy(weights)) / math.sqrt(2 * math.pi))


def _numbers(args: tuple[Any, ...]) -> Iterator[float]:
    return (a for a in args if isinstance(a, (int, float)) and not isinstance(a, bool))
