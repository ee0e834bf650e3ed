"""Everything a user's model and process had before, back again afterwards."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from initopt._support._torch_private import (
    autocast_nesting,
    dispatch_modes,
    function_modes,
    is_multithreading_enabled,
    pop_saved_tensors_hooks,
    saved_tensors_hooks,
    set_dispatch_modes,
    set_function_modes,
)
from initopt._support.interrupts import all_or_nothing
from initopt.model.modes import Eager, ModeGuard, StructureGuard
from initopt.model.randomness import OwnGenerator, RandomState
from initopt.model.reach import Reach
from initopt.model.sharded import is_sharded
from initopt.model.state import StateGuard

__all__ = [
    "Kept",
    "Originals",
    "TorchState",
    "inner_work",
    "preserved",
    "preserving",
    "put_values",
    "unwritten",
    "weights_as",
]

Originals = dict[nn.Parameter, Tensor]
"""Trainable parameters with a copy of their values."""

_T = TypeVar("_T")


@dataclass(frozen=True)
class Kept:
    """What work on a preserved model is given.

    Attributes:
        originals: the values of the trainable parameters as they were; none where no work is to change them.
        state: the guard of everything else.
    """

    originals: Originals
    state: StateGuard


def preserving(model: nn.Module, work: Callable[[Kept], _T], loss_fn: Any = None, batches: Any = None) -> _T:
    """Do some work, and keep a model's state: all of it if it fails, all but the parameter values if it succeeds.

    Afterwards, training modes, buffers, frozen parameters, attributes, gradients, ``requires_grad`` flags and the random
    state (torch, NumPy, Python, and generators of the user's own) are as before. If the work ends by an exception, Ctrl-C
    included, the parameter values are, too. One that comes when the work is already done still makes it fail, so that
    changed weights never come without their result.

    Args:
        model: the model.
        work: is given what was kept.
        loss_fn: the user's loss, which may have state as well.
        batches: the user's batches, for the generators that shuffle them.

    Raises:
        RuntimeError: at once, if there is work on the model already: by another thread, or in a callback of which this is.
    """
    keeping = _Keeping(model, loss_fn, batches, weights=True)
    return all_or_nothing(keeping.begin, lambda: work(keeping.kept), keeping.settle)


def unwritten(model: nn.Module, work: Callable[[Kept], _T], loss_fn: Any = None, batches: Any = None) -> _T:
    """Do some work that leaves the parameter values alone, too, and keep a model's state; also within a callback.

    There is no copy of them, which would be the memory of a gradient; only parameters that the model itself writes to in
    its first run (an embedding with ``max_norm`` does) are copied, and put back.
    """
    keeping = _Keeping(model, loss_fn, batches, weights=False)
    return all_or_nothing(keeping.begin, lambda: work(keeping.kept), keeping.settle)


@contextmanager
def preserved(model: nn.Module, loss_fn: Any = None) -> Iterator[Kept]:
    """A block around which a model's state is kept as by :func:`preserving`; signals can break into its very end."""
    keeping = _Keeping(model, loss_fn, None, weights=True)
    succeeded = False
    try:
        keeping.begin()
        yield keeping.kept
        succeeded = True
    finally:
        keeping.settle(succeeded)


def put_values(values: Mapping[nn.Parameter, Tensor]) -> None:
    """Copy values into parameters: into all that take them, also after one has failed to.

    Args:
        values: of parameters; those that are sharded take their own part (:func:`initopt.model.sharded.part_of`).
    """
    with torch.no_grad(), ExitStack() as stack:
        for parameter, value in values.items():
            whole: Any = parameter
            stack.callback((whole if is_sharded(value) or not is_sharded(whole) else whole.to_local()).copy_, value)


@contextmanager
def weights_as(values: Mapping[nn.Parameter, Tensor]) -> Iterator[None]:
    """Other values in parameters, which may be trained meanwhile, until the block ends."""
    present = {parameter: parameter.detach().clone() for parameter in values}
    try:
        put_values(values)
        yield
    finally:
        put_values(present)


def _restore(parameter: nn.Parameter, value: Tensor) -> None:
    """Give a parameter its own values again, and its shape and type, should ``data`` have become another tensor."""
    with torch.no_grad():
        if (parameter.shape, parameter.dtype, parameter.device) == (value.shape, value.dtype, value.device):
            parameter.copy_(value)
        else:
            parameter.data = value


class _Keeping:
    """Everything as it was before some work, and the way back to it."""

    kept: Kept

    def __init__(self, model: nn.Module, loss_fn: Any, batches: Any, weights: bool) -> None:
        self._model, self._loss_fn, self._batches, self._weights = model, loss_fn, batches, weights
        self._stack = ExitStack()
        self._torch = TorchState.now()
        self._structure: StructureGuard | None = None

    def begin(self) -> None:
        """Note everything."""
        model = self._model
        # A callback of its own for each, so that none is left out should another fail.
        put_back = self._stack.callback
        self._stack.enter_context(_Work(model, changing=self._weights))
        self._structure = StructureGuard(model)
        self._stack.enter_context(Eager())
        self._stack.enter_context(torch.inference_mode(False))
        self._stack.enter_context(torch.enable_grad())
        self._stack.enter_context(_fresh_casts())
        put_back(RandomState.now().put_back)
        for generator in Reach.of(self._batches).generators:
            put_back(OwnGenerator(generator).put_back)
        for parameter in model.parameters():
            put_back(_put_back_flags, parameter, parameter.grad, parameter.requires_grad)
            parameter.grad = None  # so that nobody adds to the user's own
        put_back(ModeGuard(model).put_back)
        state = StateGuard(model, self._loss_fn, trainable=not self._weights)
        put_back(state.put_back)
        copied = [p for p in model.parameters() if p.requires_grad and self._weights]
        self.kept = Kept({p: p.detach().clone() for p in copied}, state)

    def settle(self, succeeded: bool) -> None:
        """Put everything back; if the work has not succeeded, also what the user or it may have changed for good."""
        with ExitStack() as stack:
            if not succeeded and hasattr(self, "kept"):
                for parameter, value in self.kept.originals.items():
                    stack.callback(_restore, parameter, value)
            stack.callback(self._stack.close)
            if not succeeded and self._structure is not None:
                stack.callback(self._structure.put_back)
                stack.callback(self._torch.put_back)  # first of all: modes may be on that act on all that follows


def _put_back_flags(parameter: nn.Parameter, gradient: Tensor | None, requires_grad: bool) -> None:
    parameter.grad = gradient
    if parameter.requires_grad != requires_grad:
        parameter.requires_grad_(requires_grad)


@contextmanager
def _fresh_casts() -> Iterator[None]:
    """Autocast without its cache of cast weights, which does not notice that weights are written to."""
    enabled = torch.is_autocast_cache_enabled()
    torch.clear_autocast_cache()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(enabled)
        torch.clear_autocast_cache()


_AT_WORK: list[_Work] = []
_LOCK = threading.Lock()
_INNER = threading.local()


@contextmanager
def inner_work() -> Iterator[None]:
    """A block in which a run may itself call what changes the weights of its model."""
    before = getattr(_INNER, "allowed", False)
    _INNER.allowed = True
    try:
        yield
    finally:
        _INNER.allowed = before


class _Work:
    """A block of work on a model, in which others are kept from it."""

    def __init__(self, model: nn.Module, changing: bool) -> None:
        self._parts = {id(part) for part in (*model.modules(), *model.parameters())}
        self._name = type(model).__name__
        self._changing = changing
        self._thread = threading.get_ident()

    def __enter__(self) -> None:
        with _LOCK:
            for other in _AT_WORK:
                if not self._parts & other._parts:
                    continue
                if other._thread != self._thread:
                    raise RuntimeError(
                        f"the {self._name}, or a part of it, is being measured or optimized in another thread, which sets "
                        "its training modes and weights; wait until that is done, or give each thread a copy of its own "
                        "(copy.deepcopy)"
                    )
                if self._changing and other._changing and not getattr(_INNER, "allowed", False):
                    raise RuntimeError(
                        f"the {self._name} is being optimized, and this call, out of a callback or the loss, would "
                        "change its weights under way; call it when that is done (measure works in a callback)"
                    )
            _AT_WORK.append(self)

    def __exit__(self, *error: object) -> None:
        with _LOCK:
            if self in _AT_WORK:
                _AT_WORK.remove(self)


_DEVICES = ("cpu", "cuda")


@dataclass(frozen=True)
class TorchState:
    """Modes, grad mode, autocast and hooks of the present thread.

    Context managers put these back as a rule. An exception out of a signal handler may come just when one has made its
    change, and is not yet entered; then nothing does.
    """

    function_modes: list[Any]
    dispatch_modes: list[Any]
    grad_enabled: bool
    multithreading: bool
    saved_tensors_hooks: Any
    autocast: tuple[tuple[str, bool, Any], ...]
    autocast_cache: bool
    autocast_nesting: int

    @classmethod
    def now(cls) -> TorchState:
        """The state at this moment."""
        return cls(
            function_modes=function_modes(),
            dispatch_modes=dispatch_modes(),
            grad_enabled=torch.is_grad_enabled(),
            multithreading=is_multithreading_enabled(),
            saved_tensors_hooks=saved_tensors_hooks(),
            autocast=tuple((d, torch.is_autocast_enabled(d), torch.get_autocast_dtype(d)) for d in _DEVICES),
            autocast_cache=torch.is_autocast_cache_enabled(),
            autocast_nesting=autocast_nesting(),
        )

    def put_back(self) -> None:
        """Put the state back where it has changed."""
        with ExitStack() as stack:  # so that none is left out should another fail; the last one is done first
            stack.callback(self._put_back_autocast)
            stack.callback(self._put_back_saved_tensors_hooks)
            stack.callback(torch.autograd.set_multithreading_enabled, self.multithreading)  # at once, not when entered
            stack.callback(torch.set_grad_enabled, self.grad_enabled)
            if not _same(dispatch_modes(), self.dispatch_modes):
                stack.callback(set_dispatch_modes, self.dispatch_modes)
            if not _same(function_modes(), self.function_modes):
                stack.callback(set_function_modes, self.function_modes)

    def _put_back_saved_tensors_hooks(self) -> None:
        while (hooks := saved_tensors_hooks()) is not None and hooks != self.saved_tensors_hooks:
            pop_saved_tensors_hooks()

    def _put_back_autocast(self) -> None:
        for device, enabled, dtype in self.autocast:
            torch.set_autocast_enabled(device, enabled)
            torch.set_autocast_dtype(device, dtype)
        torch.set_autocast_cache_enabled(self.autocast_cache)
        while autocast_nesting() > self.autocast_nesting:
            torch.autocast_decrement_nesting()
        while autocast_nesting() < self.autocast_nesting:
            torch.autocast_increment_nesting()


def _same(left: list[Any], right: list[Any]) -> bool:
    return len(left) == len(right) and all(a is b for a, b in zip(left, right, strict=True))
