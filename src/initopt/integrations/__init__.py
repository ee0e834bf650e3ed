"""initopt where people train, and where runs are done: a module for each library, imported when it is asked for."""

from importlib import import_module
from typing import Any

_MODULES = ("accelerate", "fabric", "lightning", "peft", "ray", "skorch", "transformers")


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})
