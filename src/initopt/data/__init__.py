"""Small data sets that come with the package."""

from initopt.data.digits import digits, digits_tensors
from initopt.data.splits import Splits, digits_splits

__all__ = ["Splits", "digits", "digits_splits", "digits_tensors"]
