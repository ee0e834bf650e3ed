"""Handwritten digits that need no download: 1797 images of 8 x 8 pixels, in ten classes."""

from __future__ import annotations

from importlib import resources
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from initopt._support.checks import check_integer
from initopt._support.errors import warn
from initopt.data.splits import Splits, Subset

__all__ = ["SUBSETS", "digits", "digits_splits", "digits_tensors"]

SUBSETS: dict[str, tuple[int, ...]] = {"test": (0,), "validation": (1,), "train": (2, 3, 4)}
"""Which images of each run of five of a class a subset has: the split is stratified, and no generator can change it."""


def digits_tensors(subset: Subset) -> tuple[Tensor, Tensor]:
    """One subset of the digits as two tensors.

    The images are the 1797 of the test file of "Optical Recognition of Handwritten Digits" (E. Alpaydin, C. Kaynak, UCI
    Machine Learning Repository, 1998, CC BY 4.0), as scikit-learn has them.

    Args:
        subset: ``"train"`` (1071 images), ``"validation"`` (362) or ``"test"`` (364).

    Returns:
        The images, float32 of shape ``(N, 1, 8, 8)``, with the mean and standard deviation over all pixels of the
        training images taken out; the labels, int64 of shape ``(N,)``.

    Raises:
        ValueError: if there is no such subset.

    >>> images, labels = digits_tensors("train")
    >>> images.shape, labels.unique().tolist()
    (torch.Size([1071, 1, 8, 8]), [0, 1, 2, 3, 4, 5, 6, 7, 8, 9])
    """
    if subset not in SUBSETS:
        raise ValueError(f"subset must be one of {', '.join(map(repr, SUBSETS))}; got {subset!r}")
    with resources.files(__package__).joinpath("digits.npz").open("rb") as file, np.load(file) as arrays:
        pixels, labels = arrays["images"].astype(np.float32), arrays["labels"].astype(np.int64)
    training = pixels[_belongs(labels, "train")]
    chosen = _belongs(labels, subset)
    images = (pixels[chosen] - training.mean()) / training.std()
    return torch.from_numpy(images).unsqueeze(1), torch.from_numpy(labels[chosen])


def _belongs(labels: np.ndarray, subset: str) -> np.ndarray:
    """A mask of the images in a subset, by their number within their class."""
    number = np.zeros(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        places = np.flatnonzero(labels == label)
        number[places] = np.arange(len(places))
    return np.isin(number % 5, SUBSETS[subset])


def digits_splits() -> Splits:
    """The handwritten digits of :func:`digits_tensors`, in three parts.

    >>> splits = digits_splits()
    >>> len(splits.train), len(splits.validation), len(splits.test)
    (1071, 362, 364)
    """
    train, validation, test = (TensorDataset(*digits_tensors(part)) for part in ("train", "validation", "test"))
    return Splits(train, validation, test, classes=tuple(map(str, range(10))))


def digits(
    batch_size: int | None = None,
    *,
    subset: Subset | None = None,
    seed: int | None = None,
    shuffle: bool | None = None,
) -> Splits:
    """The handwritten digits of :func:`digits_tensors`, in three parts; ``digits().batches(64)`` are batches of them.

    Args:
        batch_size: with this, or any of the others, the result is a loader of (images, labels), as in earlier versions,
            with a warning; the next release has no arguments here.
        subset: ``"train"``, by default, ``"validation"`` or ``"test"``.
        seed: of the order; 0 by default.
        shuffle: whether to draw a new order for every epoch, and leave out a short last batch; by default, it does.

    Returns:
        Three data sets of samples, each an image of shape (1, 8, 8) and a label.

    Raises:
        ValueError: for an argument that cannot work.

    >>> images, labels = next(iter(digits().batches(32)))
    >>> images.shape, labels.shape
    (torch.Size([32, 1, 8, 8]), torch.Size([32]))
    """
    if batch_size is None and subset is None and seed is None and shuffle is None:
        return digits_splits()
    warn("initopt.data.digits: arguments are for earlier versions; take digits().batches(batch_size, subset=..., seed=...)")
    loader: Any = _loader(64 if batch_size is None else batch_size, subset or "train", seed or 0, shuffle)
    made: Splits = loader  # what those who give arguments expect
    return made


def _loader(batch_size: int, subset: Subset, seed: int, shuffle: bool | None) -> DataLoader[tuple[Tensor, ...]]:
    """A loader over one part, whose order is new in every pass."""
    check_integer("batch_size", batch_size, 1)
    check_integer("seed", seed, 0)
    images, labels = digits_tensors(subset)
    if batch_size > len(labels):
        raise ValueError(f"batch_size must be at most {len(labels)}, the images in {subset!r}; got {batch_size}")
    return DataLoader(
        TensorDataset(images, labels),
        batch_size=batch_size,
        shuffle=shuffle is not False,
        drop_last=shuffle is not False,
        generator=torch.Generator().manual_seed(seed),
    )
