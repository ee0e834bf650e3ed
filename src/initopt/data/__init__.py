"""Data sets, in three parts each, and batches of them."""

from initopt.data.cifar import cifar10, cifar100
from initopt.data.digits import digits, digits_splits, digits_tensors
from initopt.data.imagenet import image_folder, imagenet
from initopt.data.sources import SOURCES
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
