"""Convolutions and norms, as the residual networks have them."""

from __future__ import annotations

from typing import Literal

from torch import nn

__all__ = ["Norm", "check_norm", "convolution", "norm_layer"]

Norm = Literal["batch", "none"]


def check_norm(norm: str) -> None:
    """Refuse an unknown norm.

    Raises:
        ValueError: the message lists the known ones.
    """
    if norm not in ("batch", "none"):
        raise ValueError(f"unknown norm {norm!r}; known are 'batch', 'none'")


def convolution(inputs: int, outputs: int, norm: Norm, *, size: int = 3, stride: int = 1) -> nn.Conv2d:
    """A convolution that keeps height and width at stride 1, with a bias only where no norm would undo it."""
    return nn.Conv2d(inputs, outputs, size, stride=stride, padding=size // 2, bias=norm == "none")


def norm_layer(norm: Norm, channels: int) -> nn.Module:
    """A batch norm, or nothing."""
    return nn.BatchNorm2d(channels) if norm == "batch" else nn.Identity()
