"""VGG networks for CIFAR, with or without batch norm."""

from __future__ import annotations

from torch import nn

from initopt.zoo._layers import Norm, check_norm, check_sizes, convolution, norm_layer

__all__ = ["vgg"]

_CONVOLUTIONS = {7: (2, 2, 2), 11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
"""By depth, the convolutions of each stage."""


def vgg(
    depth: int = 19, *, width: int = 64, norm: Norm = "batch", num_classes: int = 10, in_channels: int = 3
) -> nn.Sequential:
    """The network of Simonyan and Zisserman, *Very Deep Convolutional Networks* (arXiv 1409.1556), as it is used for CIFAR.

    Stages of 3x3 convolutions with norm and ReLU, each stage ended by max-pooling; the channels double from stage to stage
    up to 8 times ``width``. One linear layer on the mean over height and width stands in the place of ImageNet's three.
    There is no dropout. Without norm the convolutions have biases.

    Depths 11, 13, 16 and 19 are configurations A, B, D and E of the paper's table 1, whose names count three linear layers.
    Depth 7 is ours, for quick work: three stages of two convolutions, and the linear layer.

    Parameters with batch norm: 20.0 M at depth 19, 14.7 M at 16, 9.4 M at 13, 9.2 M at 11, 1.1 M at 7.

    Args:
        depth: 7, 11, 13, 16 or 19.
        width: channels of the first stage.
        norm: ``"batch"`` or ``"none"``.
        num_classes: number of outputs.
        in_channels: channels of the images.

    Returns:
        The network for inputs of shape ``(B, in_channels, H, W)``, H and W of 32 or more (8 or more at depth 7), with
        PyTorch's default weights.

    Raises:
        ValueError: if a number is not a positive integer, or the depth or norm is unknown.

    >>> import torch
    >>> vgg(11, width=8)(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 10])
    """
    check_sizes(width=width, num_classes=num_classes, in_channels=in_channels)
    check_norm(norm)
    if depth not in _CONVOLUTIONS:
        raise ValueError(f"depth must be one of {', '.join(map(str, _CONVOLUTIONS))}; got {depth!r}")
    channels = in_channels
    layers: list[nn.Module] = []
    for stage, convolutions in enumerate(_CONVOLUTIONS[depth]):
        outputs = width * min(2**stage, 8)
        for _ in range(convolutions):
            layers += [convolution(channels, outputs, norm), norm_layer(norm, outputs), nn.ReLU()]
            channels = outputs
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, num_classes))
