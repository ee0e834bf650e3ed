"""A module of Lightning that notes what it sees, and a trainer without files."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
import torchmetrics
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

SEARCH = {"budget": 520, "seeds": 1, "steps": 10, "warmup_steps": 0, "progress": False}
"""A short search for rates."""


class Lit(pl.LightningModule):
    """A small classifier with batch norm, a metric, and a log of its batches."""

    def __init__(self, lr: float = 0.1) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 3)
        )
        self.accuracy = torchmetrics.Accuracy("multiclass", num_classes=3)
        self.count = torchmetrics.SumMetric()
        self.lr = lr
        self.seen: list[float] = []
        self.dtypes: set[str] = set()

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        inputs, targets = batch
        logits = self.net(inputs)
        loss = F.cross_entropy(logits, targets)
        self.accuracy(logits, targets)
        self.count(float(len(inputs)))
        self.log("accuracy", self.accuracy, on_epoch=True, on_step=False)
        self.log("count", self.count, on_epoch=True, on_step=False)
        self.log_dict({"loss": loss}, on_epoch=True)
        self.seen.append(float(inputs.double().sum()))
        self.dtypes.add(f"{inputs.dtype} {logits.dtype}")
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.lr)


def data(count: int = 160) -> TensorDataset:
    inputs = torch.randn(count, 8, generator=torch.Generator().manual_seed(1))
    return TensorDataset(inputs, inputs[:, :3].argmax(1))


def loader(**options: Any) -> DataLoader[Any]:
    return DataLoader(data(), batch_size=16, shuffle=True, **options)


def trainer(callbacks: list[Any], **options: Any) -> pl.Trainer:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False, "logger": False}
    return pl.Trainer(**{"max_epochs": 1, "accelerator": "cpu", "devices": 1, "callbacks": callbacks} | quiet | options)


def fit(callbacks: list[Any], module: pl.LightningModule | None = None, batches: Any = None, **options: Any) -> Any:
    """Train a module, and return it with its trainer."""
    if module is None:
        torch.manual_seed(0)
        module = Lit()
    torch.manual_seed(1)
    made = trainer(callbacks, **options)
    made.fit(module, loader() if batches is None else batches)
    return module, made
