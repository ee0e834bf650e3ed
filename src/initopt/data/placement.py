"""Data sets in the memory of the device that works on them."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.data import Dataset, TensorDataset

from initopt._support.devices import free_memory
from initopt.data.images import Pixels

__all__ = ["placed"]

_SHARE = 0.5
"""Of the free memory of a device, what a data set may take: a network and its training have to fit there, too."""


def placed(dataset: Dataset[Any], device: torch.device) -> Dataset[Any]:
    """A data set in the memory of a device, where it can be there.

    Args:
        dataset: of samples.
        device: where its samples are used.

    Returns:
        A copy on the device, if the data set is made of tensors and these take no more than half of what is free there; the
        data set itself otherwise. Where the free memory of a device is not known, tensors go there.
    """
    if isinstance(dataset, Pixels):
        tensors: tuple[torch.Tensor, ...] = (dataset.pixels, dataset.labels)
    elif type(dataset) is TensorDataset:  # what a subclass makes of its tensors is its own affair
        tensors = dataset.tensors
    else:
        return dataset
    missing = sum(tensor.nbytes for tensor in tensors if tensor.device != device)
    free = free_memory(device)
    if not missing or (free is not None and missing > _SHARE * free):
        return dataset
    if isinstance(dataset, Pixels):
        return dataset.to(device)
    return TensorDataset(*(tensor.to(device) for tensor in tensors))
