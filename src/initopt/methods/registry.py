"""Methods by name: those of initopt, and those of other packages."""

from __future__ import annotations

from dataclasses import fields
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from initopt._support.errors import warn
from initopt._support.words import did_you_mean, unknown
from initopt.methods.base import Measuring, Method
from initopt.methods.gradinit import GradInit
from initopt.methods.lsuv import LSUV
from initopt.methods.metainit import MetaInit
from initopt.methods.nio import NIO
from initopt.methods.records import Record, StepRecord

__all__ = [
    "GROUP",
    "METHODS",
    "ONCE_OF_ALL",
    "create_method",
    "find_method",
    "method_names",
    "record_class",
    "with_old_options",
]

METHODS: dict[str, type[Method]] = {method.name: method for method in (NIO, GradInit, MetaInit, LSUV)}
"""Every method of initopt by name."""

GROUP = "initopt.methods"
"""The group of entry points by which a package brings a method: its name, and the class."""


def method_names() -> list[str]:
    """The names of all methods, those of installed packages last; none of these packages is imported."""
    return list(dict.fromkeys([*METHODS, *sorted(entry_points(group=GROUP).names)]))


def find_method(name: str) -> type[Method]:
    """The class of a name.

    Raises:
        ValueError: if there is none, or two packages bring one; the message lists the known names.
        ImportError: if its package cannot be imported.
        TypeError: if its entry point does not name a method of this name.

    Warns:
        InitoptWarning: if a package brings a method with the name of one of initopt's, which is the one that counts.
    """
    brought = list(entry_points(group=GROUP, name=name))
    if name in METHODS:
        for other in brought:
            warn(f"initopt: {_source(other)} is not used, since {name!r} is the name of a method of initopt's own")
        return METHODS[name]
    if not brought:
        raise ValueError(unknown("method", name, method_names()))
    if len(brought) > 1:
        raise ValueError(f"method {name!r} is brought by more than one package: {'; '.join(map(_source, brought))}")
    return _load(brought[0])


def record_class(name: str) -> type[Record]:
    """The class of the records of a method: :class:`StepRecord` for one that is not installed.

    Raises:
        ImportError, TypeError: as :func:`find_method`.
    """
    return find_method(name).record if name in method_names() else StepRecord


def _load(entry: EntryPoint) -> type[Method]:
    try:
        found = entry.load()
    except Exception as error:
        raise ImportError(f"{_source(entry)} cannot be imported: {type(error).__name__}: {error}") from error
    if not isinstance(found, type) or not issubclass(found, Method):
        raise TypeError(f"{_source(entry)} is no subclass of initopt.methods.Method, but {found!r}")
    if getattr(found, "name", None) != entry.name:
        raise TypeError(f"{_source(entry)} has the name {getattr(found, 'name', None)!r}; both have to be the same")
    return found


def _source(entry: EntryPoint) -> str:
    package = f" of the package {entry.dist.name!r}" if entry.dist is not None else ""
    return f"method {entry.name!r} ({entry.value}){package}"


def create_method(method: Any, options: dict[str, Any]) -> Method:
    """The method of a name with its options, or the method itself.

    Raises:
        ValueError, ImportError, TypeError: as :func:`find_method`.
        TypeError: for an option that the method does not have, options beside a method that has its own, or anything that
            is neither a method nor a name.
    """
    if isinstance(method, Method):
        if options:
            raise TypeError(f"{', '.join(options)}: give the options to {type(method).__name__}(...) itself")
        return method
    if isinstance(method, type) and issubclass(method, Method):
        raise TypeError(f"method is the class {method.__name__}; pass an instance, {method.__name__}(), or its name")
    if not isinstance(method, str):
        raise TypeError(f"method must be the name of a method or a Method; got {type(method).__name__}")
    found = find_method(method)
    known = [field.name for field in fields(found)]
    for option in options:
        if option not in known:
            raise TypeError(f"method {method!r} has no option {option!r}{did_you_mean(option, known)}")
    return found(**options)


ONCE_OF_ALL = ("num_subbatches", "engine", "grad_params")
"""Options that every method once had, including the methods that never read them."""


def with_old_options(measuring: Measuring | None, method: str, options: dict[str, Any]) -> Measuring | None:
    """The settings of the measurements; those still among the options of a method are taken out with a warning."""
    if not any(name in options for name in ONCE_OF_ALL):
        return measuring
    known = {option.name for option in fields(find_method(method))}
    old = {name: options.pop(name) for name in ONCE_OF_ALL if name in options and name not in known}
    if not old:
        return measuring
    if measuring is not None:
        raise TypeError(f"{', '.join(old)}: configures the measurements before and after; give it to Measuring(...) itself")
    shown = ", ".join(f"{name}=..." for name in old)
    warn(
        f"initopt: {', '.join(old)}: no option of the method {method!r}, but of the measurements before and after: pass "
        f"measuring=initopt.Measuring({shown}). The old form will go"
    )
    return Measuring(**old)
