"""A data set in the three parts that an honest comparison needs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from initopt.checks import check_integer
from initopt.data.digits import Subset, digits_tensors
from initopt.data.loading import seeded_batches
from initopt.data.placement import placed
from initopt.data.seeded_batches import SeededBatches

__all__ = ["Splits", "digits_splits"]


@dataclass(frozen=True)
class Splits:
    """Three data sets of samples.

    A data set may draw at random what it does to a sample (augmentation). What it draws from torch's global generator
    follows from a seed in :meth:`batches` and in comparisons.

    Attributes:
        train: what is trained on.
        validation: what learning rates are chosen on; may be ``None`` where nothing is chosen.
        test: what the result is measured on, and nothing is chosen by; may be ``None`` where nothing is compared.
        classes: names of the classes, where they are known.
    """

    train: Dataset[Any]
    validation: Dataset[Any] | None
    test: Dataset[Any] | None
    classes: tuple[str, ...] = field(default=(), repr=False)

    def batches(self, batch_size: int = 64, *, subset: Subset = "train", seed: int = 0, loaders: int = 0) -> Iterable[Any]:
        """The batches of a part, in a random order.

        Iterated over again, they are the same again, in the same order and with the same augmentation: what is measured on
        them before and after can be compared. What does not fill a batch is left out.

        Args:
            batch_size: samples in a batch.
            subset: ``"train"``, ``"validation"`` or ``"test"``.
            seed: of the order, and of the augmentation.
            loaders: how many other processes read, decode and augment; the batches do not depend on it. None, by default.
                Of use where samples are files; what is in memory decoded stays in this process. Not for streams.

        Returns:
            An iterable of batches, with a length but for streams.

        Raises:
            ValueError: if there is no such part, it does not fill a batch, or is a stream and there are to be loaders.

        >>> images, labels = next(iter(digits_splits().batches(32)))
        >>> images.shape, labels.shape
        (torch.Size([32, 1, 8, 8]), torch.Size([32]))
        """
        check_integer("batch_size", batch_size, 1)
        check_integer("seed", seed, 0)
        check_integer("loaders", loaders, 0)
        dataset = self._part(subset)
        if isinstance(dataset, IterableDataset):
            if loaders:
                raise ValueError(
                    f"loaders={loaders} is not for a stream, which is read in this process; take loaders=0, or give "
                    f"{subset}_samples, which reads that many into memory, undecoded"
                )
            return SeededBatches(DataLoader(_shuffled(dataset, seed), batch_size, drop_last=True), seed)
        count = len(dataset)  # type: ignore[arg-type]
        if batch_size > count:
            raise ValueError(f"batch_size must be at most {count}, the samples in {subset!r}; got {batch_size}")
        order = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()
        whole = [order[begin : begin + batch_size] for begin in range(0, count - batch_size + 1, batch_size)]
        return seeded_batches(dataset, whole, seed, loaders=loaders)

    def to(self, device: torch.device | str) -> Splits:
        """The same parts in the memory of a device, as far as they fit.

        A part that is made of tensors (CIFAR, digits, texts, a ``TensorDataset`` of one's own) goes there if it takes no
        more than half of the memory that is free; its batches are then made and augmented there. Another one stays where it
        is. Batches have the same values in either case: what augmentation draws does not depend on the device.

        Args:
            device: of the model.

        Returns:
            New parts; those that stay are shared.

        >>> images, labels = next(iter(digits_splits().to("meta").batches(32)))
        >>> images.device, images.shape
        (device(type='meta'), torch.Size([32, 1, 8, 8]))
        """
        target = torch.empty(0, device=device).device  # named in full: cuda is one of several
        validation, test = (None if part is None else placed(part, target) for part in (self.validation, self.test))
        return Splits(placed(self.train, target), validation, test, self.classes)

    def _part(self, subset: str) -> Dataset[Any]:
        if subset not in ("train", "validation", "test"):
            raise ValueError(f"subset must be 'train', 'validation' or 'test'; got {subset!r}")
        dataset: Dataset[Any] | None = getattr(self, subset)
        if dataset is None:
            raise ValueError(f"these data have no {subset!r}; ask for more than 0 {subset}_samples")
        return dataset


def _shuffled(dataset: IterableDataset[Any], seed: int) -> IterableDataset[Any]:
    shuffled: IterableDataset[Any] = dataset.shuffled(seed) if hasattr(dataset, "shuffled") else dataset
    return shuffled


def digits_splits() -> Splits:
    """The handwritten digits of :func:`initopt.data.digits_tensors`, in three parts.

    >>> splits = digits_splits()
    >>> len(splits.train), len(splits.validation), len(splits.test)
    (1071, 362, 364)
    """
    return Splits(
        train=TensorDataset(*digits_tensors("train")),
        validation=TensorDataset(*digits_tensors("validation")),
        test=TensorDataset(*digits_tensors("test")),
        classes=tuple(map(str, range(10))),
    )
