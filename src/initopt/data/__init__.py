"""Data sets, in three parts each, and batches of them."""

from collections.abc import Callable

from initopt.data.cifar import cifar10, cifar100
from initopt.data.digits import digits, digits_splits, digits_tensors
from initopt.data.imagenet import image_folder, imagenet
from initopt.data.splits import Splits
from initopt.data.text import text

__all__ = [
    "SOURCES",
    "Splits",
    "cifar10",
    "cifar100",
    "digits",
    "digits_splits",
    "digits_tensors",
    "image_folder",
    "imagenet",
    "text",
]

SOURCES: dict[str, Callable[..., Splits]] = {
    "digits": digits_splits,
    "cifar10": cifar10,
    "cifar100": cifar100,
    "imagenet": imagenet,
    "image_folder": image_folder,
    "text": text,
}
"""Every data set that has a name. To add one: a file of its own, and its function in this one."""
