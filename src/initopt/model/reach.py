"""What a call of a model and a loss function can reach, and so may change: modules, tensors, generators."""

from __future__ import annotations

import functools
import random
import sys
import types
from collections import UserDict, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler

from initopt._support._torch_private import buffers_of, parameters_of
from initopt.model.randomness import GENERATORS, Generator

__all__ = ["MANY", "MODULE_OWN", "Reach", "is_container"]

MODULE_OWN = frozenset(vars(nn.Module()))
"""Attributes that any module has."""

_DEPTH = 6
"""Steps from the model or the loss to what is looked at: through attributes, closures, globals and the like."""

MANY = 10_000
"""Items of a container that is looked through; a longer one is data."""

_TRAINERS = {"accelerate", "lightning", "lightning_fabric", "pytorch_lightning"}
"""Packages whose objects know all of a training, loaders and loggers included, which a pass of a model does not change."""

_FOREIGN = {"builtins", "initopt", "numpy", "torch", *_TRAINERS, *sys.stdlib_module_names}
"""Packages whose functions and objects keep no state of the user's."""


@dataclass
class Reach:
    """Everything that was found, each once, in the order in which it was found.

    What counts is reached by attributes of modules and objects, items of containers, and what functions hold: variables of
    the functions around them, defaults, and the globals that they name.

    Attributes:
        modules: all modules, inner ones included.
        tensors: tensors that are neither parameters nor buffers of these modules.
        objects: other objects with attributes.
        generators: random generators, but for the global ones.
    """

    modules: list[nn.Module] = field(default_factory=list)
    tensors: list[Tensor] = field(default_factory=list)
    objects: list[Any] = field(default_factory=list)
    generators: list[Generator] = field(default_factory=list)
    _seen: dict[int, Any] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, *roots: Any) -> Reach:
        """What several things reach together."""
        found = cls()
        for generator in _global_generators():
            found._seen[id(generator)] = generator
        waiting = deque((root, 0) for root in roots)
        while waiting:  # breadth first, so that nothing is passed over for having been met far away first
            value, depth = waiting.popleft()
            if id(value) in found._seen or isinstance(value, _PLAIN):
                continue
            found._seen[id(value)] = value  # which keeps it alive, and its id its own
            waiting.extend((inner, depth + 1) for inner in found._enter(value) if depth < _DEPTH)
        own = {id(t) for module in found.modules for t in (*parameters_of(module).values(), *buffers_of(module).values())}
        found.tensors = [tensor for tensor in found.tensors if id(tensor) not in own]
        return found

    def _enter(self, value: Any) -> Iterator[Any]:
        """Note a value, and give what it leads to."""
        if isinstance(value, nn.Module):
            for module in value.modules():
                self._seen[id(module)] = module
                self.modules.append(module)
                yield from _own_attributes(module).values()
        elif isinstance(value, Tensor):
            self.tensors.append(value)
        elif isinstance(value, GENERATORS):
            self.generators.append(value)
        elif isinstance(value, (dict, UserDict)):
            if len(value) <= MANY:
                yield from value.values()
        elif isinstance(value, (list, tuple, set, frozenset, deque)):
            if len(value) <= MANY:
                yield from value
        elif isinstance(value, functools.partial):
            yield from (value.func, value.args, value.keywords)
        elif isinstance(value, types.MethodType):
            yield from (value.__self__, value.__func__)
        elif isinstance(value, types.FunctionType):
            if not _is_foreign(value.__module__):
                yield from _held(value)
        elif isinstance(value, (DataLoader, Dataset, Sampler)):  # theirs are the generators
            yield from vars(value).values()
        else:
            attributes = _attributes(value)
            if "__wrapped__" in attributes:  # functools.cache and the like
                yield attributes["__wrapped__"]
            elif attributes and not _is_foreign(type(value).__module__):
                self.objects.append(value)
                yield from attributes.values()


_PLAIN = (type, types.ModuleType, str, bytes, int, float, complex, bool, type(None), torch.dtype, torch.device, np.ndarray)


def _attributes(value: Any) -> dict[str, Any]:
    """The attributes of an object, without asking it for any."""
    try:
        found = object.__getattribute__(value, "__dict__")
    except AttributeError:
        return {}
    return found if isinstance(found, dict) else {}


def _own_attributes(module: nn.Module) -> dict[str, Any]:
    """The attributes of a module that are its own: no parameters, buffers, inner modules or hooks."""
    return {name: value for name, value in vars(module).items() if name not in MODULE_OWN}


def is_container(value: Any) -> bool:
    """Whether a value is a container whose contents can be kept and put back."""
    return type(value) in (dict, list, set, deque) or (isinstance(value, dict) and type(value).__module__ == "collections")


def _held(function: types.FunctionType) -> Iterator[Any]:
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # not yet assigned to
            continue
    yield from function.__defaults__ or ()
    yield from (function.__kwdefaults__ or {}).values()
    for name in _names(function.__code__):
        if name in function.__globals__:
            yield function.__globals__[name]


def _names(code: types.CodeType) -> set[str]:
    """Globals and attributes that a function names, those within it included."""
    inner = (_names(constant) for constant in code.co_consts if isinstance(constant, types.CodeType))
    return set(code.co_names).union(*inner)


def _is_foreign(module: str | None) -> bool:
    return module is not None and module.partition(".")[0] in _FOREIGN - {"__main__"}


def _global_generators() -> Iterator[Any]:
    """The global generators, which :mod:`initopt.model.randomness` takes care of."""
    yield torch.default_generator
    yield from torch.cuda.default_generators
    yield np.random.mtrand._rand
    yield getattr(random, "_inst", None)
