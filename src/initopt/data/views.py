"""From an image of any size to one of a given size: the middle, or a random part."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["CHANGES", "View"]

CHANGES = ("crop", "flip")
"""What a view may draw."""

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_MARGIN = 256 / 224


class View:
    """What a network is shown of an image.

    Without ``"crop"``: the middle of the image, scaled so that its shorter side is 256/224 of the size. With it: a random
    part, of 8 to 100 % of the area and sides in a ratio of 3/4 to 4/3 (Szegedy et al., *Going Deeper with Convolutions*,
    2014). kornia draws the part, from torch's global generator; Pillow takes it out and scales it, with antialiasing.

    Args:
        size: side of the result, in pixels.
        changes: ``"crop"``, ``"flip"``, both or none.
    """

    def __init__(self, size: int, changes: Sequence[str] = ()) -> None:
        self._size = size
        self._flips = "flip" in changes
        self._crop: Any = None
        if "crop" in changes:
            from kornia.augmentation import RandomResizedCrop

            self._crop = RandomResizedCrop((size, size), scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3))
        self._mean, self._std = (torch.tensor(values).view(3, 1, 1) * 255 for values in (_MEAN, _STD))

    def __call__(self, picture: Image) -> Tensor:
        """The view, float32 of shape ``(3, size, size)``, with the means and standard deviations of ImageNet taken out."""
        from PIL.Image import Resampling

        size = (self._size, self._size)
        if self._crop is None:
            shown = picture.resize(size, Resampling.BILINEAR, self._middle(picture))
        else:
            shown = picture.crop(self._part(picture)).resize(size, Resampling.BILINEAR)
        pixels = torch.from_numpy(np.array(shown)).permute(2, 0, 1)
        if self._flips and torch.rand(()) < 0.5:
            pixels = pixels.flip(2)
        return (pixels - self._mean) / self._std

    def _middle(self, picture: Image) -> tuple[float, float, float, float]:
        side = min(picture.size) / _MARGIN
        left, top = (picture.width - side) / 2, (picture.height - side) / 2
        return left, top, left + side, top + side

    def _part(self, picture: Image) -> tuple[int, int, int, int]:
        drawn = self._crop.generate_parameters(torch.Size((1, 3, picture.height, picture.width)))
        (left, top), _, (right, bottom), _ = drawn["src"][0].round().int().tolist()
        return left, top, right + 1, bottom + 1  # the corners are pixels
