"""What was meant by a keyword argument that there is not."""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable, Iterable
from typing import ParamSpec, TypeVar

__all__ = ["did_you_mean", "suggesting"]

_P = ParamSpec("_P")
_T = TypeVar("_T")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of a message on an unknown name: the nearest of those that there are, or all of them.

    >>> did_you_mean("step", ["steps", "seed"])
    "; did you mean 'steps'?"
    >>> did_you_mean("colour", ["steps", "seed"])
    '; it has steps, seed'
    """
    names = list(known)
    near = difflib.get_close_matches(name, names, 1)
    return f"; did you mean {near[0]!r}?" if near else f"; it has {', '.join(names)}"


def suggesting(function: Callable[_P, _T]) -> Callable[_P, _T]:
    """Have a function refuse keyword arguments that it does not have with the name of one that it has.

    Raises:
        TypeError: as Python does, and with the same beginning.

    >>> @suggesting
    ... def scale(steps=3): ...
    >>> scale(step=1)
    Traceback (most recent call last):
    TypeError: scale() got an unexpected keyword argument 'step'; did you mean 'steps'?
    """
    known = list(inspect.signature(function).parameters)

    @functools.wraps(function)
    def checked(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        for name in kwargs:
            if name not in known:
                hint = did_you_mean(name, known)
                raise TypeError(f"{function.__name__}() got an unexpected keyword argument {name!r}{hint}")
        return function(*args, **kwargs)

    return checked
