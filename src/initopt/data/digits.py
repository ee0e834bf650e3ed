"""Handwritten digits that need no download: 1797 images of 8 x 8 pixels, in ten classes."""

from __future__ import annotations

from importlib import resources
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from initopt._support.checks import check_integer

__all__ = ["SUBSETS", "Subset", "digits", "digits_tensors"]

Subset = Literal["train", "validation", "test"]

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


def digits(
    batch_size: int = 64,
    *,
    subset: Subset = "train",
    seed: int = 0,
    shuffle: bool = True,
) -> DataLoader[tuple[Tensor, ...]]:
    """A loader over one subset of the digits; see :func:`digits_tensors`.

    Args:
        batch_size: images per batch.
        subset: ``"train"``, ``"validation"`` or ``"test"``.
        seed: of the order. Two loaders with the same seed give the same batches, epoch after epoch.
        shuffle: whether to draw a new order for every epoch. Then a short last batch is left out, so that all batches
            are alike; without, every image comes once.

    Returns:
        A loader of (images, labels) batches.

    Raises:
        ValueError: if there is no such subset, ``batch_size`` is no positive integer or larger than the subset, or
            ``seed`` is negative.

    >>> images, labels = next(iter(digits(batch_size=32)))
    >>> images.shape, labels.shape
    (torch.Size([32, 1, 8, 8]), torch.Size([32]))
    """
    check_integer("batch_size", batch_size, 1)
    check_integer("seed", seed, 0)
    images, labels = digits_tensors(subset)
    if batch_size > len(labels):
        raise ValueError(f"batch_size must be at most {len(labels)}, the images in {subset!r}; got {batch_size}")
    return DataLoader(
        TensorDataset(images, labels),
        batch_size=batch_size,
        shuffle=shuffle,
        drop_last=shuffle,
        generator=torch.Generator().manual_seed(seed),
    )
