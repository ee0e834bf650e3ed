"""The batches of a run, which follow from its seed alone, so that all initializations of a seed see the same."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import Dataset, Sampler

from initopt.data.loader import SeededBatches, seeded_batches
from initopt.model.randomness import Stream, mixed_seed

__all__ = ["EpochOrder", "all_batches", "start_batches", "training_batches"]


class EpochOrder(Sampler[list[int]]):
    """Batches of indices, in an order that follows from the seed and the number of the epoch.

    What does not fill a batch is left out; it is other samples in each epoch.

    Args:
        count: samples in the data set.
        batch_size: samples in a batch, over all processes.
        seed: of the run.
        rank: of this process; it gets every ``world_size``-th sample of each batch.
        world_size: how many processes share a batch.

    >>> order = EpochOrder(5, 2, seed=0)
    >>> [len(batch) for batch in order], list(order) == list(order)
    ([2, 2], True)
    """

    def __init__(self, count: int, batch_size: int, seed: int, rank: int = 0, world_size: int = 1) -> None:
        self.epoch = 0
        self._count, self._batch_size, self._seed = count, batch_size, seed
        self._rank, self._world_size = rank, world_size

    def __len__(self) -> int:
        return self._count // self._batch_size

    @property
    def draws(self) -> tuple[int, ...]:
        """The seed of what the data set draws in this epoch."""
        return (self._seed, Stream.DATA, self.epoch, self._rank)

    def __iter__(self) -> Iterator[list[int]]:
        for batch in _permuted(self._count, self._batch_size, self._seed, Stream.ORDER, self.epoch):
            yield batch[self._rank :: self._world_size]


def _permuted(count: int, batch_size: int, seed: int, *key: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(mixed_seed(seed, *key))
    return _cut(torch.randperm(count, generator=generator).tolist(), batch_size)


def _cut(order: list[int], size: int) -> list[list[int]]:
    """Pieces of equal size; what does not fill one is left out."""
    return [order[begin : begin + size] for begin in range(0, len(order) - size + 1, size)]


def training_batches(dataset: Dataset[Any], order: EpochOrder, loaders: int = 0) -> SeededBatches:
    """The batches of the epoch that the order is at; what the data set draws for them follows from the seed, too.

    Args:
        dataset: the training set.
        order: at an epoch.
        loaders: how many other processes make them, as everywhere here; what they are does not depend on it.
    """
    return seeded_batches(dataset, order, *order.draws, loaders=loaders)


def all_batches(dataset: Dataset[Any], batch_size: int, seed: int, loaders: int = 0) -> SeededBatches:
    """All samples in their order, to look at; the last batch may be smaller.

    A data set that draws at random draws the same in each look, and nothing from the generators of the model.
    """
    order = list(range(len(dataset)))  # type: ignore[arg-type]
    pieces = [order[begin : begin + batch_size] for begin in range(0, len(order), batch_size)]
    return seeded_batches(dataset, pieces, seed, Stream.LOOKS, loaders=loaders)


def start_batches(
    dataset: Dataset[Any],
    batch_size: int,
    held_back: int,
    seed: int,
    others_size: int | None = None,
    loaders: int = 0,
) -> tuple[list[Any], SeededBatches]:
    """The batches that a start is measured on, and the others, which an initialization may see.

    Args:
        dataset: the training set.
        batch_size: samples in a batch.
        held_back: how many batches to measure on.
        seed: of the run.
        others_size: samples in a batch of the others; as in those held back, by default.
        loaders: how many other processes make them.

    Returns:
        The batches held back, and the others, always the same in the same order.
    """
    order = _permuted(len(dataset), batch_size, seed, Stream.START_ORDER)  # type: ignore[arg-type]
    held = seeded_batches(dataset, order[:held_back], seed, Stream.START_DATA, 0, loaders=loaders)
    others = _cut([index for batch in order[held_back:] for index in batch], others_size or batch_size)
    return list(held), seeded_batches(dataset, others, seed, Stream.START_DATA, 1, loaders=loaders)
