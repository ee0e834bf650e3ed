"""The densely connected networks for CIFAR."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from initopt.checks import check_integer
from initopt.zoo.convolution import Norm, check_norm, convolution, norm_layer

__all__ = ["densenet"]

_BOTTLENECK = 4


def densenet(
    depth: int = 100, *, growth: int = 12, norm: Norm = "batch", num_classes: int = 10, in_channels: int = 3
) -> nn.Sequential:
    """DenseNet-BC of Huang et al., *Densely Connected Convolutional Networks* (arXiv 1608.06993), section 3.

    Three dense blocks of n units; a unit is a 1x1 convolution to 4 times ``growth`` channels and a 3x3 convolution to
    ``growth`` channels, which are joined to all that came in. Between blocks a 1x1 convolution halves the channels, and a
    mean over 2x2 pixels height and width; ``depth = 6 n + 4``. Norm and ReLU come before each convolution. Without norm the
    convolutions have biases.

    Parameters with batch norm and growth 12: 0.77 M at depth 100.

    Args:
        depth: number of layers with weights, 6 n + 4: 10, 16, 22, 40, 100, ...
        growth: channels that each unit adds.
        norm: ``"batch"`` or ``"none"``.
        num_classes: number of outputs.
        in_channels: channels of the images.

    Returns:
        The network for inputs of shape ``(B, in_channels, H, W)``, with PyTorch's default weights.

    Raises:
        ValueError: if a number is no positive integer, the depth is not 6 n + 4, or the norm is unknown.

    >>> import torch
    >>> densenet(10)(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 10])
    """
    for name, value in {"growth": growth, "num_classes": num_classes, "in_channels": in_channels}.items():
        check_integer(name, value, 1)
    check_integer("depth", depth, 10)
    check_norm(norm)
    if depth % 6 != 4:
        raise ValueError(f"depth must be 6 n + 4, such as 16, 22, 40 or 100; got {depth}")
    channels = 2 * growth
    layers: list[nn.Module] = [convolution(in_channels, channels, norm)]
    for block in range(3):
        if block:
            layers += [_convolution_after_norm(channels, channels // 2, 1, norm), nn.AvgPool2d(2)]
            channels //= 2
        for _ in range(depth // 6):
            layers.append(_Unit(channels, growth, norm))
            channels += growth
    return nn.Sequential(
        *layers,
        norm_layer(norm, channels),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(channels, num_classes),
    )


class _Unit(nn.Module):
    """Two convolutions whose result is joined to what came in."""

    def __init__(self, channels: int, growth: int, norm: Norm) -> None:
        super().__init__()
        self.narrow = _convolution_after_norm(channels, _BOTTLENECK * growth, 1, norm)
        self.grow = _convolution_after_norm(_BOTTLENECK * growth, growth, 3, norm)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.grow(self.narrow(x))], 1)


def _convolution_after_norm(inputs: int, outputs: int, size: int, norm: Norm) -> nn.Sequential:
    return nn.Sequential(norm_layer(norm, inputs), nn.ReLU(), convolution(inputs, outputs, norm, size=size))
