"""What a command is, and what it is asked to do."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from jsonargparse import ArgumentParser

from initopt.cli.components import Component

__all__ = ["Command", "Request"]


@dataclass(frozen=True)
class Request:
    """A command line that was understood.

    Attributes:
        components: those that were chosen, by option.
        arguments: the arguments of each component.
        options: every other option.
        progress: whether to show a progress bar; ``None`` where that was left open.
        config: all of it as it would stand in a YAML file.
        given: the names of the options on the command line, not in a file.
    """

    components: Mapping[str, Component]
    arguments: Mapping[str, Mapping[str, Any]]
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
        usage: its form, without the options that can be left out.
        description: what it does.
        examples: command lines, shown at the end of its help.
        add_options: adds the options, but for those of components and of the method, to a parser.
        run: does it; gives the exit status, or ``None`` for 0.
        components: the options by which the user brings a class or function, with a help text each; a command that has
            some has a progress bar.
        as_batches: whether it takes data as batches; else in three parts.
        method: the help text of ``--method``, whose options it has then, too; ``None`` where there is no such option.
        renamed: the present names of options by their former ones, which work with a warning.
        renamed_hint: what is added to that.
        experiments: whether it takes whole comparisons, ``--experiment NAME|FILE``.
    """

    usage: str
    description: str
    examples: str
    add_options: Callable[[ArgumentParser], None]
    run: Callable[[Request], int | None]
    components: Mapping[str, str] = field(default_factory=dict)
    as_batches: bool = True
    method: str | None = None
    renamed: Mapping[str, str] = field(default_factory=dict)
    renamed_hint: str = ""
    experiments: bool = False
