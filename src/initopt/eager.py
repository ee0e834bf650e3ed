"""Compiled models, and functions that they call, without their compiled code."""

from __future__ import annotations

import sys
import threading
from typing import Any

import torch

__all__ = ["Eager"]

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
        if "torch._dynamo" not in sys.modules or not hasattr(torch.compiler, "set_stance"):
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
