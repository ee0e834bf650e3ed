"""Batches that this process makes, or others do; they are the same in either case."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from itertools import count
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Sampler, TensorDataset, default_collate

from initopt._support.processes import end_with_parent
from initopt.data.images import Pixels
from initopt.model.randomness import seeded

__all__ = ["SeededBatches", "seeded_batches"]

_START_METHOD = "fork" if sys.platform == "linux" else None
"""Elsewhere the platform's own. Forked loaders start at once, share what is in memory, and need nothing sent to them; a
process that was spawned itself, as those that do a run each, would spawn its own by default, at seconds a loader."""


def seeded_batches(dataset: Dataset[Any], order: Iterable[list[int]], *seed: int, loaders: int = 0) -> SeededBatches:
    """The batches that an order names, with what the data set draws for each of them.

    Args:
        dataset: of samples that can be indexed.
        order: the indices of each batch; can be iterated over again.
        seed: what is drawn for a batch follows from this and the number of the batch.
        loaders: how many other processes make the batches; 0 for this one. They have one processor thread each. Tensors in
            memory, and images that are decoded already, are left to this process whatever is asked for.
    """
    unused = torch.Generator()  # else each pass would draw from the generator that the model draws from
    if isinstance(dataset, (TensorDataset, Pixels)):  # which give a whole batch at once, at a fraction of the cost
        return SeededBatches(DataLoader(dataset, sampler=order, batch_size=None, generator=unused), *seed)
    if not loaders:
        return SeededBatches(DataLoader(dataset, batch_sampler=order, generator=unused), *seed)
    loader: DataLoader[Any] = DataLoader(
        _Batches(dataset, seed),
        sampler=_Numbered(order),
        batch_size=None,
        num_workers=loaders,
        collate_fn=_as_it_is,
        generator=unused,
        worker_init_fn=_begin,
        multiprocessing_context=_START_METHOD,
    )
    return SeededBatches(loader, *seed)


class _Batches(Dataset[Any]):
    """A data set whose samples are the batches of another, each drawn from a seed as in :class:`SeededBatches`.

    So it does not matter which process makes a batch, and what it has made before.
    """

    def __init__(self, dataset: Dataset[Any], seed: tuple[int, ...]) -> None:
        self._dataset, self._seed = dataset, seed

    def __getitem__(self, index: tuple[int, list[int]]) -> Any:
        number, indices = index
        at_once = getattr(self._dataset, "__getitems__", None)  # as loaders of torch have it
        with seeded(*self._seed, number):
            return default_collate(at_once(indices) if at_once else [self._dataset[index] for index in indices])


class _Numbered(Sampler[tuple[int, list[int]]]):
    def __init__(self, order: Iterable[list[int]]) -> None:
        self._order = order

    def __len__(self) -> int:
        return len(self._order)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[tuple[int, list[int]]]:
        return enumerate(self._order)


def _as_it_is(batch: Any) -> Any:
    return batch


def _begin(number: int) -> None:
    # Torch has loaders look for their parent every five seconds; until then they would hold open what it had open: its
    # connection to a comparison that waits for it to close, say.
    end_with_parent()


_END = object()


class SeededBatches:
    """Batches that come out the same in each pass, whatever their data set draws for them (augmentation, say).

    While a batch is made, torch, NumPy and Python draw random numbers that follow from the seed and the number of the
    batch; afterwards they go on as if nothing had been drawn.

    Args:
        batches: an iterable that can be iterated over again.
        seed: a seed, and a key, see :func:`initopt.model.randomness.seed_sequence`.

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
        for number in count():
            with seeded(*self._seed, number):
                batch = next(iterator, _END)
            if batch is _END:
                return
            yield batch
