"""What PyTorch keeps for a thread and a run may change: by value, so that it can be put back from anywhere."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch

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

__all__ = ["TorchState"]

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
        """Make this the state again, as far as it is not."""
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
