"""Ordinary training, with a look at other images after every epoch."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

__all__ = ["Curve", "accuracy", "train"]


@dataclass(frozen=True)
class Curve:
    """What training left, a value per epoch.

    Attributes:
        accuracy: share of the images looked at that are classified rightly after the epoch.
        train_loss: mean loss of the epoch's batches, each before its own step.
        seconds: wall-clock time of all epochs, without looking at other images.
    """

    accuracy: list[float]
    train_loss: list[float]
    seconds: float


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Share of images that a model classifies rightly.

    >>> accuracy(nn.Identity(), torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.tensor([0, 1]))
    0.5
    """
    return float((model(images).argmax(1) == labels).float().mean())


def train(
    model: nn.Module,
    loader: DataLoader[tuple[Tensor, ...]],
    optimizer: torch.optim.Optimizer,
    epochs: int,
    look_at: tuple[Tensor, Tensor],
    epoch_done: Callable[[], object] = lambda: None,
) -> Curve:
    """Train a model in place with cross-entropy.

    Args:
        model: the model.
        loader: batches of (images, labels).
        optimizer: of the model's parameters.
        epochs: passes over the loader.
        look_at: images and labels whose accuracy is wanted after every epoch.
        epoch_done: is called after every epoch.

    Returns:
        Accuracy and loss after every epoch, and the time.
    """
    accuracies, losses, seconds = [], [], 0.0
    for _ in range(epochs):
        begun = time.perf_counter()
        total = torch.zeros(())
        for images, labels in loader:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(images), labels)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            total += loss.detach()
        seconds += time.perf_counter() - begun
        losses.append(total.item() / len(loader))
        accuracies.append(accuracy(model, *look_at))
        epoch_done()
    return Curve(accuracies, losses, seconds)
