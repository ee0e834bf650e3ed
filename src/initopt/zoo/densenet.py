"""Densely connected networks for CIFAR, with or without batch norm."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from initopt._support.checks import check_integer
from initopt.zoo._layers import Norm, check_norm, check_sizes, convolution, norm_layer

__all__ = ["densenet"]

_STAGES = 3


def densenet(
    depth: int = 100, *, growth: int = 12, norm: Norm = "batch", num_classes: int = 10, in_channels: int = 3
) -> nn.Sequential:
    """DenseNet-BC of Huang et al., *Densely Connected Convolutional Networks* (arXiv 1608.06993), without dropout.

    Three stages of n layers, ``depth = 6 n + 4``. Each layer puts ``growth`` new channels beside those that it is given:
    norm, ReLU and a 1x1 convolution to ``4 * growth`` channels, norm, ReLU and a 3x3 convolution. Between stages, norm,
    ReLU and a 1x1 convolution halve the number of channels, and mean-pooling halves height and width. Without norm the
    convolutions have biases.

    Parameters with batch norm: 0.77 M at depth 100 and growth 12.

    Args:
        depth: number of layers with weights, 6 n + 4: 10, 16, 22, 40, 100, 190, ...
        growth: channels that a layer adds.
        norm: ``"batch"`` or ``"none"``.
        num_classes: number of outputs.
        in_channels: channels of the images.

    Returns:
        The network for inputs of shape ``(B, in_channels, H, W)``, H and W of 4 or more, with PyTorch's default weights.

    Raises:
        ValueError: if a number is not a positive integer, the depth is not 6 n + 4, or the norm is unknown.

    >>> densenet(10, growth=4)(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 10])
    """
    check_integer("depth", depth, 10)
    check_sizes(growth=growth, num_classes=num_classes, in_channels=in_channels)
    check_norm(norm)
    if depth % 6 != 4:
        raise ValueError(f"depth must be 6 n + 4, such as 22, 40 or 100; got {depth}")
    channels = 2 * growth
    layers: list[nn.Module] = [convolution(in_channels, channels, norm)]
    for stage in range(_STAGES):
        if stage > 0:
            layers += [_before(norm, channels), convolution(channels, channels // 2, norm, size=1), nn.AvgPool2d(2)]
            channels //= 2
        for _ in range((depth - 4) // 6):
            layers.append(_Layer(channels, growth, norm))
            channels += growth
    return nn.Sequential(
        *layers, _before(norm, channels), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, num_classes)
    )


def _before(norm: Norm, channels: int) -> nn.Sequential:
    """Norm and ReLU, which come before every layer with weights but the first."""
    return nn.Sequential(norm_layer(norm, channels), nn.ReLU())


class _Layer(nn.Module):
    """A layer that puts new channels beside those that it is given."""

    def __init__(self, inputs: int, growth: int, norm: Norm) -> None:
        super().__init__()
        self.new = nn.Sequential(
            _before(norm, inputs),
            convolution(inputs, 4 * growth, norm, size=1),
            _before(norm, 4 * growth),
            convolution(4 * growth, growth, norm),
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.new(x)], 1)
