"""What PyTorch keeps for a thread and a run may change: by value, so that it can be put back from anywhere."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import overrides
from torch.utils import _python_dispatch

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
            function_modes=_function_modes(),
            dispatch_modes=_python_dispatch._get_current_dispatch_mode_stack(),
            grad_enabled=torch.is_grad_enabled(),
            multithreading=torch._C._is_multithreading_enabled(),
            saved_tensors_hooks=_saved_tensors_hooks(),
            autocast=tuple((d, torch.is_autocast_enabled(d), torch.get_autocast_dtype(d)) for d in _DEVICES),
            autocast_cache=torch.is_autocast_cache_enabled(),
            autocast_nesting=_autocast_nesting(),
        )

    def put_back(self) -> None:
        """Make this the state again, as far as it is not."""
        with ExitStack() as stack:  # so that none is left out should another fail; the last one is done first
            stack.callback(self._put_back_autocast)
            stack.callback(self._put_back_saved_tensors_hooks)
            stack.callback(torch._C._set_multithreading_enabled, self.multithreading)
            stack.callback(torch._C._set_grad_enabled, self.grad_enabled)
            stack.callback(self._put_back_dispatch_modes)
            stack.callback(self._put_back_function_modes)

    def _put_back_function_modes(self) -> None:
        if not _same(_function_modes(), self.function_modes):
            while _function_modes():
                overrides._pop_mode()  # type: ignore[no-untyped-call]
            for mode in self.function_modes:
                overrides._push_mode(mode)  # type: ignore[no-untyped-call]

    def _put_back_dispatch_modes(self) -> None:
        if not _same(_python_dispatch._get_current_dispatch_mode_stack(), self.dispatch_modes):
            while _python_dispatch._get_current_dispatch_mode_stack():
                _python_dispatch._pop_mode()
            for mode in self.dispatch_modes:
                _python_dispatch._push_mode(mode)

    def _put_back_saved_tensors_hooks(self) -> None:
        while (hooks := _saved_tensors_hooks()) is not None and hooks != self.saved_tensors_hooks:
            torch._C._autograd._pop_saved_tensors_default_hooks()

    def _put_back_autocast(self) -> None:
        for device, enabled, dtype in self.autocast:
            torch.set_autocast_enabled(device, enabled)
            torch.set_autocast_dtype(device, dtype)
        torch.set_autocast_cache_enabled(self.autocast_cache)
        while _autocast_nesting() > self.autocast_nesting:
            torch.autocast_decrement_nesting()
        while _autocast_nesting() < self.autocast_nesting:
            torch.autocast_increment_nesting()


def _function_modes() -> list[Any]:
    return list(overrides._get_current_function_mode_stack())  # type: ignore[no-untyped-call]


def _same(left: list[Any], right: list[Any]) -> bool:
    return len(left) == len(right) and all(a is b for a, b in zip(left, right, strict=True))


def _saved_tensors_hooks() -> Any:
    return torch._C._autograd._top_saved_tensors_default_hooks(True)


def _autocast_nesting() -> int:
    torch.autocast_increment_nesting()
    return int(torch.autocast_decrement_nesting())
