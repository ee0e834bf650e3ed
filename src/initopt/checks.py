"""Refuse bad numbers before any work, in one form of words."""

from __future__ import annotations

import math
from typing import Any

__all__ = ["check_integer", "check_number"]


def check_integer(name: str, value: Any, minimum: int) -> None:
    """Raise a ValueError unless ``value`` is an integer of at least ``minimum``."""
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        raise ValueError(f"{name} must be an integer of {minimum} or more; got {value!r}")


def check_number(
    name: str, value: Any, *, above: float | None = None, minimum: float | None = None, below: float = math.inf
) -> None:
    """Raise a ValueError unless ``value`` is a number in the given range (``above`` and ``below`` are exclusive)."""
    bounds = [f"above {above:g}"] if above is not None else []
    bounds += [f"{minimum:g} or more"] if minimum is not None else []
    bounds += [f"below {below:g}"] if below != math.inf else []
    fits = isinstance(value, (int, float)) and not isinstance(value, bool) and not math.isnan(value)
    fits = fits and (above is None or value > above) and (minimum is None or value >= minimum)
    if not fits or (below != math.inf and value >= below):
        raise ValueError(f"{name} must be a number {' and '.join(bounds)}; got {value!r}")
