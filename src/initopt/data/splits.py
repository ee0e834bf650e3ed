"""A data set in the three parts that an honest comparison needs."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from initopt._support.checks import check_integer
from initopt._support.devices import free_memory
from initopt.data.images import Pixels
from initopt.data.loader import SeededBatches, seeded_batches

__all__ = ["PARTS", "Sizes", "Splits", "Subset", "origins", "select", "stratified_order"]

Subset = Literal["train", "validation", "test"]


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

        >>> import initopt
        >>> images, labels = next(iter(initopt.data.digits().batches(32)))
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
            shuffled = dataset.shuffled(seed) if hasattr(dataset, "shuffled") else dataset
            return SeededBatches(DataLoader(shuffled, batch_size, drop_last=True), seed)
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

        >>> import initopt
        >>> images, labels = next(iter(initopt.data.digits().to("meta").batches(32)))
        >>> images.device, images.shape
        (device(type='meta'), torch.Size([32, 1, 8, 8]))
        """
        target = torch.empty(0, device=device).device  # named in full: cuda is one of several
        validation, test = (None if part is None else _placed(part, target) for part in (self.validation, self.test))
        return Splits(_placed(self.train, target), validation, test, self.classes)

    def _part(self, subset: str) -> Dataset[Any]:
        if subset not in PARTS:
            raise ValueError(f"subset must be 'train', 'validation' or 'test'; got {subset!r}")
        dataset: Dataset[Any] | None = getattr(self, subset)
        if dataset is None:
            raise ValueError(f"these data have no {subset!r}; ask for more than 0 {subset}_samples")
        return dataset


def _placed(dataset: Dataset[Any], device: torch.device) -> Dataset[Any]:
    """A copy of a data set in the memory of a device, or the data set itself where it cannot be there."""
    if isinstance(dataset, Pixels):
        tensors: tuple[torch.Tensor, ...] = (dataset.pixels, dataset.labels)
    elif type(dataset) is TensorDataset:  # what a subclass makes of its tensors is its own affair
        tensors = dataset.tensors
    else:
        return dataset
    missing = sum(tensor.nbytes for tensor in tensors if tensor.device != device)
    free = free_memory(device)  # where that is not known, tensors go there
    if not missing or (free is not None and missing > _SHARE * free):
        return dataset
    return dataset.to(device) if isinstance(dataset, Pixels) else TensorDataset(*(t.to(device) for t in tensors))


PARTS = ("train", "validation", "test")

_SEED = 20221006
"""Of every split that is drawn here, so that the parts are the same for everybody."""

_MOST_HELD_BACK = 10_000

_SHARE = 0.5
"""The share of the free memory of a device that a data set may take: a network and its training have to fit there, too."""


@dataclass(frozen=True)
class Sizes:
    """How many samples each part is to have; ``None`` for the default."""

    train: int | None
    validation: int | None
    test: int | None

    def __post_init__(self) -> None:
        for part, minimum in (("train", 1), ("validation", 0), ("test", 1)):
            if getattr(self, part) is not None:
                check_integer(f"{part}_samples", getattr(self, part), minimum)


def origins(splits: Container[str]) -> dict[str, str]:
    """The split of a data set that each part is from; the training split, for a part without one of its own.

    The validation split is for testing, if there is no other.

    >>> origins({"train", "validation"})
    {'test': 'validation', 'validation': 'train', 'train': 'train'}
    """
    test = next((name for name in ("test", "validation") if name in splits), "train")
    validation = "validation" if "validation" in splits and test != "validation" else "train"
    return {"test": test, "validation": validation, "train": "train"}


def select(labels: Mapping[str, np.ndarray], sizes: Sizes, name: str) -> dict[str, tuple[str, np.ndarray]]:
    """Choose the samples of each part.

    A part without a split of its own is split off the training split: a tenth of it, at most 10,000, and for test at least
    one. All classes are represented in proportion. What is chosen for validation and test does not depend on the size of
    the training part, and a larger training part contains a smaller one.

    Args:
        labels: of each split that there is, shape ``(N,)``.
        sizes: of the parts.
        name: of the data set, for messages.

    Returns:
        For each part the split that it is from, and the indices there, shape ``(n,)``, ascending; no validation part if it
        is to have no samples.

    Raises:
        ValueError: if there are too few samples.
    """
    orders = {split: stratified_order(values) for split, values in labels.items() if split in PARTS}
    found: dict[str, tuple[str, np.ndarray]] = {}
    taken, total = 0, len(orders["train"])
    for part in ("test", "validation"):
        origin, wanted = origins(labels)[part], getattr(sizes, part)
        if origin != "train":
            available = len(orders[origin])
            if not available and part == "test":
                raise ValueError(f"the split {origin!r} of {name} is for testing, and has no samples; fill or remove it")
            if wanted is not None and wanted > available:
                raise ValueError(f"{part}_samples must be at most {available}, which is what {name} has; got {wanted}")
            found[part] = (origin, np.sort(orders[origin][:wanted]))
        else:
            least = 1 if part == "test" else 0  # nothing need be chosen, but a result is measured
            count = max(min(total // 10, _MOST_HELD_BACK), least) if wanted is None else wanted
            found[part] = ("train", np.sort(orders["train"][taken : taken + count]))
            taken += count
    left = total - taken
    if left < 1 or (sizes.train is not None and sizes.train > left):
        wanted = f"fewer than train_samples={sizes.train}" if sizes.train is not None else "and nothing to train on"
        raise ValueError(
            f"the training split of {name} has {total} samples, of which {taken} go to validation and test: that leaves "
            f"{max(left, 0)}, {wanted}; lower train_samples, validation_samples or test_samples, or give more samples"
        )
    rest = orders["train"][taken:]
    found["train"] = ("train", np.sort(rest[: sizes.train]))
    return {part: found[part] for part in PARTS if len(found[part][1])}


def stratified_order(labels: np.ndarray) -> np.ndarray:
    """An order of which every beginning has the classes in proportion, and which is random otherwise.

    >>> labels = np.array([0, 0, 0, 0, 1, 1])
    >>> np.bincount(labels[stratified_order(labels)[:3]]).tolist()
    [2, 1]
    """
    order = np.random.default_rng(_SEED).permutation(len(labels))
    shuffled = labels[order]
    place = np.empty(len(labels))
    for label in np.unique(labels):
        members = np.flatnonzero(shuffled == label)
        place[members] = (np.arange(len(members)) + 0.5) / len(members)
    found: np.ndarray = order[np.argsort(place, kind="stable")]
    return found
