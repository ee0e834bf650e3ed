"""Files of unknown origin, read within bounds: nothing in them makes a reader hang, or take all memory."""

from __future__ import annotations

import dataclasses
import json
import os
import stat
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Literal, NotRequired, TypeVar, Union, get_args, get_origin, get_type_hints, is_typeddict

__all__ = ["bounded_json", "of_form", "opened", "printable", "read_bytes", "read_json", "read_text"]

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
    """A file opened to be read, and its size in bytes.

    Raises:
        OSError: if it cannot be read.
        ValueError: if it is not an ordinary file (a pipe, which may never end, or a device); the message names it.
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
    """Read all bytes of a file, from one opening.

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
    """Read the text of a file in UTF-8.

    Raises:
        OSError, ValueError: as :func:`read_bytes`; UnicodeDecodeError, which is a ValueError, if it is not in UTF-8.
    """
    return read_bytes(path, most).decode("utf-8")


def read_json(path: Path) -> Any:
    """Read a JSON file.

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
    """The value of a JSON text, with strings that can be written in UTF-8.

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


_T = TypeVar("_T")

_NOT_FINITE = ("inf", "-inf", "nan")
_LARGEST = 2**128
"""The bound of integers: beyond any seed, and within the floating-point numbers."""

_WORDS = {
    bool: "true or false",
    int: "an integer",
    float: "a number",
    str: "a string",
    type(None): "null",
    dict: "an object",
    list: "a list",
    tuple: "a list",
}


def of_form(form: type[_T], value: Any, name: str = "") -> _T:
    """A value from JSON as what a type hint says, all the way down.

    Lists become tuples, objects dataclasses, and the strings ``"inf"``, ``"-inf"`` and ``"nan"`` numbers, where the hint is
    of these.

    Args:
        form: ``Any``, ``None``, ``bool``, ``int``, ``float``, ``str``, a literal, a union, ``dict[str, ...]``,
            ``list[...]``, ``tuple[..., ...]``, a dataclass, or a ``TypedDict``, which leaves out what it does not name.
        value: of JSON.
        name: what the value is called in a message.

    Raises:
        ValueError: if it is something else; the message says what, and where in it.

    >>> of_form(dict[str, float], {"a": 1, "b": "inf"})
    {'a': 1.0, 'b': inf}
    >>> of_form(dict[str, float], {"a": True}, "scales")
    Traceback (most recent call last):
    ValueError: scales.a must be a number; got True
    """
    made: _T = _made(form, value, name)
    return made


def _made(form: Any, value: Any, name: str) -> Any:
    origin, arguments = get_origin(form) or form, get_args(form)
    if form is Any:
        return value
    if origin in (Union, types.UnionType):
        return _one_of(arguments, value, name)
    if dataclasses.is_dataclass(form) and isinstance(form, type):
        absent = dataclasses.MISSING
        needed = {f.name for f in dataclasses.fields(form) if f.default is absent and f.default_factory is absent}
        return form(**_members(form, value, name, needed))
    if is_typeddict(form):
        # Where annotations are strings, __required_keys__ has also those that are not.
        hints = get_type_hints(form, include_extras=True)
        needed = {key for key in form.__required_keys__ if get_origin(hints[key]) is not NotRequired}
        return _members(form, value, name, needed)
    if origin is dict and type(value) is dict:
        return {key: _made(arguments[1], item, _below(name, key)) for key, item in value.items()}
    if origin in (list, tuple) and type(value) is list:
        return origin(_made(arguments[0], item, f"{name}[{index}]") for index, item in enumerate(value))
    if form is float and value in _NOT_FINITE:
        return float(value)
    if origin is Literal and type(value) is str and value in arguments:
        return value
    fits: dict[Any, Any] = {bool: bool, int: int, float: (int, float), str: str, None: type(None), type(None): type(None)}
    whole = type(value) is not int or -_LARGEST <= value < _LARGEST
    if not whole or origin not in fits or not isinstance(value, fits[origin]) or isinstance(value, bool) != (form is bool):
        raise ValueError(f"{name or 'the value'} must be {_in_words(form)}; got {_short(value)}")
    return float(value) if form is float else value


def _members(form: Any, value: Any, name: str, needed: Any) -> dict[str, Any]:
    if type(value) is not dict:
        raise ValueError(f"{name or 'the value'} must be an object; got {_short(value)}")
    hints = get_type_hints(form)
    missing = sorted(needed - value.keys())
    if missing:
        raise ValueError(f"{name + ' has' if name else 'it has'} no {', '.join(map(repr, missing))}")
    unknown = sorted(value.keys() - hints.keys())
    if unknown and not is_typeddict(form):
        raise ValueError(f"{name + ' has' if name else 'it has'} an unknown {unknown[0]!r}")
    return {key: _made(hint, value[key], _below(name, key)) for key, hint in hints.items() if key in value}


def _one_of(forms: tuple[Any, ...], value: Any, name: str) -> Any:
    errors = []
    for form in forms:
        try:
            return _made(form, value, name)
        except ValueError as error:
            errors.append(error)
    kinds = [form for form in forms if form is not type(None)]
    if len(kinds) == 1:  # a type or null: what is wrong with the type
        raise errors[forms.index(kinds[0])]
    raise ValueError(f"{name or 'the value'} must be {' or '.join(map(_in_words, forms))}; got {_short(value)}")


def _in_words(form: Any) -> str:
    if get_origin(form) is Literal:
        return f"one of {', '.join(map(repr, get_args(form)))}"
    return _WORDS.get(get_origin(form) or form, "an object")


def _below(name: str, key: str) -> str:
    return f"{name}.{key}" if name else key


def _short(value: Any) -> str:
    text = repr(value) if not isinstance(value, int) or abs(value) < _LARGEST else "a larger one"
    return text if len(text) <= 60 else f"{text[:57]}..."
