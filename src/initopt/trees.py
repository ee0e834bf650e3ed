"""Batches as nests of tensors: dicts, lists and tuples, to any depth."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

__all__ = ["batch_size", "map_tensors", "named_tensors", "take", "to_device"]


def named_tensors(tree: Any, path: str = "batch") -> Iterator[tuple[str, Tensor]]:
    """Every tensor of a nest, with the expression that reaches it.

    >>> [name for name, _ in named_tensors({"x": torch.ones(2), "y": [torch.ones(2)]})]
    ["batch['x']", "batch['y'][0]"]
    """
    if isinstance(tree, Tensor):
        yield path, tree
    elif isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from named_tensors(value, f"{path}[{key!r}]")
    elif isinstance(tree, (list, tuple)):
        for index, value in enumerate(tree):
            yield from named_tensors(value, f"{path}[{index}]")


def map_tensors(function: Callable[[Tensor], Tensor], tree: Any) -> Any:
    """The same nest with every tensor replaced; what is not a tensor stays as it is.

    >>> map_tensors(lambda x: x + 1, [torch.zeros(1), "label"])
    [tensor([1.]), 'label']
    """
    if isinstance(tree, Tensor):
        return function(tree)
    if isinstance(tree, Mapping):
        mapped = {key: map_tensors(function, value) for key, value in tree.items()}
        # Named mappings (the batch and output classes of transformers, say) keep their type, for their attributes.
        return mapped if type(tree) is dict else type(tree)(mapped)  # type: ignore[call-arg]
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*(map_tensors(function, value) for value in tree))
    if isinstance(tree, (list, tuple)):
        return type(tree)(map_tensors(function, value) for value in tree)
    return tree


def batch_size(batch: Any) -> int:
    """The first dimension that all tensors of a batch share.

    Raises:
        ValueError: if there is no tensor, one has no dimension, or the first dimensions differ.
    """
    sizes: dict[int, str] = {}
    for name, tensor in named_tensors(batch):
        if tensor.ndim == 0:
            raise ValueError(
                f"{name} is a tensor without dimensions; every tensor of a batch needs its samples along the first one"
            )
        sizes.setdefault(tensor.shape[0], name)
    if not sizes:
        raise ValueError(
            f"a batch is a nest (dict, list, tuple) of tensors; got {type(batch).__name__} without any tensor "
            "(turn arrays into tensors first, for example in the collate_fn of the DataLoader)"
        )
    if len(sizes) > 1:
        found = ", ".join(f"{name} has {size}" for size, name in sizes.items())
        raise ValueError(f"the tensors of a batch must share their first dimension, the samples; {found}")
    return next(iter(sizes))


def take(tree: Any, indices: Tensor) -> Any:
    """The samples of a batch at the given indices, along the first dimension of every tensor."""
    start, stop = int(indices[0]), int(indices[-1]) + 1
    if stop - start == len(indices):  # a window that does not wrap around is a view, not a copy
        return map_tensors(lambda tensor: tensor[start:stop], tree)
    return map_tensors(lambda tensor: tensor.index_select(0, indices.to(tensor.device)), tree)


def to_device(batch: Any, device: torch.device) -> Any:
    """The batch on another device; tensors already there are not copied."""
    return map_tensors(lambda tensor: tensor.to(device, non_blocking=True), batch)
