"""The command line: ``initopt demo``, ``initopt measure`` and ``initopt run``."""

from initopt.cli.main import main

__all__ = ["main"]
