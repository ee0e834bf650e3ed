"""Small problems for races."""

from functools import partial

import torch
from torch import nn

SGD = partial(torch.optim.SGD, lr=0.1, momentum=0.9)


def dying(depth=8, width=32):
    """A plain ReLU network whose signals die away from PyTorch's own weights."""
    layers = [layer for _ in range(depth) for layer in (nn.Linear(width, width), nn.ReLU())]
    return nn.Sequential(nn.Linear(16, width), nn.ReLU(), *layers, nn.Linear(width, 2))


def shallow():
    """A network that trains from any start."""
    return nn.Sequential(nn.Linear(16, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))


def batches(count=40, size=32):
    """Two classes that a single feature tells apart."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(count, size, 16, generator=generator)
    return [(x, (x[:, 0] > 0).long()) for x in inputs]
