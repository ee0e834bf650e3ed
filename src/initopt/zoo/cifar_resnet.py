"""The residual networks for CIFAR, with or without batch norm."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F

from initopt._support.checks import check_integer
from initopt.zoo._layers import Norm, check_norm, check_sizes, convolution, norm_layer

__all__ = ["cifar_resnet"]

_WIDTHS = (16, 32, 64)


def cifar_resnet(depth: int, *, norm: Norm = "batch", num_classes: int = 10, in_channels: int = 3) -> nn.Sequential:
    """The residual network of He et al., *Deep Residual Learning for Image Recognition*, section 4.2 (arXiv 1512.03385).

    Three stages of 16, 32 and 64 channels, each of n blocks of two 3x3 convolutions, ``depth = 6 n + 2``. Shortcuts have no
    parameters (their option A): where a block halves height and width, they take every second pixel and fill the new
    channels with zeros. Without norm the convolutions have biases.

    Parameters with batch norm: 0.27 M at depth 20, 0.46 M at 32, 0.86 M at 56, 1.73 M at 110.

    Args:
        depth: number of layers with weights, 6 n + 2: 20, 32, 44, 56, 110, ...
        norm: ``"batch"`` or ``"none"``.
        num_classes: number of outputs.
        in_channels: channels of the images.

    Returns:
        The network for inputs of shape ``(B, in_channels, H, W)``, with PyTorch's default weights.

    Raises:
        ValueError: if a number is not a positive integer, the depth is not 6 n + 2, or the norm is unknown.

    >>> import torch
    >>> cifar_resnet(20)(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 10])
    """
    check_integer("depth", depth, 8)
    check_sizes(num_classes=num_classes, in_channels=in_channels)
    check_norm(norm)
    if depth % 6 != 2:
        raise ValueError(f"depth must be 6 n + 2, such as 20, 32, 44, 56 or 110; got {depth}")
    widths = [width for width in _WIDTHS for _ in range(depth // 6)]
    # Made before the first convolution, so that each draws the weights that it has always drawn from a seed.
    blocks = [_Block(before, width, norm) for before, width in pairwise([_WIDTHS[0], *widths])]
    return nn.Sequential(
        convolution(in_channels, _WIDTHS[0], norm),
        norm_layer(norm, _WIDTHS[0]),
        nn.ReLU(),
        *blocks,
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(_WIDTHS[-1], num_classes),
    )


class _Block(nn.Module):
    """Two convolutions beside a shortcut; one with more outputs than inputs halves height and width."""

    def __init__(self, inputs: int, outputs: int, norm: Norm) -> None:
        super().__init__()
        self._stride = 1 if inputs == outputs else 2
        self._added = outputs - inputs
        self.first = convolution(inputs, outputs, norm, stride=self._stride)
        self.first_norm = norm_layer(norm, outputs)
        self.second = convolution(outputs, outputs, norm)
        self.second_norm = norm_layer(norm, outputs)

    def forward(self, x: Tensor) -> Tensor:
        branch = self.second_norm(self.second(F.relu(self.first_norm(self.first(x)))))
        return F.relu(branch + self._shortcut(x))

    def _shortcut(self, x: Tensor) -> Tensor:
        if not self._added:
            return x
        before = self._added // 2
        return F.pad(x[:, :, :: self._stride, :: self._stride], (0, 0, 0, 0, before, self._added - before))
