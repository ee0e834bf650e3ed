"""Methods by name."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from initopt.methods.base import Method
from initopt.methods.gradinit import GradInit
from initopt.methods.lsuv import LSUV
from initopt.methods.metainit import MetaInit
from initopt.methods.nio import NIO

__all__ = ["METHODS", "create_method"]

METHODS: dict[str, type[Method]] = {method.name: method for method in (NIO, GradInit, MetaInit, LSUV)}
"""Every method by name."""


def create_method(method: Any, options: dict[str, Any]) -> Method:
    """The method of a name with its options, or the method itself.

    Raises:
        ValueError: for an unknown name.
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
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}; known are {', '.join(map(repr, METHODS))}")
    known = [field.name for field in fields(METHODS[method])]
    for option in options:
        if option not in known:
            raise TypeError(f"method {method!r} has no option {option!r}; it has {', '.join(known)}")
    return METHODS[method](**options)
