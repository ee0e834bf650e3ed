"""Put a model into the mode in which it is measured, and back."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from initopt._support._torch_private import BATCH_NORMS, INSTANCE_NORMS, STRUCTURE, compiler_is_loaded, hooks_of
from initopt.model.double_backward import watching
from initopt.model.randomness import drawing_on

__all__ = [
    "Eager",
    "ModeGuard",
    "StructureGuard",
    "has_batch_statistics",
    "measuring",
    "ran_in_evaluation_mode",
    "running_statistics",
]


@contextmanager
def measuring(model: nn.Module, train_mode: bool = False) -> Iterator[None]:
    """A block in which batch norms use batch statistics and leave the running ones alone, and nothing adds noise.

    The model is in evaluation mode, which switches dropout and stochastic depth off, except for its batch and instance
    norms: these normalize as in training. Norms that the user froze, by putting them into evaluation mode inside a model
    that is in training mode, stay frozen. In a block within a block, on the same model or a part of it, what counts is how
    the user had them before the outer one.

    Args:
        model: the model; its modules' flags are as before when the block ends, however it ends.
        train_mode: leave the model wholly in training mode instead, dropout and training-only outputs included.
    """
    guard = ModeGuard(model)
    users = {module: _training(module) for module in model.modules()}
    new = [module for module in users if module not in _AS_SET_BY_THE_USER]
    was_training = users[model]
    try:
        for module in new:
            _AS_SET_BY_THE_USER[module] = users[module]
        if train_mode and not was_training:
            model.train()
        elif train_mode:
            for module, training in users.items():
                module.training = training
        for module, training in users.items():
            if not isinstance(module, (*BATCH_NORMS, *INSTANCE_NORMS)):
                if not train_mode:
                    module.training = False
            else:
                module.training = training or not was_training  # else it was frozen
        for module, name, value in _norm_settings(model):
            if module.training:
                setattr(module, name, value)
        with watching(), drawing_on([*model.parameters(), *model.buffers()]):
            yield
    finally:
        for module in new:
            _AS_SET_BY_THE_USER.pop(module, None)
        guard.put_back()


@contextmanager
def running_statistics(model: nn.Module) -> Iterator[None]:
    """Have the batch norms of a model normalize with their running statistics until the block ends, as in evaluation.

    Those of a new network are 0 and 1, so that its batch norms do nothing but scale and shift.
    """
    flags = [(module, module.training) for module in model.modules() if isinstance(module, BATCH_NORMS)]
    try:
        for module, _ in flags:
            module.training = False
        yield
    finally:
        for module, training in flags:
            module.training = training


_AS_SET_BY_THE_USER: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()
"""Training flags of modules that are being measured, as their user has them."""


def _training(module: nn.Module) -> bool:
    """Whether a module is in training mode as its user has it."""
    return _AS_SET_BY_THE_USER.get(module, module.training)


def _norm_settings(model: nn.Module) -> Iterator[tuple[nn.Module, str, Any]]:
    """What norms are to have beside their training flags while a model is measured."""
    for module in model.modules():
        if isinstance(module, BATCH_NORMS):  # in training mode, one that tracks nothing ignores its running statistics
            yield module, "track_running_stats", False
        elif isinstance(module, INSTANCE_NORMS):  # updates them all the same, but at momentum 0 to what they were
            yield module, "momentum", 0.0


def has_batch_statistics(model: nn.Module) -> bool:
    """Whether a model, in the mode that its user put it into, has batch norms that :func:`measuring` does not freeze."""
    norms = [module for module in model.modules() if isinstance(module, BATCH_NORMS)]
    return any(_training(norm) or not _training(model) for norm in norms)


def ran_in_evaluation_mode(model: nn.Module) -> bool:
    """Whether a model that is being measured is in evaluation mode, though its user has it in training mode."""
    return _training(model) and not model.training


class ModeGuard:
    """The training modes of a model's modules, and what :func:`measuring` sets beside them, as they are now."""

    def __init__(self, model: nn.Module) -> None:
        self._flags = [(module, module.training) for module in model.modules()]
        self._settings = [(module, name, getattr(module, name)) for module, name, _ in _norm_settings(model)]

    def put_back(self) -> None:
        """Give the modules these modes again."""
        for module, training in self._flags:
            module.training = training
        for module, name, value in self._settings:
            setattr(module, name, value)


class StructureGuard:
    """What modules and parameters hang on one another, hooks included, as it is now.

    Engines hook into modules, hide the hooks of parameters, and put other tensors in their place, for a while each.
    """

    def __init__(self, model: nn.Module) -> None:
        self._kept: list[tuple[dict[Any, Any], dict[Any, Any]]] = []
        self._hookless: list[nn.Parameter] = []
        for module in model.modules():
            for name, value in vars(module).items():
                if name in STRUCTURE and isinstance(value, dict):
                    self._kept.append((value, dict(value)))
        for parameter in model.parameters():
            hooks = hooks_of(parameter)
            if hooks is None:
                self._hookless.append(parameter)
            else:
                self._kept.append((hooks, dict(hooks)))

    def put_back(self) -> None:
        """Give modules and parameters this structure again."""
        for parameter in self._hookless:
            (hooks_of(parameter) or {}).clear()
        for now, before in self._kept:
            if len(now) != len(before) or any(now.get(key, now) is not value for key, value in before.items()):
                now.clear()
                now.update(before)


_LOCK = threading.Lock()
_users = 0
_stance: Any = None


class Eager:
    """A block in which what ``torch.compile`` has compiled runs uncompiled, where this PyTorch can do that (2.6 and newer).

    Compiled code has no second derivative. The setting is the process's: it is made by the first thread that needs it and
    undone by the last. Where nothing was compiled so far, there is nothing to set.
    """

    def __init__(self) -> None:
        self._on = False

    def __enter__(self) -> None:
        global _users, _stance
        if not compiler_is_loaded() or not hasattr(torch.compiler, "set_stance"):
            return
        with _LOCK:
            if _users == 0:
                _stance = torch.compiler.set_stance("force_eager")  # at once, not only when it is entered
            _users += 1
            self._on = True

    def __exit__(self, *error: object) -> None:
        global _users
        if self._on:
            with _LOCK:
                self._on = False
                _users -= 1
                if _users == 0:
                    _stance.__exit__(None, None, None)
