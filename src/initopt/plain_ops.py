"""Operations whose kernel has no second derivative, by others that have one."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["plain_hard_sigmoid"]

_lock = threading.Lock()
_users = 0
_kernels: dict[str, Any] = {}


def _hard_sigmoid(x: Tensor) -> Tensor:
    return F.relu6(x + 3) / 6


def _hard_sigmoid_(x: Tensor) -> Tensor:
    return x.copy_(_hard_sigmoid(x))


@contextmanager
def plain_hard_sigmoid() -> Iterator[None]:
    """``F.hardsigmoid`` by plain operations, for as long as any thread is in such a block.

    Mobile networks are full of it, and torch (2.15) has no second derivative of its kernel.
    """
    global _users
    with _lock:
        if _users == 0:
            for name, plain in (("hardsigmoid", _hard_sigmoid), ("hardsigmoid_", _hard_sigmoid_)):
                _kernels[name] = getattr(torch._C._nn, name)
                setattr(torch._C._nn, name, plain)
        _users += 1
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if _users == 0:
                for name, kernel in _kernels.items():
                    setattr(torch._C._nn, name, kernel)
