"""Small networks and data for the tests of comparisons, where other processes find them."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import random
import signal
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

import initopt
from initopt.comparison import Comparison, Network, load_comparison
from initopt.comparison.running.start import own_start
from initopt.data import Splits

TIMES = ("initialization_seconds", "initialization_steps", "step_seconds", "seconds")


def small(width: int = 8, dropout: float = 0.0) -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, width), nn.BatchNorm1d(width), nn.Tanh(), nn.Dropout(dropout), nn.Linear(width, 3))


def small_digits() -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.Tanh(), nn.Linear(16, 10))


def small_linear() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))


class Residual(nn.Module):
    """What a layer adds to its input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layer = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layer(torch.relu(x))


def residual() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), Residual(8), Residual(8), nn.Linear(8, 3))


def blobs(samples: int = 96, seed: int = 0) -> Splits:
    """Three classes of points around centres of their own."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(3, 6, generator=generator)

    def part(count: int) -> TensorDataset:
        labels = torch.arange(count) % 3
        return TensorDataset(centres[labels] + torch.randn(count, 6, generator=generator), labels)

    return Splits(part(samples), part(samples // 2), part(samples // 2))


class Noisy(Dataset):
    """Samples with noise that is drawn anew each time, from all generators that there are."""

    def __init__(self, inner: TensorDataset) -> None:
        self.inner = inner

    def __len__(self) -> int:
        return len(self.inner)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        point, label = self.inner[index]
        return point + torch.randn(6) + np.random.normal() + random.random(), label


def noisy_blobs() -> Splits:
    splits = blobs()
    return Splits(Noisy(splits.train), Noisy(splits.validation), Noisy(splits.test))


class Raising(nn.Module):
    """A network that fails in training, if it is told to.

    Args:
        inner: the network.
        how: ``None``, ``"exception"``, ``"kill"`` (ends the process) or ``"nan"``.
    """

    def __init__(self, inner: nn.Module, how: str | None) -> None:
        super().__init__()
        self.inner = inner
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.how is None:
            return self.inner(x)
        if self.how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.how == "exception":
            raise RuntimeError("out of cheese")
        return self.inner(x) * math.nan


def raising(seed: int, how: str) -> Raising:
    """Fails in the runs of one seed only, which it knows by its weights."""
    inner, bad = small(), own_start(Network(small), seed)
    return Raising(inner, how if torch.equal(inner[0].weight, bad[0].weight) else None)


class DeadOnArrival:
    """A network of which the first processes that get it are killed, before they are ready.

    Args:
        folder: where they are counted.
        deaths: how many.
    """

    def __init__(self, folder: Path, deaths: int) -> None:
        self.folder, self.deaths = folder, deaths

    def __call__(self) -> nn.Module:
        return small()

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if len(list(self.folder.iterdir())) < self.deaths:
            (self.folder / str(os.getpid())).touch()
            os.kill(os.getpid(), signal.SIGKILL)


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


def as_before(folder: Path) -> None:
    """Make a stored comparison one of the first format: the curve of each run is a Parquet file."""
    import pyarrow
    import pyarrow.parquet

    for file in folder.glob("runs/*/*/*/*/run.json"):
        values = json.loads(file.read_text())
        columns = dict(
            zip(("step", "epoch", "subset", "loss", "accuracy"), zip(*values.pop("curve"), strict=True), strict=True)
        )
        for name, kind in {"step": "int64", "subset": "string"}.items():
            columns[name] = pyarrow.array(columns[name], pyarrow.type_for_alias(kind))
        for name in ("epoch", "loss", "accuracy"):
            numbers = [None if value is None else float(value) for value in columns[name]]
            columns[name] = pyarrow.array(numbers, pyarrow.float64())
        pyarrow.parquet.write_table(pyarrow.table(columns), file.with_name("curve.parquet"))
        file.with_name("events.out.tfevents.run").touch()
        file.write_text(json.dumps(values | {"format": "initopt run 1"}))
    begun = json.loads((folder / "comparison.json").read_text())
    (folder / "comparison.json").write_text(json.dumps(begun | {"format": "initopt comparison 1"}))
