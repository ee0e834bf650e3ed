"""What jsonargparse says of a wrong command line, in the user's terms."""

from __future__ import annotations

import re

__all__ = ["reworded"]

_WORDINGS = (
    (r'Parser key "([\w.]+)":\s*', r"--\1: "),
    (r"arguments are required: (\S)", r"arguments are required: --\1"),
    (r"Expected an? (?:<class ')?(?:typing\.)?([^'\n]+?|Literal\[.*?\])(?:'>)?\. Got value: (.*)", r"expected \1; got \2"),
    (r"expected Literal\[(.*)\];", r"expected one of \1;"),
    (r"got (-?)inf$", r"got \1inf (write \1.inf)"),  # numbers are read as YAML has them
)


def reworded(message: str) -> str:
    """The message with options and types as the user knows them.

    >>> reworded('Parser key "lr": Expected a float. Got value: inf')
    '--lr: expected float; got inf (write .inf)'
    """
    for pattern, replacement in _WORDINGS:
        message = re.sub(pattern, replacement, message)
    return message
