"""Files of unknown origin, read within bounds: nothing in them makes a reader hang, or take all memory."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

__all__ = ["bounded_json", "opened", "printable", "read_bytes", "read_json", "read_text"]

_MOST = 64 * 2**20
"""The most bytes of a file that is not of tensors: records of 100,000 steps have half of that."""

_DEEPEST = 100

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


@contextmanager
def opened(path: Path) -> Iterator[tuple[BinaryIO, int]]:
    """A file to read, and its size in bytes.

    Raises:
        OSError: if it cannot be read.
        ValueError: if it is no ordinary file (a pipe, which may never end, or a device); the message names it.
    """
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        found = os.fstat(handle)
        kind = stat.S_IFMT(found.st_mode)
        if kind != stat.S_IFREG:
            raise ValueError(f"{path} is {_KINDS.get(kind, 'something else')} and not a file")
        with os.fdopen(handle, "rb", closefd=False) as file:
            yield file, found.st_size
    finally:
        os.close(handle)


def read_bytes(path: Path, most: int = _MOST) -> bytes:
    """What a file holds, all of it from one opening.

    Args:
        path: of the file.
        most: bytes that it may have.

    Raises:
        OSError, ValueError: as :func:`opened`; ValueError also if it is too large.
    """
    with opened(path) as (file, _):
        content = file.read(most + 1)
    if len(content) > most:
        raise ValueError(f"{path} has more than {most:,} bytes, the most that such a file may have")
    return content


def read_text(path: Path, most: int = _MOST) -> str:
    """What a file in UTF-8 holds.

    Raises:
        OSError, ValueError: as :func:`read_bytes`; UnicodeDecodeError, which is a ValueError, if it is in no UTF-8.
    """
    return read_bytes(path, most).decode("utf-8")


def read_json(path: Path) -> Any:
    """Read JSON.

    Raises:
        OSError: if the file is there and cannot be read.
        ValueError: if it is not there, or not JSON within bounds; the message names it.
    """
    try:
        content = read_bytes(path)
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(f"{path} does not exist") from None
    try:
        return bounded_json(content.decode("utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is truncated or not JSON ({error})") from None


def bounded_json(text: str) -> Any:
    """What a string of JSON says, with strings that can be written in UTF-8.

    Raises:
        ValueError: if it is none, or nested too deeply.
    """
    try:
        return _bounded(json.loads(text), _DEEPEST)
    except RecursionError:
        raise ValueError(f"it is nested more than {_DEEPEST} deep") from None


def _bounded(value: Any, deepest: int) -> Any:
    """The value, without halves of characters in its strings; a RecursionError if it is too deep."""
    if isinstance(value, str):
        return printable(value)
    if not isinstance(value, (dict, list)):
        return value
    if not deepest:
        raise RecursionError
    if isinstance(value, dict):
        return {printable(key): _bounded(item, deepest - 1) for key, item in value.items()}
    return [_bounded(item, deepest - 1) for item in value]


def printable(text: str) -> str:
    r"""A string that can be written in UTF-8: what Python has for a byte that is in none, it shows as ``\udce9``.

    >>> printable("caf\udce9")
    'caf\\udce9'
    """
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode("utf-8")
