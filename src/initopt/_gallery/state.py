"""Buffers that forward reads or writes, and models that draw at random."""

from __future__ import annotations

import random

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from initopt._gallery.batches import vectors
from initopt._gallery.entry import Entry


class BufferInForward(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 5), nn.Linear(5, 4)
        self.register_buffer("shift", torch.randn(5))
        self.register_buffer("gain", torch.rand(4) + 0.5, persistent=False)
        self.register_buffer("nothing", None)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.tanh(self.first(x) + self.shift)) * self.gain


class Counter(nn.Module):
    """Counts its calls, and the count matters."""

    calls: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 5), nn.Linear(5, 4)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.second(torch.tanh(self.first(x) * self.calls))


class MovingAverage(nn.Module):
    """Replaces its buffer by a new tensor in each forward pass."""

    average: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 5), nn.Linear(5, 4)
        self.register_buffer("average", torch.ones(5))

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.first(x))
        self.average = 0.5 * self.average + 0.5 * hidden.detach().mean(0)
        return self.second(hidden + x.mean() * self.average.detach().square().sum().round())


class Noise(nn.Module):
    """Draws from torch in any mode."""

    def forward(self, x: Tensor) -> Tensor:
        return x + 0.5 * torch.randn_like(x)


class OtherGenerators(nn.Module):
    """Draws from NumPy and Python in any mode."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 5), nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        factor = 1 + random.random()
        noise = torch.from_numpy(np.random.standard_normal((len(x), 5))).to(x.device)
        return self.second(torch.tanh(factor * self.first(x) + noise))


class LayerDrop(nn.Module):
    """Skips layers at random while training."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(6, 6) for _ in range(4))
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            if not (self.training and torch.rand(()) < 0.5):
                x = x + torch.tanh(layer(x))
        return self.head(x)


def dropout() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Dropout(0.5), nn.Linear(8, 4))


def spectral() -> nn.Module:
    return nn.Sequential(spectral_norm(nn.Linear(6, 8)), nn.Tanh(), spectral_norm(nn.Linear(8, 4)))


ENTRIES = [
    Entry("buffer_in_forward", BufferInForward, vectors()),
    Entry("counter_buffer", Counter, vectors()),
    Entry("moving_average_buffer", MovingAverage, vectors(), smooth=False),
    Entry("spectral_norm", spectral, vectors()),
    # Its power iteration moves with the weights, which autograd does not see.
    Entry("spectral_norm_training", spectral, vectors(), train_mode=True, conservative=False),
    Entry("dropout_off", dropout, vectors()),
    Entry("dropout_training", dropout, vectors(), train_mode=True),
    Entry("noise_in_any_mode", lambda: nn.Sequential(nn.Linear(6, 5), Noise(), nn.Tanh(), nn.Linear(5, 4)), vectors()),
    Entry("numpy_and_python_noise", OtherGenerators, vectors()),
    Entry("layer_drop_off", LayerDrop, vectors()),
    Entry("layer_drop_training", LayerDrop, vectors(), train_mode=True),
]
