"""Sets of keyword arguments.

:data:`published` makes :func:`initopt.nio` do what the published code of the NIO paper did in its ImageNet run, with
batches of 64, and :data:`published_class_defaults` what that code does if it is told nothing. :data:`published_measure`,
the part of both that :func:`initopt.measure` has, makes that measure as the code does.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from initopt._support.checks import check_choice

__all__ = ["PRESETS", "get", "published", "published_class_defaults", "published_measure"]


def _of_conv_linear_or_layer_norm(name: str, parameter: nn.Parameter, module: nn.Module) -> bool:
    return isinstance(module, (nn.Conv2d, nn.Linear, nn.LayerNorm))


def _named_weight_or_bias(name: str, parameter: nn.Parameter, module: nn.Module) -> bool:
    return "weight" in name or "bias" in name


published_measure: dict[str, Any] = {
    "split": "published",
    "batch_norm": "batch",
    "grad_params": _of_conv_linear_or_layer_norm,
}
"""How the published code splits a batch, normalizes, and which parameters it counts as gradient."""

published: dict[str, Any] = published_measure | {
    "steps": 100,
    "num_subbatches": 4,
    "overlap": 0.2,
    "lr": 0.003,
    "max_grad_norm": 10.0,
    "scale_params": _named_weight_or_bias,
    "scale_biases": True,
    "scale_invariant": True,
    "objective": "cosine+norm",
    "norm_weight": 1.0,
    "centre": None,
    "min_scale": 0.01,
    "min_bias_scale": 0.0,
}
"""All that the published code was told in its ImageNet run, with batches of 64. Override any: ``{**published, ...}``."""

published_class_defaults: dict[str, Any] = published | {
    "num_subbatches": 2,
    "overlap": 0.0,
    "lr": 0.05,
    "max_grad_norm": 5.0,
    "objective": "cosine",
}
"""The defaults of the published code's class. No configuration but that of the ImageNet run was published."""

PRESETS: dict[str, dict[str, Any]] = {"published": published, "published_class_defaults": published_class_defaults}
"""Every preset by name."""


def get(name: str) -> dict[str, Any]:
    """A copy of the preset of a name.

    Raises:
        ValueError: for an unknown name; the message lists the known ones.

    >>> get("published")["split"]
    'published'
    """
    check_choice("preset", name, PRESETS)
    return dict(PRESETS[name])
