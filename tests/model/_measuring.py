"""Measurements of one batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import initopt


def measure(model: nn.Module, batch: Any, **options: Any) -> Tensor:
    return initopt.measure(model, [batch], num_subbatches=2, **options).gram[0]


def batch_of(size: int = 16) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(size, 6, generator=generator) + 2, torch.randint(3, (size,), generator=generator)


def normed(norm: nn.Module, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 8), norm, nn.Tanh(), nn.Linear(8, 3))


MODES = ("subbatch", "batch")
