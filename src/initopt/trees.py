"""Batches as nests of tensors: dicts, lists and tuples, to any depth."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["batch_size", "concatenate", "map_tensors", "named_tensors", "take", "to_device"]


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
    return _map_leaves(lambda leaf: function(leaf) if isinstance(leaf, Tensor) else leaf, tree)


def _map_leaves(function: Callable[[Any], Any], tree: Any) -> Any:
    """The same nest with every leaf replaced; a list of plain values is a leaf."""
    if isinstance(tree, Mapping):
        mapped = {key: _map_leaves(function, value) for key, value in tree.items()}
        if type(tree) is dict:
            return mapped
        # Named mappings (the batch and output classes of transformers, say) keep their type, for their attributes.
        copied = copy.copy(tree)
        for key, value in mapped.items():
            copied[key] = value  # type: ignore[index]
        return copied
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*(_map_leaves(function, value) for value in tree))
    if isinstance(tree, (list, tuple)) and not _is_plain(tree):
        return type(tree)(_map_leaves(function, value) for value in tree)
    return function(tree)


def _is_plain(sequence: list[Any] | tuple[Any, ...]) -> bool:
    return not any(isinstance(item, (Tensor, Mapping, list, tuple, np.ndarray)) for item in sequence)


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


def take(tree: Any, indices: Tensor, size: int) -> Any:
    """A copy of the samples of a batch at the given indices.

    Tensors and arrays are taken along their first dimension, and so are lists of plain values (numbers, strings) as
    long as the batch. A copy in any case: a model may write into its inputs.

    Args:
        tree: a batch.
        indices: of the samples.
        size: how many samples the batch has.

    >>> take({"x": torch.tensor([1, 2, 3]), "names": ["a", "b", "c"], "mode": "fast"}, torch.tensor([2, 0]), 3)
    {'x': tensor([3, 1]), 'names': ['c', 'a'], 'mode': 'fast'}
    """

    def of_leaf(leaf: Any) -> Any:
        if isinstance(leaf, Tensor):
            return leaf.index_select(0, indices.to(leaf.device))
        if isinstance(leaf, np.ndarray) and leaf.ndim > 0 and len(leaf) == size:
            return leaf[indices.numpy()]
        if isinstance(leaf, (list, tuple)) and len(leaf) == size:
            return type(leaf)(leaf[index] for index in indices.tolist())
        return leaf

    return _map_leaves(of_leaf, tree)


def concatenate(batches: Sequence[Any]) -> Any:
    """Several batches as one, the samples of the first one first.

    Tensors and arrays are joined along their first dimension, and so are lists of plain values as long as the batch.
    Anything else is that of the first batch.

    Args:
        batches: nests of the same form.

    Raises:
        ValueError: if they are not of the same form, or samples are not of the same shape.

    >>> concatenate([{"x": torch.tensor([1, 2])}, {"x": torch.tensor([3])}])
    {'x': tensor([1, 2, 3])}
    """
    sizes = [batch_size(batch) for batch in batches]
    named = [list(named_tensors(batch)) for batch in batches]
    for other in named[1:]:
        if [name for name, _ in other] != [name for name, _ in named[0]]:
            raise ValueError(
                f"batches cannot be joined: one has {', '.join(name for name, _ in named[0])}, another "
                f"{', '.join(name for name, _ in other)}"
            )
        for (name, tensor), (_, first) in zip(other, named[0], strict=True):
            if tensor.shape[1:] != first.shape[1:] or tensor.dtype != first.dtype:
                raise ValueError(
                    f"batches cannot be joined: in one, {name} is {first.dtype} {tuple(first.shape)}, in another "
                    f"{tensor.dtype} {tuple(tensor.shape)}; pad all batches to one length, say"
                )
    return _joined(batches, sizes)


def _joined(trees: Sequence[Any], sizes: Sequence[int]) -> Any:
    first = trees[0]
    if isinstance(first, Tensor):
        return torch.cat([tree.to(first.device) for tree in trees])
    if isinstance(first, np.ndarray) and _as_long(trees, sizes):
        return np.concatenate(trees)
    if isinstance(first, Mapping):
        joined = {key: _joined([tree[key] for tree in trees], sizes) for key in first}
        if type(first) is dict:
            return joined
        copied = copy.copy(first)
        for key, value in joined.items():
            copied[key] = value  # type: ignore[index]
        return copied
    if isinstance(first, tuple) and hasattr(first, "_fields"):
        return type(first)(*(_joined(parts, sizes) for parts in zip(*trees, strict=True)))
    if isinstance(first, (list, tuple)) and not _is_plain(first):
        return type(first)(_joined(parts, sizes) for parts in zip(*trees, strict=True))
    if isinstance(first, (list, tuple)) and _as_long(trees, sizes):
        return type(first)(item for tree in trees for item in tree)
    return first


def _as_long(trees: Sequence[Any], sizes: Sequence[int]) -> bool:
    return all(np.ndim(tree) > 0 and len(tree) == size for tree, size in zip(trees, sizes, strict=True))


def to_device(batch: Any, device: torch.device) -> Any:
    """The batch on another device; tensors already there are not copied, unless they were made in inference mode."""

    def move(tensor: Tensor) -> Tensor:
        # Only copies to an accelerator are ordered with what comes after them.
        moved = tensor.to(device, non_blocking=device.type == "cuda")
        return moved.clone() if moved.is_inference() else moved

    return map_tensors(move, batch)
