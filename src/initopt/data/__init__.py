"""Data sets, in three parts each, and batches of them."""

from initopt.data.cifar import cifar10, cifar100
from initopt.data.digits import digits, digits_tensors
from initopt.data.sources import SOURCES
from initopt.data.splits import Splits, digits_splits

__all__ = ["SOURCES", "Splits", "cifar10", "cifar100", "digits", "digits_splits", "digits_tensors"]
