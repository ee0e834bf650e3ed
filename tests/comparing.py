"""Small networks and data for the tests of comparisons, where other processes find them."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import initopt
from initopt.comparison import Comparison, load_comparison
from initopt.data import Splits

TIMES = ("initialization_seconds", "initialization_steps", "step_seconds", "seconds")


def small(width: int = 8, dropout: float = 0.0) -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, width), nn.BatchNorm1d(width), nn.Tanh(), nn.Dropout(dropout), nn.Linear(width, 3))


def blobs(samples: int = 96, seed: int = 0) -> Splits:
    """Three classes of points around centres of their own."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(3, 6, generator=generator)

    def part(count: int) -> TensorDataset:
        labels = torch.arange(count) % 3
        return TensorDataset(centres[labels] + torch.randn(count, 6, generator=generator), labels)

    return Splits(part(samples), part(samples // 2), part(samples // 2))


class Raising(nn.Module):
    """Raises in the run of one seed, which it knows by its weights."""

    def __init__(self, seed: int, how: str = "exception") -> None:
        super().__init__()
        self.inner = small()
        self.how = how
        self.bad = first_weight_of(seed)

    def forward(self, x: Tensor) -> Tensor:
        if self.training and self.inner[0].weight.requires_grad and self.is_bad():
            if self.how == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            raise RuntimeError("out of cheese")
        return self.inner(x)

    def is_bad(self) -> bool:
        return getattr(self, "born", None) == self.bad


def first_weight_of(seed: int) -> float:
    raise NotImplementedError


RECIPE = {"epochs": 2, "batch_size": 16, "lr": 0.1, "measure_batches": 2}
NIO = {"method": "nio", "options": {"steps": 3}}


def compare(folder: Path, **changes: Any) -> Comparison:
    """A comparison of a second or two."""
    arguments: dict[str, Any] = {
        "models": {"small": small},
        "data": blobs,
        "initializations": ["default", NIO],
        "recipe": RECIPE,
        "seeds": 2,
        "out": folder,
        "accelerator": "cpu",
        "report": False,
    }
    return initopt.compare(**(arguments | changes))


def table(folder: Path) -> list[str]:
    """All that a folder holds but for times, a line a run."""
    found = load_comparison(folder)
    rows = []
    for run in [*found.runs, *found.selection]:
        record = {name: value for name, value in dataclasses.asdict(run).items() if name not in TIMES}
        rows.append(json.dumps(record, sort_keys=True))
    return sorted(rows)


__all__ = ["NIO", "RECIPE", "blobs", "compare", "partial", "small", "table"]
