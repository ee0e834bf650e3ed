"""Quick runs of NIO on a plain model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import initopt
from tests.helpers import Batch

exact = pytest.mark.parametrize("engine", ["graph", "recompute", "plain"])


def plain_model(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double()


def doubled(batches: list[Batch]) -> list[Batch]:
    return [(inputs.double(), targets) for inputs, targets in batches]


def quick(model: nn.Module, batches: Any, loss_fn: Any = None, **options: Any) -> initopt.Result:
    return initopt.nio(
        model, batches, loss_fn, **{"steps": 6, "measure_batches": 2, "lr": 0.05, "diagnose": False, **options}
    )
