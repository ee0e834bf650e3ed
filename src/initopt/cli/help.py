"""Help texts from docstrings, for a terminal."""

from __future__ import annotations

import argparse
import re

from jsonargparse import DefaultHelpFormatter

__all__ = ["HelpFormatter", "as_text"]

_ROLE = re.compile(r":[a-z]+:`~?([^`]+)`")
_LITERAL = re.compile(r"``(.+?)``", re.DOTALL)


def as_text(docstring: str) -> str:
    """A docstring without its markup.

    >>> as_text('``"exact"`` or a name in :data:`initopt.engines.ENGINES`')
    '"exact" or a name in initopt.engines.ENGINES'
    """
    return _LITERAL.sub(r"\1", _ROLE.sub(r"\1", docstring))


class HelpFormatter(argparse.RawDescriptionHelpFormatter, DefaultHelpFormatter):
    """Says what each option means and its default, in the words of the docstring."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=26)  # type: ignore[no-untyped-call]

    def add_argument(self, action: argparse.Action) -> None:
        # Options such as --objective.help are for picking classes, which none of ours are about.
        if not any(name.endswith(".help") for name in action.option_strings):
            super().add_argument(action)

    def _get_help_string(self, action: argparse.Action) -> str:
        if getattr(action, "_jsonargparse_preexpanded_help", False):
            return action.help or ""  # jsonargparse asks a second time for what has no help of its own
        text = as_text(action.help or "")
        has_default = action.nargs != 0 and action.default is not None and action.default != argparse.SUPPRESS
        return f"{text} (default: %(default)s)".lstrip() if has_default else text

    def _get_default_metavar_for_optional(self, action: argparse.Action) -> str:
        if isinstance(action.default, int):
            return "N"
        return "X" if isinstance(action.default, float) else action.dest.rpartition(".")[2].upper()
