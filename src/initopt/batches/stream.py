"""Batches in the order in which they are given: cycled where they may be, some held back for measuring."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from initopt._support.errors import LoaderError, warn

__all__ = ["BatchStream", "check_batches", "length_of"]


def length_of(batches: Any) -> int | None:
    """How many batches there are, where that is known: generators and loaders over streaming datasets do not say."""
    try:
        return len(batches)
    except (TypeError, NotImplementedError):
        return None


def check_batches(batches: Any) -> None:
    """Refuse what cannot be iterated over, and what is visibly empty, before any work.

    Raises:
        TypeError: if ``batches`` is not an iterable of batches.
        LoaderError: if it has a length, and that is zero.
    """
    if isinstance(batches, Dataset) and not isinstance(batches, IterableDataset):
        raise TypeError(
            f"batches is a dataset of single samples ({type(batches).__name__}); wrap it in a "
            "torch.utils.data.DataLoader(dataset, batch_size=64, shuffle=True)"
        )
    if type(batches).__module__.partition(".")[0] == "datasets":
        raise TypeError(
            f"batches is a {type(batches).__name__} of the datasets library, which gives single samples; wrap it in a "
            'torch.utils.data.DataLoader(dataset.with_format("torch"), batch_size=64)'
        )
    if isinstance(batches, (str, bytes, dict)) or not isinstance(batches, Iterable) or hasattr(batches, "new_empty"):
        raise TypeError(
            f"batches must be an iterable of batches (a DataLoader, a list, a generator); got {type(batches).__name__}. "
            "Put a single batch into a list: [batch]"
        )
    if isinstance(batches, tuple) and batches and all(isinstance(item, Tensor) for item in batches):
        raise TypeError(
            f"batches is a tuple of {len(batches)} tensors, which is one batch; put it into a list: [(inputs, targets)]"
        )
    if length_of(batches) == 0:
        raise LoaderError("batches is empty: it has length 0, and at least one batch is needed")


class BatchStream:
    """A stream that hands out up to ``count`` batches and holds ``held_back`` others back.

    A first-in first-out queue runs ``held_back`` batches ahead of what is handed out. When a re-iterable (one whose
    ``iter()`` starts anew each time) comes to its end, the queue holds its last batches; they stay held back, and the
    others are cycled. So the order is that of the iterable, nothing needs a length, and no more than ``held_back``
    batches are in memory.

    A re-iterable with no more batches than are to be held back gives half of them to the steps, with a warning.

    It is batches that are held back. A loader that shuffles anew in each pass brings their samples in other batches of
    its later passes.

    Args:
        batches: any iterable of batches, checked by :func:`check_batches`.
        count: the most to hand out; fewer if the reader stops.
        held_back: how many to keep for :attr:`held`; fewer of a re-iterable that has no more than that.
        skip: how many of the first ones to pass over, for a run that is resumed; they count as handed out.
        on_first: is called with the first batch that is read, before any is handed out.
        remembered: how many of the batches that were handed out last, or passed over, to keep for :attr:`recent`.
    """

    def __init__(
        self,
        batches: Iterable[Any],
        count: int,
        held_back: int = 0,
        skip: int = 0,
        on_first: Callable[[Any], None] | None = None,
        remembered: int = 0,
    ) -> None:
        self.recent: deque[Any] = deque(maxlen=remembered)
        self.cycled = False
        self._batches = batches
        self._count = count
        self._held_back = held_back
        self._skip = skip
        self._on_first = on_first
        self._queue: deque[Any] = deque()

    def __iter__(self) -> Iterator[Any]:
        yield from itertools.islice(self._remembering(), self._skip, self._count)

    def _remembering(self) -> Iterator[Any]:
        for batch in self._cycle():
            self.recent.append(batch)
            yield batch

    def _cycle(self) -> Iterator[Any]:
        iterator = iter(self._batches)
        one_shot = iterator is self._batches
        given = 0
        for number, batch in enumerate(iterator):
            if number == 0 and self._on_first is not None:
                self._on_first(batch)
            self._queue.append(batch)
            if len(self._queue) > self._held_back:
                given += 1
                yield self._queue.popleft()
        self._refuse_if_exhausted(one_shot, given)
        kept = self._kept(given)
        while len(self._queue) > kept:
            given += 1
            yield self._queue.popleft()
        self.cycled = True
        while True:  # the queue now keeps the last batches for good; later passes leave out as many at their end
            again = 0
            for batch in itertools.islice(iter(self._batches), given):
                again += 1
                yield batch
            if again == 0:
                raise LoaderError(
                    f"batches gave {given + len(self._queue)} batch(es) the first time and none when it was iterated over "
                    "again, so it cannot be cycled; pass a DataLoader or a list, or ask for fewer steps"
                )

    def _refuse_if_exhausted(self, one_shot: bool, given: int) -> None:
        found = given + len(self._queue)
        if found == 0:
            raise LoaderError("batches is empty: iterating over it gave no batch, and at least one is needed")
        if one_shot:
            needed = self._count + self._held_back
            held = f" and {self._held_back} to measure on" if self._held_back else ""
            raise LoaderError(
                f"batches ended after {found} of the {needed} that are needed "
                f"({self._count} for the steps{held}). It can be iterated over only once: pass a DataLoader or a list, "
                "which are cycled, or ask for fewer steps"
            )

    def _kept(self, given: int) -> int:
        """How many batches stay held back at the end of the first pass: half of them, if the steps would have none."""
        if given:
            return len(self._queue)
        found = len(self._queue)
        kept = max(found // 2, found - self._count)
        what = (
            f"{kept} are measured on and the steps take the others" if kept else "the steps take it and nothing is measured"
        )
        warn(
            f"there {'is' if found == 1 else 'are'} {found} batch{'es' if found > 1 else ''}, too few to hold "
            f"measure_batches={self._held_back} back, so {what}; more batches, or smaller ones, would tell more"
        )
        return kept

    @property
    def held(self) -> list[Any]:
        """The batches held back, in their order; complete once a batch was handed out after which the reader stops."""
        return list(self._queue)
