"""Wide residual networks for CIFAR, with or without batch norm."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from initopt._support.checks import check_integer
from initopt.zoo._layers import Norm, check_norm, check_sizes, convolution, norm_layer

__all__ = ["wide_resnet"]


def wide_resnet(
    depth: int = 28, width: int = 10, *, norm: Norm = "batch", num_classes: int = 10, in_channels: int = 3
) -> nn.Sequential:
    """The network of Zagoruyko and Komodakis, *Wide Residual Networks* (arXiv 1605.07146), without dropout.

    Three stages of 16, 32 and 64 times ``width`` channels, each of n blocks with norm and ReLU before each of their two 3x3
    convolutions, ``depth = 6 n + 4``. The shortcut of the first block of a stage is a 1x1 convolution; that of the first
    stage is the identity if ``width`` is 1, since the number of channels does not change there. Without norm the
    convolutions have biases.

    Parameters with batch norm: 36.5 M for WRN-28-10, 2.7 M for WRN-16-4.

    Args:
        depth: number of convolutions, 6 n + 4: 10, 16, 22, 28, 40, ...; the three of the shortcuts count (with ``width`` 1
            there are only two, and so one convolution fewer).
        width: factor of the number of channels.
        norm: ``"batch"`` or ``"none"``.
        num_classes: number of outputs.
        in_channels: channels of the images.

    Returns:
        The network for inputs of shape ``(B, in_channels, H, W)``, with PyTorch's default weights.

    Raises:
        ValueError: if a number is not a positive integer, the depth is not 6 n + 4, or the norm is unknown.

    >>> import torch
    >>> wide_resnet(10, 1)(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 10])
    """
    check_integer("depth", depth, 10)
    check_sizes(width=width, num_classes=num_classes, in_channels=in_channels)
    check_norm(norm)
    if depth % 6 != 4:
        raise ValueError(f"depth must be 6 n + 4, such as 16, 22, 28 or 40; got {depth}")
    channels = 16
    blocks: list[nn.Module] = []
    for stage, outputs in enumerate((16 * width, 32 * width, 64 * width)):
        for position in range((depth - 4) // 6):
            stride = 2 if stage > 0 and position == 0 else 1
            blocks.append(_Block(channels, outputs, stride, norm))
            channels = outputs
    return nn.Sequential(
        convolution(in_channels, 16, norm),
        *blocks,
        norm_layer(norm, channels),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(channels, num_classes),
    )


class _Block(nn.Module):
    """Norm, ReLU, convolution, twice, beside a shortcut, which starts after the first ReLU where it has a convolution."""

    def __init__(self, inputs: int, outputs: int, stride: int, norm: Norm) -> None:
        super().__init__()
        self.first_norm = norm_layer(norm, inputs)
        self.first = convolution(inputs, outputs, norm, stride=stride)
        self.second_norm = norm_layer(norm, outputs)
        self.second = convolution(outputs, outputs, norm)
        same = inputs == outputs and stride == 1
        self.shortcut = None if same else convolution(inputs, outputs, norm, size=1, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        active = F.relu(self.first_norm(x))
        branch: Tensor = self.second(F.relu(self.second_norm(self.first(active))))
        return branch + (x if self.shortcut is None else self.shortcut(active))
