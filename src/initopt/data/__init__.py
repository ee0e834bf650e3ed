"""Small data sets that come with the package."""

from initopt.data.digits import digits, digits_tensors

__all__ = ["digits", "digits_tensors"]
