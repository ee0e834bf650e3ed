"""Objectives of NIO: differentiable functions of a gradient Gram matrix, by name.

| name | minimized | in the published code |
| --- | --- | --- |
| ``cosine`` | -GradCosine | ``gc`` |
| ``cosine+norm`` | -GradCosine - w * sum of norms | ``gc_gn_sqrt`` |
| ``cosine+sqnorm`` | -GradCosine - w * sum of squared norms | ``gc_gn`` |
| ``cosine+lognorm`` | -GradCosine - w * mean of the logarithms of the norms | |
| ``variance`` | gradient variance | ``gv`` |
| ``variance+norm`` | gradient variance - w * sum of norms | ``gv_gn_sqrt`` |
| ``variance+lognorm`` | gradient variance - w * mean of the logarithms of the norms | |
| ``variance+sqnorm`` | gradient variance - w * sum of squared norms | ``gv_gn`` |

The sums run over the D sub-batches (they are sums, not means), and w is ``norm_weight``. The logarithm weighs relative
changes of the norm, so that it counts alike whether gradients are small or large at first. Both spellings of a name are
accepted; any function from a ``(D, D)`` tensor to a scalar tensor serves as an objective, too.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from initopt._support.words import unknown
from initopt.gram import functional

__all__ = ["NAMES", "Objective", "get", "grad_norm"]

Objective = Callable[[Tensor], Tensor]
"""A differentiable function from a Gram matrix of shape ``(D, D)`` to a scalar, to be minimized."""

_SPREAD: dict[str, Objective] = {
    "cosine": lambda gram: -functional.grad_cosine(gram),
    "variance": functional.grad_variance,
}
_SIZE: dict[str, Objective] = {
    "norm": lambda gram: functional.grad_norms(gram).sum(-1),
    "sqnorm": lambda gram: functional.grad_sqnorms(gram).sum(-1),
    # A gradient of zero has no norm to grow from: it adds a constant.
    "lognorm": lambda gram: functional.grad_norms(gram).clamp_min(torch.finfo(gram.dtype).tiny).log().mean(-1),
}
_PUBLISHED = {
    "gc": "cosine",
    "gc_gn_sqrt": "cosine+norm",
    "gc_gn": "cosine+sqnorm",
    "gv": "variance",
    "gv_gn_sqrt": "variance+norm",
    "gv_gn": "variance+sqnorm",
}
NAMES: tuple[str, ...] = (*_PUBLISHED.values(), "cosine+lognorm", "variance+lognorm")
"""The named objectives."""

grad_norm: Objective = functional.grad_norm
"""What a NIO step minimizes while the gradient norm exceeds its bound."""


def get(objective: str | Objective, norm_weight: float = 1.0) -> Objective:
    """The objective of a name.

    Args:
        objective: one of :data:`NAMES`, its name in the published code, or a function, which is returned as it is.
        norm_weight: w, the weight of the norm term in the objectives that have one.

    Raises:
        ValueError: for an unknown name; the message lists the known ones.

    >>> import torch
    >>> phi = get("cosine+norm", norm_weight=0.1)
    >>> phi(torch.tensor([[4.0, 3.0], [3.0, 9.0]]))
    tensor(-1.)
    """
    if callable(objective):
        return objective
    name = _PUBLISHED.get(objective, objective)
    if name not in NAMES:
        raise ValueError(f"{unknown('objective', objective, NAMES)}, or pass a function of a Gram matrix")
    spread_name, _, size_name = name.partition("+")
    spread = _SPREAD[spread_name]
    if not size_name:
        return spread
    size = _SIZE[size_name]
    return lambda gram: spread(gram) - norm_weight * size(gram)
