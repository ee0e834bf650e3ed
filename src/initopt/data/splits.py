"""A data set in the three parts that an honest comparison needs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch.utils.data import Dataset, TensorDataset

from initopt.data.digits import digits_tensors

__all__ = ["Splits", "digits_splits"]


@dataclass(frozen=True)
class Splits:
    """Three data sets of samples.

    Attributes:
        train: what is trained on.
        validation: what learning rates are chosen on; may be ``None`` where nothing is chosen.
        test: what the result is measured on, and nothing is chosen by.
    """

    train: Dataset[Any]
    validation: Dataset[Any] | None
    test: Dataset[Any]


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
    )
