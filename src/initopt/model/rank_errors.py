"""Errors of other processes, in words."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from initopt._support import errors
from initopt._support.errors import RankError

__all__ = ["chain", "heard", "in_words", "retold"]

_KINDS: dict[str, type[BaseException]] = {
    name: getattr(errors, name) for name in errors.__all__ if isinstance(getattr(errors, name), type)
} | {kind.__name__: kind for kind in (ValueError, TypeError, MemoryError, torch.OutOfMemoryError)}
"""Errors that are raised in their own kind on the other ranks, too."""


def in_words(error: BaseException) -> tuple[str, str]:
    """The name of its class, and what it says."""
    notes = " ".join(getattr(error, "__notes__", []))
    return type(error).__name__, f"{error} {notes}".strip()


def retold(number: int, words: tuple[str, str]) -> BaseException:
    """An error of another rank, in its own kind where that is initopt's or one for memory."""
    name, text = words
    if name in _KINDS:
        return _KINDS[name](f"on rank {number}: {text}")
    return RankError(f"on rank {number}: {name}: {text}".removesuffix(": "))


def heard(number: int, words: tuple[str, str]) -> BaseException:
    """What ranks that are well raise for an error that ends the work of another one."""
    name, text = words
    shown = f"on rank {number}: {name}: {text}".removesuffix(": ")
    # What nothing on that rank has caught, nothing is to catch on this one.
    return KeyboardInterrupt(shown) if name in _ENDS else RankError(shown)


_ENDS = ("KeyboardInterrupt", "SystemExit", "Terminated", "GeneratorExit")


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """An exception, and those that it was raised from or under."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__
