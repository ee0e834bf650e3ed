"""A network of a comparison: how to make it, and what its recipe has of its own."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from initopt._support.files import plain

__all__ = ["Network", "as_network", "described"]


@dataclass(frozen=True)
class Network:
    """A network of a comparison.

    Args:
        factory: returns a new model with its own start each time; its arguments can be bound by ``functools.partial``.
        recipe: changes to the recipe for this network, by field.
    """

    factory: Callable[[], nn.Module]
    recipe: Mapping[str, Any] = field(default_factory=dict)

    def make(self) -> nn.Module:
        """Make a new model with its own start.

        Raises:
            TypeError: if the factory returns something else.
        """
        model = self.factory()
        if not isinstance(model, nn.Module):
            raise TypeError(
                f"the factory {_name(self.factory)} returned {type(model).__name__}; it must return an nn.Module"
            )
        return model


def as_network(name: str, value: Any) -> Network:
    """Make a :class:`Network` of what the user gave as one.

    Raises:
        TypeError: if it is no factory.
    """
    network = value if isinstance(value, Network) else Network(value)
    factory = network.factory
    if isinstance(factory, nn.Module):
        raise TypeError(
            f"models[{name!r}] is a module, and every run needs a new one with weights of its own seed; give its class, "
            "functools.partial(Class, ...), or a function that returns it"
        )
    if not callable(factory):
        raise TypeError(f"models[{name!r}] must be a class or function that returns an nn.Module; got {factory!r}")
    _check_signature(f"models[{name!r}]", factory)
    return network


def _check_signature(what: str, factory: Callable[..., Any]) -> None:
    try:
        signature = inspect.signature(factory)
    except (TypeError, ValueError):  # some built-in classes have none
        return
    try:
        signature.bind()
    except TypeError as error:
        raise TypeError(f"{what} is called without arguments, but {error}; bind them with functools.partial") from None


def described(function: Any) -> Any:
    """A function with its bound arguments, as JSON has it; of data in three parts, their class.

    >>> described(functools.partial(nn.Linear, 8, out_features=2))
    {'class_path': 'torch.nn.modules.linear.Linear', 'init_args': {'': [8], 'out_features': 2}}
    """
    if hasattr(function, "train") and not callable(function):
        return plain(type(function))
    if not isinstance(function, functools.partial):
        return plain(function)
    arguments = {name: described(value) for name, value in function.keywords.items()}
    positional = {"": [described(value) for value in function.args]} if function.args else {}
    return {"class_path": plain(function.func), "init_args": positional | arguments}


def _name(function: Any) -> str:
    found = described(function)
    return str(found["class_path"] if isinstance(found, dict) else found)
