"""Random changes of small images, a whole batch at a time, on the device that it is on."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["AUGMENTATIONS", "Augment", "augmentation", "chosen_names"]

AUGMENTATIONS = ("crop", "flip", "cutout")
"""All that there are, in the order in which they are applied."""

Augment = bool | Sequence[str]

_PADDING = 4


def chosen_names(augment: Augment, usual: Sequence[str], known: Sequence[str]) -> tuple[str, ...]:
    """The names of the augmentations to apply, in order.

    Raises:
        ValueError: if one is unknown.

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
    steps = {"crop": _Crop, "flip": _Flip, "cutout": _Cutout}
    return nn.Sequential(*(steps[name](size) for name in names)) if names else None


def _draw(top: int, *shape: int) -> Tensor:
    """Integers from 0 to ``top``, both included."""
    return torch.randint(top + 1, shape, device="cpu")


def _to(images: Tensor, drawn: Tensor) -> Tensor:
    return drawn.to(images.device, non_blocking=images.is_cuda)


class _Crop(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self._size = size

    def forward(self, images: Tensor) -> Tensor:
        count, channels = images.shape[:2]
        top, left = _to(images, _draw(2 * _PADDING, 2, count, 1))
        places = torch.arange(self._size, device=images.device)
        wide = self._size + 2 * _PADDING
        taken = (top + places)[:, :, None] * wide + (left + places)[:, None, :]
        padded = F.pad(images, [_PADDING] * 4).flatten(2)
        return padded.gather(2, taken.flatten(1)[:, None].expand(-1, channels, -1)).view_as(images)


class _Flip(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()

    def forward(self, images: Tensor) -> Tensor:
        chosen = _to(images, _draw(1, len(images), 1, 1, 1)).bool()
        return torch.where(chosen, images.flip(-1), images)


class _Cutout(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self._size, self._hole = size, size // 2

    def forward(self, images: Tensor) -> Tensor:
        top, left = _to(images, _draw(self._size - self._hole, 2, len(images), 1))
        places = torch.arange(self._size, device=images.device)
        rows, columns = ((places >= begin) & (places < begin + self._hole) for begin in (top, left))
        return images.masked_fill((rows[:, :, None] & columns[:, None, :])[:, None], 0.0)
