"""Data sets by name."""

from __future__ import annotations

from collections.abc import Callable

from initopt.data.cifar import cifar10, cifar100
from initopt.data.splits import Splits, digits_splits

__all__ = ["SOURCES"]

SOURCES: dict[str, Callable[..., Splits]] = {
    "digits": digits_splits,
    "cifar10": cifar10,
    "cifar100": cifar100,
}
"""Every data set that has a name."""
