"""Plain convolutional networks for CIFAR."""

from __future__ import annotations

from torch import nn

from initopt.checks import check_integer
from initopt.zoo.convolution import Norm, check_norm, convolution, norm_layer

__all__ = ["vgg"]

_STAGES = {7: (2, 2, 2), 11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
"""Convolutions of each stage, by depth."""

_GROWTH = (1, 2, 4, 8, 8)


def vgg(
    depth: int = 19, *, width: int = 64, norm: Norm = "batch", num_classes: int = 10, in_channels: int = 3
) -> nn.Sequential:
    """The plain networks of Simonyan and Zisserman, *Very Deep Convolutional Networks* (arXiv 1409.1556), for small images.

    Stages of 3x3 convolutions, each ended by a 2x2 maximum pooling; then the mean over what is left of the image, and one
    linear layer in the place of three, as is usual for CIFAR. Depth 7, with three stages, is for quick work. Without norm
    the convolutions have biases.

    Parameters with batch norm: 9.2 M at depth 11, 14.7 M at 16, 20.0 M at 19; 0.07 M at depth 7 and width 16.

    Args:
        depth: number of layers with weights: 7, 11, 13, 16 or 19.
        width: channels of the first stage; the next ones have 2, 4, 8 and 8 times as many.
        norm: ``"batch"`` or ``"none"``.
        num_classes: number of outputs.
        in_channels: channels of the images.

    Returns:
        The network for inputs of shape ``(B, in_channels, H, W)``, H and W 32 or more (8 or more at depth 7), with
        PyTorch's default weights.

    Raises:
        ValueError: if a number is no positive integer, there is no such depth, or the norm is unknown.

    >>> import torch
    >>> vgg(7, width=16)(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 10])
    """
    for name, value in {"width": width, "num_classes": num_classes, "in_channels": in_channels}.items():
        check_integer(name, value, 1)
    check_norm(norm)
    if depth not in _STAGES:
        raise ValueError(f"depth must be one of {', '.join(map(str, _STAGES))}; got {depth!r}")
    layers: list[nn.Module] = []
    channels = in_channels
    for count, growth in zip(_STAGES[depth], _GROWTH, strict=False):
        for _ in range(count):
            layers += [convolution(channels, growth * width, norm), norm_layer(norm, growth * width), nn.ReLU()]
            channels = growth * width
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, num_classes))
