"""Refuse bad numbers before any work, in one form of words."""

from __future__ import annotations

import functools
import inspect
import math
import operator
from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields
from importlib.util import find_spec
from numbers import Real
from typing import Any, ParamSpec, SupportsIndex, TypeVar

from initopt._support.errors import warn
from initopt._support.words import did_you_mean, unknown

__all__ = [
    "accepting",
    "check_choice",
    "check_flag",
    "check_integer",
    "check_number",
    "data_frame",
    "plain_numbers",
    "renaming",
    "require",
    "with_plain_numbers",
]


def plain_numbers(value: Any) -> Any:
    """Numbers of NumPy and the like as Python's own, also in a pair; everything else as it is.

    >>> import numpy as np
    >>> plain_numbers((np.int64(3), np.float32(0.5), "x"))
    (3, 0.5, 'x')
    """
    if type(value) in (list, tuple):
        return type(value)(plain_numbers(item) for item in value)
    if isinstance(value, bool) or not isinstance(value, Real):
        return value
    return operator.index(value) if isinstance(value, SupportsIndex) else float(value)


def with_plain_numbers(options: Any) -> None:
    """Apply :func:`plain_numbers` to the fields of a frozen dataclass that is being made, so that they can be stored."""
    for option in fields(options):
        object.__setattr__(options, option.name, plain_numbers(getattr(options, option.name)))


def check_choice(name: str, value: Any, known: Iterable[str]) -> None:
    """Raise a ValueError unless ``value`` is one of the known names."""
    names = list(known)
    if not isinstance(value, str) or value not in names:
        raise ValueError(unknown(name, value, names))


def check_flag(name: str, value: Any) -> None:
    """Raise a ValueError unless ``value`` is ``True`` or ``False``."""
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be True or False; got {value!r}")


def check_integer(name: str, value: Any, minimum: int) -> int:
    """A value as an ``int``; raise a ValueError unless it is an integer of at least ``minimum``."""
    number = plain_numbers(value)
    if isinstance(number, bool) or not isinstance(number, int) or number < minimum:
        raise ValueError(f"{name} must be an integer of {minimum} or more; got {value!r}")
    return number


def check_number(
    name: str,
    value: Any,
    *,
    above: float | None = None,
    minimum: float | None = None,
    below: float = math.inf,
    maximum: float | None = None,
    finite: bool = False,
) -> None:
    """Raise a ValueError unless ``value`` is a number in the given range (``above`` and ``below`` are exclusive)."""
    bounds = [f"above {above:g}"] if above is not None else []
    bounds += [f"{minimum:g} or more"] if minimum is not None else []
    bounds += [f"below {below:g}"] if below != math.inf else []
    bounds += [f"{maximum:g} or less"] if maximum is not None else []
    value = plain_numbers(value)
    fits = isinstance(value, (int, float)) and not isinstance(value, bool) and not math.isnan(value)
    fits = fits and (above is None or value > above) and (minimum is None or value >= minimum)
    fits = fits and (below == math.inf or value < below) and (maximum is None or value <= maximum)
    endless = finite and fits and math.isinf(value)
    if not fits or endless:
        kind = "finite number" if endless else "number"
        raise ValueError(f"{name} must be a {' '.join([kind, ' and '.join(bounds)]).strip()}; got {value!r}")


_PACKAGES = {"PIL": "pillow", "lightning_fabric": "lightning-fabric"}
"""The names of packages that are not those of their modules."""


def require(what: str, extra: str, *modules: str) -> None:
    """Raise an ImportError, which says what to install, unless all modules that ``what`` needs of an extra are there."""
    missing = [_PACKAGES.get(module, module) for module in modules if find_spec(module) is None]
    if missing:
        raise ImportError(f"{what} needs {', '.join(missing)}: pip install 'initopt[{extra}]'")


def data_frame(rows: Sequence[Any], columns: Sequence[str] | None = None) -> Any:
    """A :class:`pandas.DataFrame` of rows, for a method ``to_dataframe``; an ImportError where pandas is not installed."""
    require("to_dataframe()", "pandas", "pandas")
    import pandas as pd

    return pd.DataFrame(rows, columns=columns)


_P = ParamSpec("_P")
_T = TypeVar("_T")


def accepting(*options: str) -> Callable[[Callable[_P, _T]], Callable[_P, _T]]:
    """Have a function refuse keyword arguments that it does not have with the name of one that it has.

    Args:
        options: names that the function takes by its ``**options``.

    Raises:
        TypeError: as Python does, and with the same beginning.

    >>> @accepting("seed")
    ... def scale(steps=3, **options): ...
    >>> scale(step=1)
    Traceback (most recent call last):
    TypeError: scale() got an unexpected keyword argument 'step'; did you mean 'steps'?
    """

    def decorate(function: Callable[_P, _T]) -> Callable[_P, _T]:
        parameters = inspect.signature(function).parameters.values()
        known = [p.name for p in parameters if p.kind is not inspect.Parameter.VAR_KEYWORD] + list(options)

        @functools.wraps(function)
        def checked(*args: _P.args, **kwargs: _P.kwargs) -> _T:
            for name in kwargs:
                if name not in known:
                    hint = did_you_mean(name, known)
                    raise TypeError(f"{function.__name__}() got an unexpected keyword argument {name!r}{hint}")
            return function(*args, **kwargs)

        return checked

    return decorate


def renaming(**renamed: str) -> Callable[[Callable[_P, _T]], Callable[_P, _T]]:
    """Have old names of keyword arguments go on working for a release, with a warning.

    Args:
        renamed: the new names by the old ones.

    Raises:
        TypeError: for an old name beside its new one.

    Warns:
        InitoptWarning: for an old name; the message says the new one.
    """

    def decorate(function: Callable[_P, _T]) -> Callable[_P, _T]:
        @functools.wraps(function)
        def translated(*args: _P.args, **kwargs: _P.kwargs) -> _T:
            for old in renamed.keys() & kwargs.keys():
                new = renamed[old]
                if new in kwargs:
                    raise TypeError(f"{function.__name__}() got {new!r} and, beside it, its old name {old!r}")
                warn(f"initopt: {old!r} of {function.__name__}() is called {new!r} now; the old name will go")
                kwargs[new] = kwargs.pop(old)
            return function(*args, **kwargs)

        return translated

    return decorate
