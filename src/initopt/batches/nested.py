"""Batches as nests of tensors: dicts, lists and tuples, to any depth.

A tensor has the samples along its first dimension, or it is one sample, in a list of them beside labels of the same number:
``([clip, clip, clip], [label, label, label])``, as collate functions give samples that differ in shape.
"""

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


def _map_leaves(function: Callable[[Any], Any], tree: Any, size: int | None = None) -> Any:
    """The same nest with every leaf replaced; a list of plain values is a leaf, and one of ``size`` samples."""
    if size is not None and _are_samples(tree, size):
        return function(tree)
    if isinstance(tree, Mapping):
        mapped = {key: _map_leaves(function, value, size) for key, value in tree.items()}
        if type(tree) is dict:
            return mapped
        # Named mappings (the batch and output classes of transformers, say) keep their type, for their attributes.
        copied = copy.copy(tree)
        for key, value in mapped.items():
            copied[key] = value  # type: ignore[index]
        return copied
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*(_map_leaves(function, value, size) for value in tree))
    if isinstance(tree, (list, tuple)) and not _is_plain(tree):
        return type(tree)(_map_leaves(function, value, size) for value in tree)
    return function(tree)


def _is_plain(sequence: list[Any] | tuple[Any, ...]) -> bool:
    return not any(isinstance(item, (Tensor, Mapping, list, tuple, np.ndarray)) for item in sequence)


def _is_listed(node: Any) -> bool:
    """Whether a node is a list that may hold a sample in each item."""
    if not isinstance(node, (list, tuple)) or hasattr(node, "_fields") or not node:
        return False
    return all(isinstance(item, Tensor) for item in node) or all(isinstance(item, Mapping) for item in node)


def _are_samples(node: Any, size: int) -> bool:
    """Whether a node is a list of the ``size`` samples of a batch, and not of tensors that have them along a dimension."""
    if not _is_listed(node) or len(node) != size:
        return False
    return any(tensor.ndim == 0 or len(tensor) != size for _, tensor in named_tensors(node))


def _listed_samples(batch: Any) -> int | None:
    """How many samples a batch has, if it has them in lists.

    Raises:
        ValueError: if the same lists may as well be of several inputs.
    """
    lists: list[tuple[str, Any]] = []
    others: list[Any] = []
    if _is_listed(batch) and isinstance(batch[0], Mapping):
        lists.append(("batch", batch))
    else:
        items = (
            batch.items() if isinstance(batch, Mapping) else enumerate(batch) if isinstance(batch, (list, tuple)) else ()
        )
        for key, item in items:
            _sort(item, f"batch[{key!r}]", lists, others)
    if not lists or len({len(node) for _, node in lists}) > 1:
        return None
    count = len(lists[0][1])
    tensors = [tensor for _, tensor in named_tensors(batch)]
    first = {None if tensor.ndim == 0 else len(tensor) for tensor in tensors}
    labels = [item for item in others if isinstance(item, (list, tuple))]
    beside = any(len(item) == count for item in labels)
    if first == {count} and beside and count > 1:
        raise ValueError(
            f"{lists[0][0]} is a list of {count} tensors of {count}: as many samples, or inputs of as many samples each? "
            "Stack them if they are samples (torch.stack); if they are inputs, give the labels as a tensor, too"
        )
    if len(first) == 1 and None not in first:  # the tensors alone would make a batch of several inputs
        return count if beside else None
    if any(len(item) != count for item in others if not isinstance(item, (list, tuple))):
        return None
    return count if beside or len(lists) > 1 or len(labels) < len(others) or lists[0][1] is batch else None


def _sort(node: Any, path: str, lists: list[tuple[str, Any]], others: list[Any]) -> None:
    """Find the lists that may be of samples, and everything else that has a length."""
    if _is_listed(node):
        lists.append((path, node))
    elif isinstance(node, Mapping):
        for key, value in node.items():
            _sort(value, f"{path}[{key!r}]", lists, others)
    elif isinstance(node, (Tensor, np.ndarray)):
        if node.ndim > 0:
            others.append(node)
    elif isinstance(node, (list, tuple)):
        if _is_plain(node):
            others.append(node)
        else:
            for index, value in enumerate(node):
                _sort(value, f"{path}[{index}]", lists, others)


_BY_INDEX = (
    "Samples that differ in shape can be given in lists, one tensor each, beside labels of the same number. What cannot "
    "be split so (graphs, packed sequences) can be given by index: batches of (indices,), and a loss_fn of (model, batch) "
    "that collates the samples of batch[0].tolist()"
)


def batch_size(batch: Any) -> int:
    """The number of samples: the first dimension that all tensors of a batch share, or the length of lists of samples.

    Lists are of samples if what is beside them (labels, other such lists) has the same length, and they cannot be several
    inputs that have the samples along their first dimension.

    Raises:
        ValueError: if there is no tensor, one has no dimension, or the first dimensions differ.

    >>> batch_size((torch.ones(3, 5), torch.ones(3))), batch_size(([torch.ones(5), torch.ones(7)], [0, 1]))
    (3, 2)
    """
    listed = _listed_samples(batch)
    if listed is not None:
        return listed
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
            f"(turn arrays into tensors first, for example in the collate_fn of the DataLoader). {_BY_INDEX}"
        )
    if len(sizes) > 1:
        found = ", ".join(f"{name} has {size}" for size, name in sizes.items())
        raise ValueError(f"the tensors of a batch must share their first dimension, the samples; {found}. {_BY_INDEX}")
    return next(iter(sizes))


def take(tree: Any, indices: Tensor, size: int) -> Any:
    """A copy of the samples of a batch at the given indices.

    Tensors and arrays are taken along their first dimension, and so are lists of samples, and of plain values (numbers,
    strings) as long as the batch. A copy in any case: a model may write into its inputs.

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
            return type(leaf)(map_tensors(torch.clone, leaf[index]) for index in indices.tolist())
        return leaf

    return _map_leaves(of_leaf, tree, size)


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
    # Of lists of samples, neither the number nor the shapes have to agree.
    named = [list(named_tensors(_shared(batch, size))) for batch, size in zip(batches, sizes, strict=True)]
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


def _shared(batch: Any, size: int) -> Any:
    """A batch without what it has in lists of samples."""
    return _map_leaves(lambda leaf: None if _are_samples(leaf, size) else leaf, batch, size)


def _joined(trees: Sequence[Any], sizes: Sequence[int]) -> Any:
    first = trees[0]
    if isinstance(first, Tensor):
        return torch.cat([tree.to(first.device) for tree in trees])
    if all(_are_samples(tree, size) for tree, size in zip(trees, sizes, strict=True)):
        return type(first)(item for tree in trees for item in tree)
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
