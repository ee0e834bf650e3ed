"""Exceptions that say what went wrong in the user's own terms."""

from __future__ import annotations

__all__ = [
    "HarmError",
    "LoaderError",
    "LossError",
    "MismatchError",
    "NonFiniteError",
    "TrainedModelError",
    "ZeroGradientError",
]


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


class TrainedModelError(ValueError):
    """The model has been trained, and a method for initial weights would undo that."""


class ZeroGradientError(ArithmeticError):
    """Every gradient is exactly zero, so there is no direction to compare."""
