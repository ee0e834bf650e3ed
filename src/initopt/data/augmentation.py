"""Random changes of small images, a whole batch at a time, on the device that it is on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["AUGMENTATIONS", "CHANGES", "Augment", "View", "augmentation", "chosen_names"]

AUGMENTATIONS = ("crop", "flip", "cutout")
"""All augmentations, in the order in which they are applied."""

Augment = bool | Sequence[str]

_PADDING = 4


def chosen_names(augment: Augment, usual: Sequence[str], known: Sequence[str]) -> tuple[str, ...]:
    """The names of the augmentations to apply, in order; a ValueError if one is unknown.

    >>> chosen_names(True, ("crop", "flip"), AUGMENTATIONS), chosen_names(["flip"], (), AUGMENTATIONS)
    (('crop', 'flip'), ('flip',))
    """
    if isinstance(augment, bool):
        return tuple(usual) if augment else ()
    given = [augment] if isinstance(augment, str) else augment
    unknown = [name for name in given if name not in known]
    if unknown:
        raise ValueError(
            f"augment must be True, False or a list of {', '.join(map(repr, known))}; got {', '.join(map(repr, unknown))}"
        )
    return tuple(name for name in known if name in given)


def augmentation(names: Sequence[str], size: int) -> nn.Module | None:
    """A module that changes a batch of images, each at random in its own way.

    What is drawn comes from torch's global generator on the CPU, wherever the images are: with one seed, the images are the
    same on every device. Zero, the value of padding and of what is cut out, is the mean colour of normalized images.

    Args:
        names: ``"crop"`` shifts by up to 4 pixels, ``"flip"`` mirrors every other image, ``"cutout"`` blanks a square of
            half the side, which lies within the image (DeVries and Taylor, *Improved Regularization of Convolutional Neural
            Networks with Cutout*, 2017).
        size: side of the images, in pixels.

    Returns:
        The module, from shape ``(B, C, size, size)`` to the same shape; ``None`` without names.

    >>> _ = torch.manual_seed(0)
    >>> augmentation(["cutout"], 4)(torch.ones(1, 1, 4, 4)).sum()
    tensor(12.)
    """
    steps = {"crop": _Crop(size), "flip": _Flip(), "cutout": _Cutout(size)}
    return nn.Sequential(*(steps[name] for name in names)) if names else None


def _draw(images: Tensor, top: int, *shape: int) -> Tensor:
    """Draw integers from 0 to ``top``, both included, for the device of the images."""
    return torch.randint(top + 1, shape, device="cpu").to(images.device, non_blocking=images.is_cuda)


class _Crop(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self._size = size

    def forward(self, images: Tensor) -> Tensor:
        count, channels = images.shape[:2]
        top, left = _draw(images, 2 * _PADDING, 2, count, 1)
        places = torch.arange(self._size, device=images.device)
        wide = self._size + 2 * _PADDING
        taken = (top + places)[:, :, None] * wide + (left + places)[:, None, :]
        padded = F.pad(images, [_PADDING] * 4).flatten(2)
        return padded.gather(2, taken.flatten(1)[:, None].expand(-1, channels, -1)).view_as(images)


class _Flip(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        chosen = _draw(images, 1, len(images), 1, 1, 1).bool()
        return torch.where(chosen, images.flip(-1), images)


class _Cutout(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self._size, self._hole = size, size // 2

    def forward(self, images: Tensor) -> Tensor:
        top, left = _draw(images, self._size - self._hole, 2, len(images), 1)
        places = torch.arange(self._size, device=images.device)
        rows, columns = ((places >= begin) & (places < begin + self._hole) for begin in (top, left))
        return images.masked_fill((rows[:, :, None] & columns[:, None, :])[:, None], 0.0)


CHANGES = ("crop", "flip")
"""The changes that a view may draw."""

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
