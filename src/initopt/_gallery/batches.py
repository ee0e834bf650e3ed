"""Batches of a dozen samples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

SIZE = 12


def vectors(features: int = 6, classes: int = 4, size: int = SIZE) -> Callable[[], Any]:
    return lambda: (torch.randn(size, features), torch.randint(classes, (size,)))


def images(channels: int = 2, side: int = 5, classes: int = 4) -> Callable[[], Any]:
    return lambda: (torch.randn(SIZE, channels, side, side), torch.randint(classes, (SIZE,)))


def signals(channels: int = 2, length: int = 7, classes: int = 4) -> Callable[[], Any]:
    return lambda: (torch.randn(SIZE, channels, length), torch.randint(classes, (SIZE,)))


def sequences(length: int = 5, features: int = 4, classes: int = 3) -> Callable[[], Any]:
    return lambda: (torch.randn(SIZE, length, features), torch.randint(classes, (SIZE,)))


def tokens(vocabulary: int = 9, length: int = 5, classes: int = 4) -> Callable[[], Any]:
    return lambda: (torch.randint(vocabulary, (SIZE, length)), torch.randint(classes, (SIZE,)))


def text(vocabulary: int = 9, length: int = 5) -> Callable[[], Any]:
    return lambda: (torch.randint(vocabulary, (SIZE, length)), torch.randint(vocabulary, (SIZE, length)))


def regression(features: int = 6, targets: int = 2) -> Callable[[], Any]:
    return lambda: (torch.randn(SIZE, features), torch.randn(SIZE, targets))
