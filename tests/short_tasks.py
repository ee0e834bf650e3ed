"""Tasks for the processes of benchmarks/gpu/tasks.py, in a module that imports quickly."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any


def double(value: int, tell: Callable[[float], None]) -> dict[str, Any]:
    tell(0.5)
    return {"value": 2 * value}


def fail(tell: Callable[[float], None]) -> dict[str, Any]:
    raise KeyError("no such thing")


def die(tell: Callable[[float], None]) -> dict[str, Any]:
    os._exit(7)


def sleep(seconds: float, tell: Callable[[float], None]) -> dict[str, Any]:
    time.sleep(seconds)
    return {}
