"""A network that runs out of memory, and runs on it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import initopt
from tests.helpers import Batch, make_batches


def network(largest: int = 10**6) -> nn.Sequential:
    """A network that runs out of memory with more than ``largest`` samples."""

    class Limited(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if len(x) > largest:
                raise torch.OutOfMemoryError("tried to allocate too much")
            return x

    torch.manual_seed(0)
    return nn.Sequential(Limited(), nn.Linear(6, 12), nn.Tanh(), nn.LayerNorm(12), nn.Linear(12, 3)).double()


def batches(size: int = 28) -> list[Batch]:
    return [(inputs.double(), targets) for inputs, targets in make_batches(size=size)]


def quick(model: nn.Module, **options: Any) -> initopt.Result:
    return initopt.nio(model, batches(), **{"steps": 3, "measure_batches": 1, "lr": 0.05, **options})


def values(result: initopt.Result) -> list[float]:
    assert result.after is not None
    return [*result.scales.values(), result.after.grad_cosine, result.after.grad_norm]
