"""The commands: a file for each, with its ``COMMAND``."""

from __future__ import annotations

import importlib

from initopt.cli.commands.base import Command

__all__ = ["COMMANDS", "find_command"]

COMMANDS = {
    "demo": "see it work: a deep network on handwritten digits, from three starts",
    "check": "look for what is wrong with initial weights; exit status 1 if so",
    "diagnose": "say what is wrong with a start, in which layer, and what cures it",
    "find-lr": "find the learning rate for a start; exit status 1 if there is none",
    "choose": "find out which start is best for a network, or keep its own",
    "measure": "see how well the gradients agree, changing nothing",
    "run": "improve a network's initial weights, and write them into a folder",
    "compare": "train networks from several initializations, report which is best",
    "report": "write the report of a comparison again, from its stored runs",
}
"""What each command does, in a line. ``find-it`` is in the file ``find_it.py``, which is imported when it is asked for."""


def find_command(name: str) -> Command:
    """The command of a name in :data:`COMMANDS`."""
    command: Command = importlib.import_module(f"{__name__}.{name.replace('-', '_')}").COMMAND
    return command
