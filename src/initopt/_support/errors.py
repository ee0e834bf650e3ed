"""Exceptions that say what went wrong in the user's own terms."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from initopt._support._torch_messages import is_written_over

__all__ = [
    "HarmError",
    "InitoptWarning",
    "LoaderError",
    "LossError",
    "MismatchError",
    "NonFiniteError",
    "RankError",
    "TrainedModelError",
    "ZeroGradientError",
    "in_short",
    "located",
    "warn",
]


class InitoptWarning(UserWarning):
    """A warning of initopt's: ``warnings.simplefilter("ignore", initopt.InitoptWarning)`` silences them alone."""


class HarmError(ArithmeticError):
    """A method made the network worse, and was asked to say so by an exception; the weights are as before."""


class LoaderError(ValueError):
    """The batches ran out, or were not there at all."""


class LossError(ValueError):
    """The loss function returned something that is not a loss."""


class MismatchError(ValueError):
    """Stored values do not fit what they are loaded into."""


class NonFiniteError(ArithmeticError):
    """A loss or a gradient is infinite or not a number."""


class RankError(RuntimeError):
    """Another process of the group has failed, or differs in what has to be the same on all."""


class TrainedModelError(ValueError):
    """The model has been trained, and a method for initial weights would undo that."""


class ZeroGradientError(ArithmeticError):
    """Every gradient is exactly zero, so there is no direction to compare."""


_PACKAGE = os.path.join(os.path.dirname(os.path.dirname(__file__)), "")
"""The folder of initopt, with a separator at its end."""

_WRITTEN_OVER = (
    "(the model writes over what its backward pass needs. Models are measured in evaluation mode, but for their norms; if "
    "this one can be trained as it is, train_mode=True measures it in training mode)"
)


_FABRIC = (
    "(this is the module as Lightning Fabric has set it up, which watches how its output is differentiated. Pass the "
    "module that is in it, fabric_module.module, and open fabric.autocast() in a loss_fn of (model, batch))"
)


@contextmanager
def located(place: str) -> Iterator[None]:
    """Put a place in front of the message of a numerical error, and add it as a note to any other."""
    try:
        yield
    except (NonFiniteError, ZeroGradientError) as error:
        raise type(error)(f"in {place}: {error}") from error.__cause__
    except Exception as error:
        error.add_note(f"(in {place})")
        if is_written_over(error):
            error.add_note(_WRITTEN_OVER)
        if "fabric.backward" in str(error):
            error.add_note(_FABRIC)
        raise


def in_short(error: Exception) -> str:
    r"""The type of an exception, and the first line of what it says.

    >>> in_short(ValueError("no such layer\nwith more of it"))
    'ValueError: no such layer'
    """
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"


def warn(message: str) -> None:
    """Warn the user with an :class:`InitoptWarning`, about the line that called into initopt."""
    level, frame = 2, sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, InitoptWarning, stacklevel=level)
