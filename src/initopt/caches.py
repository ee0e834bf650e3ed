"""What modules keep of one forward pass for the next."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

__all__ = ["CacheGuard"]

_OWN = frozenset(vars(nn.Module()))
"""Attributes that any module has."""


class CacheGuard:
    """The attributes of a model's modules as they were, and the means to put back those that hold part of a graph.

    In evaluation mode, some modules keep what they computed from their weights (attention biases, in LeViT). In the next
    pass it would be that of other weights, and its graph gone. Tensors without a graph are left to the module.
    """

    def __init__(self, model: nn.Module) -> None:
        self._before = [
            (module, {name: (value, _contents(value)) for name, value in vars(module).items() if name not in _OWN})
            for module in model.modules()
        ]

    def put_back(self) -> None:
        """Forget what modules kept, in attributes or in dicts and lists that are attributes, since the guard was made."""
        for module, before in self._before:
            attributes = vars(module)
            for name in [name for name, value in attributes.items() if name not in _OWN and _has_graph(value)]:
                if name not in before:
                    del attributes[name]
                    continue
                value, contents = before[name]
                if isinstance(value, dict) and contents is not None:
                    value.clear()
                    value.update(contents)
                elif isinstance(value, list) and contents is not None:
                    value[:] = contents
                attributes[name] = value


def _contents(value: Any) -> Any:
    return value.copy() if type(value) in (dict, list) else None


def _has_graph(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.grad_fn is not None
    if type(value) in (dict, list, tuple):
        inner = value.values() if isinstance(value, dict) else value
        return any(isinstance(item, Tensor) and item.grad_fn is not None for item in inner)
    return False
