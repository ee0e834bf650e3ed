"""Random changes of small images, a batch at a time, by kornia."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

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
    """A module that changes a batch of images, shape ``(B, C, size, size)``, each at random in its own way.

    It draws from torch's global generator. Zero, the value of padding and of what is cut out, is the mean colour of
    normalized images.

    Args:
        names: ``"crop"`` shifts by up to 4 pixels, ``"flip"`` mirrors every other image, ``"cutout"`` blanks a square of
            half the side, which lies within the image (DeVries and Taylor, *Improved Regularization of Convolutional Neural
            Networks with Cutout*, 2017).
        size: side of the images, in pixels.

    Returns:
        The module; ``None`` without names.
    """
    if not names:
        return None
    import kornia.augmentation as kornia

    made: dict[str, Any] = {
        "crop": lambda: kornia.RandomCrop((size, size), padding=_PADDING),
        "flip": lambda: kornia.RandomHorizontalFlip(p=0.5),
        "cutout": lambda: kornia.RandomErasing(scale=(0.25, 0.25), ratio=(1.0, 1.0), value=0.0, p=1.0),
    }
    return kornia.AugmentationSequential(*(made[name]() for name in names), data_keys=["input"])
