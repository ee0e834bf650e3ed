"""Put a model into the mode in which it is measured, and back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from initopt.caches import CacheGuard
from initopt.plain_ops import plain_hard_sigmoid, plain_recurrence, plain_weight_norm

__all__ = ["BufferGuard", "has_batch_statistics", "measuring"]


@contextmanager
def measuring(model: nn.Module, train_mode: bool = False) -> Iterator[None]:
    """Batch norm on batch statistics without touching the running ones, and no noise, until the block ends.

    The model is in evaluation mode, which switches dropout and stochastic depth off, except for its batch and instance
    norms: these normalize as in training. Norms that the user froze, by putting them into evaluation mode inside a model
    that is in training mode, stay frozen.

    Args:
        model: the model; its modules' flags are as before when the block ends, however it ends.
        train_mode: leave the model wholly in training mode instead, dropout and training-only outputs included.
    """
    flags = [(module, module.training) for module in model.modules()]
    norms: list[tuple[nn.Module, str, object]] = []
    was_training = model.training
    try:
        if train_mode and not was_training:
            model.train()
        for module, training in flags:
            if not isinstance(module, (_BatchNorm, _InstanceNorm)):
                if not train_mode:
                    module.training = False
                continue
            if was_training and not training:
                continue  # frozen by the user
            module.training = True
            # A batch norm in training mode that tracks nothing ignores its running statistics. An instance norm
            # updates them all the same, but at momentum 0 to what they were.
            setting = "track_running_stats" if isinstance(module, _BatchNorm) else "momentum"
            norms.append((module, setting, getattr(module, setting)))
            setattr(module, setting, False if isinstance(module, _BatchNorm) else 0.0)
        with _differentiable(model):
            yield
    finally:
        for module, setting, value in norms:
            setattr(module, setting, value)
        for module, training in flags:
            module.training = training


@contextmanager
def _differentiable(model: nn.Module) -> Iterator[None]:
    """Operations of the model that lack a second derivative by others."""
    with ExitStack() as stack:
        stack.enter_context(plain_hard_sigmoid())
        stack.enter_context(plain_weight_norm())
        if any(isinstance(module, nn.RNNBase) for module in model.modules()):
            stack.enter_context(plain_recurrence())
        yield


def has_batch_statistics(model: nn.Module) -> bool:
    """Whether a model, in the mode that its user put it into, has batch norms that :func:`measuring` does not freeze."""
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    return any(norm.training or not model.training for norm in norms)


class BufferGuard:
    """The buffers of a model as they were, and the means to put them back.

    A forward pass may write into buffers (running statistics, counters, a power iteration's vector). Put back before
    every pass, each pass sees the same model; put back at the end, the user does.
    """

    def __init__(self, model: nn.Module) -> None:
        self._buffers = [(module, dict(module._buffers)) for module in model.modules()]
        self._transient = [(module, set(module._non_persistent_buffers_set)) for module in model.modules()]
        self._values = {
            buffer: buffer.detach().clone() for _, named in self._buffers for buffer in named.values() if buffer is not None
        }
        # What a module holds in the place of a buffer that was written to, and the version of all as they were put there.
        self._present = {buffer: buffer for buffer in self._values}
        self._versions = {buffer: buffer._version for buffer in self._values}
        self._caches = CacheGuard(model)

    def refresh(self) -> None:
        """Give the modules their buffers with the first values, before a forward pass.

        A buffer that was written to is left to the graph that may still need it, and a copy put in its place.
        """
        for buffer, present in self._present.items():
            if present._version != self._versions[buffer]:
                fresh = self._values[buffer].clone()
                self._present[buffer], self._versions[buffer] = fresh, fresh._version
        self._install(self._present)
        self._caches.put_back()

    def put_back(self) -> None:
        """Give the modules their own buffers again, with the first values."""
        with torch.no_grad():
            for buffer, value in self._values.items():
                if not _overlaps_itself(buffer):  # nothing can have been written to one that does
                    buffer.copy_(value)  # all others: a few kernels write past the version counter
        self._install({buffer: buffer for buffer in self._values})
        self._caches.put_back()
        for module, names in self._transient:
            module._non_persistent_buffers_set = names

    def _install(self, present: dict[Tensor, Tensor]) -> None:
        for module, named in self._buffers:
            now = module._buffers
            wanted = {name: None if buffer is None else present[buffer] for name, buffer in named.items()}
            if len(now) != len(wanted) or any(now.get(name) is not buffer for name, buffer in wanted.items()):
                now.clear()
                now.update(wanted)


def _overlaps_itself(tensor: Tensor) -> bool:
    return any(size > 1 and stride == 0 for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
