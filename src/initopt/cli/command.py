"""What a command is, and what it is asked to do."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser

from initopt.cli.components import Component

__all__ = ["Command", "Request"]


@dataclass(frozen=True)
class Request:
    """A command line, understood.

    Attributes:
        components: those that were chosen, by option.
        arguments: the arguments of each component.
        method: name of the method.
        options: every other option.
        progress: whether to show a progress bar; ``None`` where that was left open.
        config: all of it as it would stand in a YAML file.
        given: the names of the options on the command line, not in a file.
    """

    components: Mapping[str, Component]
    arguments: Mapping[str, Mapping[str, Any]]
    method: str
    options: Mapping[str, Any]
    progress: bool | None
    config: Mapping[str, Any] = field(repr=False)
    given: frozenset[str] = frozenset()

    def make(self, option: str) -> Any:
        """The object that a component stands for, or ``None`` if none was chosen."""
        chosen = self.components.get(option)
        return None if chosen is None else chosen.make(self.arguments[option])


@dataclass(frozen=True)
class Command:
    """A subcommand.

    Attributes:
        name: of the command.
        summary: what it does, in a line.
        usage: its form, without the options that can be left out.
        description: what it does.
        examples: command lines, shown at the end of its help.
        choices: what has to be chosen before its options are known, with a help text each.
        add_options: adds the options, given the name of the method.
        run: does it.
        as_batches: whether it takes data as batches; else in three parts.
        recipes: files of options that go by a name, for ``--recipe``; ``None`` where there is no such option.
    """

    name: str
    summary: str
    usage: str
    description: str
    examples: str
    choices: Mapping[str, str]
    add_options: Callable[[ArgumentParser, str], None]
    run: Callable[[Request], None]
    as_batches: bool = True
    recipes: Mapping[str, Path] | None = None
