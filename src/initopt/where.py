"""Say in an error at which step or batch it happened."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from initopt.errors import NonFiniteError, ZeroGradientError

__all__ = ["located"]


@contextmanager
def located(place: str) -> Iterator[None]:
    """Put a place in front of the message of a numerical error, and add it as a note to any other."""
    try:
        yield
    except (NonFiniteError, ZeroGradientError) as error:
        raise type(error)(f"in {place}: {error}") from error.__cause__
    except Exception as error:
        error.add_note(f"(in {place})")
        raise
