"""What a model, its loss and all that they reach keep from one pass for the next, and the means to put it back."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from initopt._support._torch_private import (
    BATCH_NORMS,
    INSTANCE_NORMS,
    DispatchMode,
    buffers_of,
    parameters_of,
    set_transient_buffers,
    tell_recurrent,
    transient_buffers,
    version_of,
)
from initopt._support.interrupts import safe_point
from initopt._support.words import first_few
from initopt.model.randomness import OwnGenerator
from initopt.model.reach import MANY, MODULE_OWN, Reach, is_container
from initopt.model.sharded import own_class

__all__ = ["StateGuard"]


class StateGuard:
    """The state beside the parameters that train: as it was, and the means to put it back.

    A forward pass may write into buffers (running statistics, counters), frozen parameters (a moving average) and
    attributes (a hidden state, a queue, a metric), and draw from a generator of the user's own. Put back before every pass,
    each pass sees the same model; put back at the end, the user does.

    Buffers are copied. Other tensors can be large (a frozen backbone, a data set in memory), so a copy is made only when
    one is about to be written to, in the first pass.

    Args:
        model: the model.
        loss_fn: what else the passes run; what it reaches is guarded, too.
        trainable: whether parameters that train are to be put back at the end, as well.
    """

    def __init__(self, model: nn.Module, loss_fn: Any = None, trainable: bool = False) -> None:
        reach = Reach.of(model, loss_fn)
        self._buffers = _Buffers(reach.modules)
        self._attributes = _Attributes(reach)
        self._generators = [OwnGenerator(generator) for generator in reach.generators]
        own = {parameter: f"parameter {name!r}" for name, parameter in model.named_parameters()}
        others = {p: None for m in reach.modules for p in parameters_of(m).values() if p is not None and p not in own}
        self._trained = {p for p in own if p.requires_grad}
        self._moving = [_Watched(p, name) for p, name in own.items() if p.requires_grad] if trainable else []
        self._parameters = [
            *(_Watched(p, name) for p, name in own.items() if not p.requires_grad),
            *(_Watched(p, "a parameter that the loss function reaches") for p in others),
        ]
        self._watched = [
            *self._parameters,
            *(_Watched(t, f"a tensor of shape {tuple(t.shape)} that the model or the loss keeps") for t in reach.tensors),
        ]
        self._writes = _Writes([*self._watched, *self._moving])
        self._has_run = False
        self._modules = reach.modules
        self._stand_ins: _StandIns | None = None

    @contextmanager
    def running(self) -> Iterator[None]:
        """A block in which the model and the loss run once."""
        safe_point()
        self.refresh()
        if self._has_run:
            yield
            return
        with self._writes:
            yield
        self._has_run = self._stand_ins is None  # else nothing has been written to what they stand for

    @contextmanager
    def recording(self) -> Iterator[None]:
        """A block in which everything is looked at as in the first pass: a backward pass may write, too."""
        with self._writes:
            yield

    @contextmanager
    def stand_ins(self, dtype: torch.dtype | None = None) -> Iterator[Mapping[Tensor, nn.Parameter]]:
        """A block in which other leaves stand for parameters, so that no hook on these fires and none has a gradient.

        Args:
            dtype: of copies of all floating-point parameters and buffers, those that the loss reaches included, which may
                be written to. By default, the leaves are in the memory of the parameters of the model that train.

        Yields:
            the leaf that stands for each parameter.
        """
        self._stand_ins = _StandIns(self._modules, dtype, self._trained)
        try:
            yield self._stand_ins.leaves
        finally:
            standing, self._stand_ins = self._stand_ins, None
            standing.remove()
            self.refresh()

    def refresh(self) -> None:
        """Put everything back before a forward pass.

        Autocast's casts of weights are forgotten: it does not notice that weights are written to.
        """
        torch.clear_autocast_cache()
        self._buffers.refresh()
        self._attributes.put_back()
        for watched in (*self._parameters, *self._writes.written):  # of all others, there may be very many
            if watched.tensor not in self._trained:
                watched.put_back()
        if self._stand_ins is not None:
            self._stand_ins.install()
        seed = torch.default_generator.initial_seed()
        for number, generator in enumerate(self._generators):
            generator.seed(seed, number)

    def put_back(self) -> None:
        """Put everything back for good; whatever can be put back is, also after a part of it has failed.

        Raises:
            RuntimeError: if something was written to, and not yet in the first pass, which cannot be undone.
        """
        with ExitStack() as stack:
            stack.callback(self._refuse_late_writes)
            for watched in (*self._watched, *self._moving):
                stack.callback(watched.put_back)
            for generator in self._generators:
                stack.callback(generator.put_back)
            stack.callback(self._attributes.put_back)
            stack.callback(self._buffers.put_back)

    def _refuse_late_writes(self) -> None:
        late = [watched.name for watched in (*self._watched, *self._moving) if watched.is_lost()]
        if late:
            raise RuntimeError(
                f"the model's forward pass wrote to {first_few(late)}, and not yet in its first run; its value "
                "is now another one"
            )


class _StandIns:
    """Leaves for the parameters that train, in the same memory; or copies of all parameters and buffers, in a precision."""

    def __init__(self, modules: list[nn.Module], dtype: torch.dtype | None, trained: set[nn.Parameter]) -> None:
        self._dtype = dtype
        self._modules = modules
        self._trained = trained
        self._own = [(module, dict(parameters_of(module))) for module in modules]
        self.leaves: dict[Tensor, nn.Parameter] = {}
        for parameter in {p: None for _, named in self._own for p in named.values() if p is not None}:
            if type(parameter) is nn.Parameter and (parameter in trained or (dtype and parameter.is_floating_point())):
                self.leaves[parameter] = nn.Parameter(self._other(parameter), parameter.requires_grad)

    def _other(self, tensor: Tensor) -> Tensor:
        if self._dtype is None:
            return tensor.detach()
        wanted = self._dtype if tensor.is_floating_point() else tensor.dtype
        return tensor.detach().to(wanted, copy=True)

    def install(self) -> None:
        """Put the leaves in the place of the parameters; all but those of the model that train get their first values."""
        with torch.no_grad():
            for parameter, leaf in self.leaves.items():
                if parameter not in self._trained:
                    leaf.copy_(parameter)
        for module, own in self._own:
            for name, held in own.items():
                if held is not None and held in self.leaves:
                    parameters_of(module)[name] = self.leaves[held]
            buffers = buffers_of(module)
            for name, buffer in buffers.items() if self._dtype is not None else ():
                if buffer is not None:
                    buffers[name] = self._other(buffer)
        self._tell_recurrent()

    def remove(self) -> None:
        for module, own in self._own:
            parameters_of(module).update(own)
        self._tell_recurrent()

    def _tell_recurrent(self) -> None:
        """Recurrent layers have a list of their parameters, too."""
        for module in self._modules:
            if isinstance(module, nn.RNNBase):
                tell_recurrent(module)


class _Watched:
    """A tensor that is copied when it is about to be written to."""

    def __init__(self, tensor: Tensor, name: str) -> None:
        self.tensor, self.name = tensor, name
        self.copy: Tensor | None = None
        self._home = tensor.detach()  # where its values are, should ``.data`` be another tensor by then
        self._version = version_of(tensor)

    def keep(self) -> None:
        """Copy the values, which are about to be written over."""
        self.copy = self._home.clone()

    def put_back(self) -> None:
        tensor, home = self.tensor, self._home
        with torch.no_grad():
            if not _same_memory(tensor, home):
                tensor.data = home
            if self.copy is not None:
                home.copy_(self.copy)

    def is_lost(self) -> bool:
        return self.copy is None and version_of(self.tensor) != self._version


class _Writes(DispatchMode):
    """A block in which tensors are copied before anything is written into their memory."""

    def __init__(self, watched: list[_Watched]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.written: list[_Watched] = []
        self._by_memory: dict[int, list[_Watched]] = {}
        for each in watched:
            place = _memory(each._home)
            if place is not None:
                self._by_memory.setdefault(place, []).append(each)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        schema = getattr(func, "_schema", None)
        if schema is not None and schema.is_mutable:
            for number, argument in enumerate(schema.arguments):
                if argument.alias_info is not None and argument.alias_info.is_write:
                    self._keep(args[number] if number < len(args) else kwargs.get(argument.name))
        return func(*args, **kwargs)

    def _keep(self, value: Any) -> None:
        for tensor in value if isinstance(value, (list, tuple)) else [value]:
            for watched in self._by_memory.get(_memory(tensor) or 0, ()) if isinstance(tensor, Tensor) else ():
                if watched.copy is None:
                    watched.keep()
                    self.written.append(watched)


class _Buffers:
    """The buffers of modules."""

    def __init__(self, modules: list[nn.Module]) -> None:
        self._named = [(module, dict(buffers_of(module))) for module in modules]
        self._transient = [(module, transient_buffers(module)) for module in modules]
        self._values = {
            buffer: buffer.detach().clone() for _, named in self._named for buffer in named.values() if buffer is not None
        }
        self._homes = {buffer: buffer.detach() for buffer in self._values}
        # What a module holds in the place of a buffer that was written to, and the version of all as they were put there.
        self._present = {buffer: buffer for buffer in self._values}
        self._versions = {buffer: version_of(buffer) for buffer in self._values}

    def refresh(self) -> None:
        """Give the modules their buffers with the first values.

        A buffer that was written to is left to the graph that may still need it, and a copy put in its place.
        """
        for buffer, present in self._present.items():
            if version_of(present) != self._versions[buffer]:
                fresh = self._values[buffer].clone()
                self._present[buffer], self._versions[buffer] = fresh, version_of(fresh)
        self._install(self._present)

    def put_back(self) -> None:
        """Give the modules their own buffers again, with the first values."""
        with ExitStack() as stack:
            for module, names in self._transient:
                stack.callback(set_transient_buffers, module, names)
            stack.callback(self._install, {buffer: buffer for buffer in self._values})
            for buffer, value in self._values.items():
                stack.callback(self._put_back, buffer, value)

    def _put_back(self, buffer: Tensor, value: Tensor) -> None:
        if not _same_memory(buffer, self._homes[buffer]):
            buffer.data = self._homes[buffer]
        if not _overlaps_itself(buffer):  # nothing can have been written to one that does
            with torch.no_grad():
                buffer.copy_(value)  # all others: a few kernels write past the version counter

    def _install(self, present: dict[Tensor, Tensor]) -> None:
        for module, named in self._named:
            now = buffers_of(module)
            wanted = {name: None if buffer is None else present[buffer] for name, buffer in named.items()}
            if len(now) != len(wanted) or any(now.get(name) is not buffer for name, buffer in wanted.items()):
                now.clear()
                now.update(wanted)


_WHILE_MEASURING = {BATCH_NORMS: "track_running_stats", INSTANCE_NORMS: "momentum"}
"""Attributes that :func:`initopt.model.modes.measuring` sets and puts back itself."""


class _Attributes:
    """The attributes of modules, and of objects that modules or the loss keep, with the contents of containers.

    Of other objects than modules, and of PyTorch's own modules, only what holds tensors is put back: what else they do is
    their own business. Wrappers that distribute a model keep books of their passes, and are left alone.
    """

    def __init__(self, reach: Reach) -> None:
        self._owners = [_Owner(vars(thing), frozenset(), whole=False) for thing in reach.objects]
        for module in reach.modules:
            package = own_class(module).__module__
            if package.startswith("torch.distributed"):
                continue
            left = {name for kind, name in _WHILE_MEASURING.items() if isinstance(module, kind)}
            self._owners.append(_Owner(vars(module), MODULE_OWN | left, whole=not package.startswith("torch.")))
        self._contents: list[tuple[Any, Any, bool]] = []
        seen: set[int] = set()
        for owner in self._owners:
            for value in owner.before.values():
                self._enter(value, owner.whole, seen)

    def _enter(self, value: Any, whole: bool, seen: set[int]) -> None:
        if is_container(value):
            if id(value) in seen or len(value) > MANY:
                return
            seen.add(id(value))
            self._contents.append((value, value.copy(), whole))
        elif not isinstance(value, tuple):
            return
        for item in value.values() if isinstance(value, dict) else value:
            self._enter(item, whole, seen)

    def put_back(self) -> None:
        for owner in self._owners:
            owner.put_back()
        for container, before, whole in self._contents:
            if _differ(container, before) and (whole or _holds_tensor(container) or _holds_tensor(before)):
                container.clear()
                (container.extend if isinstance(container, (list, deque)) else container.update)(before)


class _Owner:
    """Something with attributes."""

    def __init__(self, now: dict[str, Any], left: frozenset[str], whole: bool) -> None:
        self.before = {name: value for name, value in now.items() if name not in left}
        self.whole = whole
        self._now, self._left, self._count = now, left, len(now)

    def put_back(self) -> None:
        now, before = self._now, self.before
        if len(now) == self._count and all(now.get(name) is value for name, value in before.items()):
            return
        changed = {name for name, value in before.items() if name not in now or now[name] is not value}
        for name in changed | {name for name in now if name not in before and name not in self._left}:
            if not self.whole and not _holds_tensor(now.get(name)) and not _holds_tensor(before.get(name)):
                continue
            if name in before:
                now[name] = before[name]
            else:
                del now[name]


def _holds_tensor(value: Any) -> bool:
    if isinstance(value, (list, tuple, set, deque, Mapping)) and len(value) <= MANY:
        return any(isinstance(item, Tensor) for item in (value.values() if isinstance(value, Mapping) else value))
    return isinstance(value, Tensor)


def _differ(now: Any, before: Any) -> bool:
    if len(now) != len(before):
        return True
    if isinstance(now, dict):
        return any(now.get(key, _NOTHING) is not value for key, value in before.items())
    if isinstance(now, set):
        return bool(now != before)
    return any(a is not b for a, b in zip(now, before, strict=True))


_NOTHING = object()


def _memory(tensor: Tensor) -> int | None:
    """Where a tensor has its values, if that is a place in memory; views of one have the same."""
    try:
        return tensor.untyped_storage().data_ptr() or None
    except (NotImplementedError, RuntimeError):  # sparse, say
        return None


def _same_memory(left: Tensor, right: Tensor) -> bool:
    try:
        same = left.data_ptr() == right.data_ptr() and left.stride() == right.stride()
    except (NotImplementedError, RuntimeError):  # sparse, say
        return True
    return same and left.shape == right.shape and left.dtype == right.dtype and left.device == right.device


def _overlaps_itself(tensor: Tensor) -> bool:
    return any(size > 1 and stride == 0 for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
