"""Batches whose random changes follow from a seed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from initopt.randomness import seeded

__all__ = ["SeededBatches"]

_END = object()


class SeededBatches:
    """Batches that come out the same in each pass, whatever their data set draws for them (augmentation, say).

    While a batch is made, torch, NumPy and Python draw random numbers that follow from the seed and the number of the
    batch; afterwards they go on as if nothing had been drawn.

    Args:
        batches: an iterable that can be iterated over again.
        seed: one or more integers.

    >>> import torch
    >>> from torch.utils.data import DataLoader, TensorDataset
    >>> noisy = DataLoader(range(4), batch_size=2, collate_fn=lambda indices: torch.rand(2))
    >>> batches = SeededBatches(noisy, 0)
    >>> all(torch.equal(a, b) for a, b in zip(batches, batches)), len(batches)
    (True, 2)
    """

    def __init__(self, batches: Iterable[Any], *seed: int) -> None:
        self._batches, self._seed = batches, seed

    def __len__(self) -> int:
        return len(self._batches)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[Any]:
        with seeded(*self._seed):
            iterator = iter(self._batches)
        number = 0
        while True:
            with seeded(*self._seed, number):
                batch = next(iterator, _END)
            if batch is _END:
                return
            yield batch
            number += 1
