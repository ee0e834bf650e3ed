"""Which exceptions end in a message, and with what exit status."""

from __future__ import annotations

import argparse
import os
import sysconfig
import traceback
from pathlib import Path

import initopt

__all__ = ["BAD_INPUT", "FAILED", "debugging", "exit_status", "explained"]

FAILED = 1
BAD_INPUT = 2
_OWN = Path(initopt.__file__).parent


def explained(error: Exception) -> bool:
    """Whether the message of an exception tells the user all there is to know.

    That is so for those that initopt raises itself. One that comes out of the user's model, loss or data, or out of
    PyTorch beneath them, needs its traceback.
    """
    if isinstance(error, argparse.ArgumentError):
        return True
    if not isinstance(error, (ValueError, TypeError, ImportError, OSError, ArithmeticError)):
        return False
    files = [Path(frame.filename) for frame in traceback.extract_tb(error.__traceback__)]
    if isinstance(error, OSError):  # a file of ours that cannot be written fails beneath us, in the standard library
        return all(_is_own(file) or _is_standard(file) for file in files)
    return _is_own(files[-1])


def _is_own(file: Path) -> bool:
    return file.is_relative_to(_OWN)


def _is_standard(file: Path) -> bool:
    return file.is_relative_to(sysconfig.get_path("stdlib")) and "site-packages" not in file.parts


def exit_status(error: Exception) -> int:
    """1 for a failure of the numbers or of the machine, 2 for input that cannot work."""
    numerical = isinstance(error, ArithmeticError)
    return FAILED if numerical or not explained(error) else BAD_INPUT


def debugging() -> bool:
    """Whether the environment asks for a traceback in any case."""
    return os.environ.get("INITOPT_DEBUG", "") not in ("", "0")
