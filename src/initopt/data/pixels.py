"""Images that fit into memory: that of the processor, or of an accelerator."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from initopt.data.decode import decode
from initopt.data.hub import Source

__all__ = ["Pixels", "decoded"]


class Pixels(Dataset[tuple[Tensor, Tensor]]):
    """Images of one size, decoded in memory, and normalized and augmented when they are asked for.

    Augmentation draws from torch's global generator, for a whole batch at once where a loader asks for one. Samples are on
    the device of the pixels, and everything is computed there.

    Args:
        pixels: of the images, uint8, shape ``(N, 3, H, W)``.
        labels: int64, shape ``(N,)``.
        mean: of each colour, on a scale from 0 to 1.
        std: the same for the standard deviation.
        augment: changes a batch of normalized images; nothing, by default.

    A sample is an image, float32 of shape ``(3, H, W)``, and its label, int64 of shape ``()``. A list of indices gives a
    batch: images of shape ``(B, 3, H, W)`` and labels of shape ``(B,)``.

    >>> white = torch.full((2, 3, 4, 4), 255, dtype=torch.uint8)
    >>> image, label = Pixels(white, torch.tensor([0, 1]), (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))[1]
    >>> image.unique().tolist(), label
    ([2.0], tensor(1))
    """

    def __init__(
        self,
        pixels: Tensor,
        labels: Tensor,
        mean: Sequence[float],
        std: Sequence[float],
        augment: nn.Module | None = None,
    ) -> None:
        self.pixels, self.labels = pixels, labels
        self._colours = mean, std
        self._mean, self._std = (torch.tensor(values, device=pixels.device).view(3, 1, 1) * 255 for values in (mean, std))
        self._augment = augment

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int | list[int]) -> tuple[Tensor, Tensor]:
        if not isinstance(index, int):
            return self._batch(index)
        if not -len(self) <= index < len(self):
            raise IndexError(f"there are {len(self)} images; got index {index}")
        images, labels = self._batch([index])
        return images[0], labels[0]

    def __getitems__(self, indices: list[int]) -> list[tuple[Tensor, Tensor]]:
        """Several samples; loaders of torch ask for whole batches by this."""
        return list(zip(*self._batch(indices), strict=True))

    @torch.no_grad()
    def _batch(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        chosen = torch.tensor(indices, device="cpu").to(self.pixels.device, non_blocking=self.pixels.is_cuda)
        images = (self.pixels[chosen].float() - self._mean) / self._std
        if self._augment is not None:
            images = self._augment(images)
        return images, self.labels[chosen]

    def to(self, device: torch.device | str) -> Pixels:
        """The same images on another device."""
        return Pixels(self.pixels.to(device), self.labels.to(device), *self._colours, self._augment)


def decoded(source: Source, indices: np.ndarray, size: int) -> tuple[Tensor, Tensor]:
    """Decode images.

    Args:
        source: the split.
        indices: of the images.
        size: the side that they have, in pixels.

    Returns:
        The pixels, uint8 of shape ``(N, 3, size, size)``, and the labels, int64 of shape ``(N,)``.

    Raises:
        ValueError: if an image is broken or of another size; the message says which.
    """
    pixels = np.empty((len(indices), size, size, 3), dtype=np.uint8)
    labels = np.empty(len(indices), dtype=np.int64)
    for place, (index, record) in enumerate(zip(indices, source.records.select(indices), strict=True)):
        where = f"{source.name}: image {index}"
        picture = decode(record["image"], where)
        if picture.size != (size, size):
            raise ValueError(f"{where} has {picture.width} x {picture.height} pixels; expected are {size} x {size}")
        pixels[place], labels[place] = np.asarray(picture), record["label"]
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(labels)
