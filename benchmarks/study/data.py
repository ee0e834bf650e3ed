"""The data of the study: small images and short texts, the same for every start of a seed."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from initopt.data import Splits, cifar10, digits_splits, text

__all__ = ["BATCH_SIZE", "Data", "load"]

Batch = tuple[Tensor, Tensor]
BATCH_SIZE = 64
_TRAIN, _VALIDATION, _CONTEXT = 6400, 2000, 32


@dataclass(frozen=True)
class Data:
    """Batches by seed, and two parts to judge by."""

    splits: Splits
    halve: bool
    passes: int

    def training(self, seed: int, passes: int | None = None) -> list[Batch]:
        """All that is trained on, in order: one pass of images, three of digits and texts, unless told otherwise."""
        return [batch for number in range(passes or self.passes) for batch in self._batches(2 * seed, number)]

    def for_start(self, seed: int, count: int) -> list[Batch]:
        """Batches for an initialization, the same images in another order."""
        passes = (batch for number in itertools.count() for batch in self._batches(2 * seed + 1, number))
        return list(itertools.islice(passes, count))

    def judged(self, subset: str) -> list[Batch]:
        """Validation or test."""
        return [self._small(b) for b in self.splits.batches(100, subset=subset, seed=0)]  # type: ignore[arg-type]

    def _batches(self, seed: int, number: int) -> Iterator[Batch]:
        return (self._small(batch) for batch in self.splits.batches(BATCH_SIZE, seed=1000 * seed + number))

    def _small(self, batch: Batch) -> Batch:
        inputs, targets = batch
        return (F.avg_pool2d(inputs, 2) if self.halve else inputs, targets)


@cache
def load(kind: str, cifar: Path, book: Path) -> Data:
    """The data of a kind.

    Args:
        kind: ``"cifar"``: 6400 images, halved to 16 x 16 pixels, shifted and mirrored at random; ``"digits"``; or
            ``"text"``: 6400 pieces of 32 characters.
        cifar: folder of CIFAR-10, in the layout of the hub.
        book: a text file.
    """
    if kind == "digits":
        return Data(digits_splits(), halve=False, passes=3)
    if kind == "text":
        sizes = {"train_samples": _TRAIN, "validation_samples": _VALIDATION, "test_samples": _VALIDATION}
        found = text(book, length=_CONTEXT, **sizes)
        return Data(found, halve=False, passes=3)
    found = cifar10(cifar, train_samples=_TRAIN, validation_samples=_VALIDATION, test_samples=_VALIDATION)
    return Data(found, halve=True, passes=1)


def set_threads() -> None:
    """One thread: the networks are small, and two studies run side by side."""
    torch.set_num_threads(1)
