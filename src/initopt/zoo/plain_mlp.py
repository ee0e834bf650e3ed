"""A deep multilayer perceptron with nothing that would make up for a bad start."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

from torch import nn

from initopt.zoo._layers import check_sizes

__all__ = ["plain_mlp"]


def plain_mlp(
    inputs: int = 64,
    classes: int = 10,
    *,
    depth: int = 10,
    width: int = 64,
    activation: Callable[[], nn.Module] = nn.Tanh,
) -> nn.Sequential:
    """Linear layers with an activation between them; no normalization, no skip connections.

    PyTorch gives the weights of a linear layer the variance 1 / (3 fan_in), whatever activation follows. With tanh a
    signal loses a factor of sqrt(3) in every layer, a gradient too, and the deeper the network, the less its output
    depends on its input.

    Args:
        inputs: number of input features; inputs of any shape are flattened to it.
        classes: number of outputs.
        depth: number of linear layers.
        width: outputs of every linear layer but the last.
        activation: makes the modules between the linear layers.

    Returns:
        The network, with PyTorch's default weights.

    Raises:
        ValueError: if a number is not a positive integer.

    >>> import torch
    >>> plain_mlp(depth=3)(torch.zeros(2, 1, 8, 8)).shape
    torch.Size([2, 10])
    """
    check_sizes(inputs=inputs, classes=classes, depth=depth, width=width)
    sizes = [inputs, *[width] * (depth - 1)]
    layers: list[nn.Module] = [nn.Flatten()]
    for before, after in pairwise(sizes):
        layers += [nn.Linear(before, after), activation()]
    return nn.Sequential(*layers, nn.Linear(sizes[-1], classes))
