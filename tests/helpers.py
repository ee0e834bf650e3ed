"""Small models and batches that many tests use."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from initopt.batches.subbatches import SubBatches, Windows
from initopt.model.losses import as_loss
from initopt.model.parameters import Parameters
from initopt.model.problem import Problem

Batch = tuple[Tensor, Tensor]


def make_model(seed: int = 0, dropout: float = 0.0) -> nn.Sequential:
    """A small classifier with every kind of state: batch norm buffers, dropout, weights and biases."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(6, 12), nn.BatchNorm1d(12), nn.Tanh(), nn.Dropout(dropout), nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, 3)
    )


def make_batches(count: int = 12, size: int = 16, seed: int = 1) -> list[Batch]:
    generator = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(size, 6, generator=generator), torch.randint(3, (size,), generator=generator)) for _ in range(count)
    ]


def split_windows(batch_size: int, count: int, overlap: float = 0.0, split: Any = "cyclic") -> Windows:
    return SubBatches(count=count, overlap=overlap, split=split).windows(batch_size)


def make_problem(
    model: nn.Module, loss_fn: Any = None, *, num_subbatches: int = 4, seed: int = 0, state: Any = None, **options: Any
) -> Problem:
    """What an engine works on; the options are those of the sub-batches, and the two filters of parameters."""
    filters = {name: options.pop(name, None) for name in ("grad_params", "scale_params")}
    subbatches = SubBatches(count=num_subbatches, **options)
    return Problem(model, as_loss(loss_fn), Parameters.of(model, **filters), subbatches, seed, state=state)


def values(model: nn.Module) -> dict[str, Tensor]:
    """A copy of all parameters and buffers."""
    return {name: value.clone() for name, value in model.state_dict().items()}


def with_the_tests() -> dict[str, str]:
    """The environment of a process that can import the tests, too."""
    root = str(Path(__file__).parents[1])
    return dict(os.environ, PYTHONPATH=os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")])))
