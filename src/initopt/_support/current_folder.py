"""The current folder as a place to import from, where the user names code of his own in it."""

from __future__ import annotations

import importlib.util
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from importlib.machinery import PathFinder
from typing import Any

__all__ = ["hidden_by", "leave_current_folder", "search_for_own_code"]

_PATH = re.compile(r"(?<![\w./-])([^\W\d]\w*)\.[^\W\d]")


def leave_current_folder() -> None:
    """Take the current folder off the front of the path, where ``python -m`` puts it, unless initopt itself is from there.

    A folder that somebody else has made must not bring modules because one stands in it.
    """
    here, source = os.getcwd(), os.path.join(os.path.dirname(__file__), "..", "..")
    if sys.path and sys.path[0] in ("", here) and not os.path.samefile(here, source):
        del sys.path[0]


def search_for_own_code(values: Iterable[Any]) -> None:
    """Have Python search the current folder, after all other places, if a module there is named, and nowhere else found.

    Args:
        values: of the options, nested as YAML has them; what has the form ``module.name`` may name a module.
    """
    here = os.getcwd()
    names = {found[1] for text in _texts(values) for found in _PATH.finditer(text)}
    if here not in sys.path and any(not _is_found(name) and PathFinder.find_spec(name, [here]) for name in names):
        sys.path.append(here)


def hidden_by(name: str, found: Any) -> str:
    """A hint that a module of the current folder is not the one that was found, or nothing."""
    spec = PathFinder.find_spec(name, [os.getcwd()])
    file, other = getattr(found, "__file__", None), spec and spec.origin
    if not file or not other or os.path.realpath(file) == os.path.realpath(other):
        return ""
    return f"; {name!r} in the current folder has the name of this installed package, so rename it"


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _texts(item)
    elif isinstance(value, Iterable):
        for item in value:
            yield from _texts(item)


def _is_found(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ValueError:  # a module that was made by hand
        return True
