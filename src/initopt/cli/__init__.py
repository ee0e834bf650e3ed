"""The command line: ``initopt demo``, ``measure``, ``run``, ``compare`` and ``report``."""

from initopt.cli.main import main

__all__ = ["main"]
