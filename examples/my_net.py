"""A user's own network, data and loss, for ``initopt measure`` and ``initopt run``; see run.yaml."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn


class Net(nn.Module):
    """A multilayer perceptron for images of 8 x 8 pixels.

    Args:
        width: neurons per hidden layer.
        depth: hidden layers.
        classes: number of classes.
    """

    def __init__(self, width: int = 32, depth: int = 2, classes: int = 10) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Flatten()]
        size = 64
        for _ in range(depth):
            layers += [nn.Linear(size, width), nn.ReLU()]
            size = width
        self.layers = nn.Sequential(*layers, nn.Linear(size, classes))

    def forward(self, images: Tensor) -> Tensor:
        """Logits of the classes."""
        return self.layers(images)


def batches(count: int = 20, size: int = 64) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of noisy stripes, whose class is their number.

    Args:
        count: number of batches.
        size: images per batch.
    """
    for _ in range(count):
        labels = torch.randint(10, (size,))
        phases = torch.arange(8.0) * (labels[:, None] + 1) / 2
        yield torch.sin(phases)[:, None, :] + 0.1 * torch.randn(size, 8, 8), labels


def smoothed_loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Cross-entropy with label smoothing, one loss per sample."""
    images, labels = batch
    return nn.functional.cross_entropy(model(images), labels, label_smoothing=0.1, reduction="none")
