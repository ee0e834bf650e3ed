"""Images that need no data set."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.data import Dataset

__all__ = ["RandomImages"]


class RandomImages(Dataset[tuple[Tensor, int]]):
    """Noise and random labels, the same each time.

    Args:
        count: how many images.
        side: in pixels.
        classes: how many labels there are.

    >>> image, label = RandomImages(4, 8, 10)[3]
    >>> image.shape
    torch.Size([3, 8, 8])
    """

    def __init__(self, count: int, side: int, classes: int) -> None:
        self._count, self._side, self._classes = count, side, classes

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        generator = torch.Generator().manual_seed(index)
        image = torch.randn(3, self._side, self._side, generator=generator)
        return image, int(torch.randint(self._classes, (), generator=generator))
