"""The command line: one command for each question that the package answers."""

from initopt.cli.main import main

__all__ = ["main"]
