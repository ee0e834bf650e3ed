"""Data sets by name."""

from __future__ import annotations

from collections.abc import Callable

from initopt.data.cifar import cifar10, cifar100
from initopt.data.digits import digits_splits
from initopt.data.imagenet import image_folder, imagenet
from initopt.data.splits import Splits
from initopt.data.text import text

__all__ = ["SOURCES"]

SOURCES: dict[str, Callable[..., Splits]] = {
    "digits": digits_splits,
    "cifar10": cifar10,
    "cifar100": cifar100,
    "imagenet": imagenet,
    "image_folder": image_folder,
    "text": text,
}
"""Every data set that has a name."""
