"""What jsonargparse says of a wrong command line, in the user's terms."""

from __future__ import annotations

import re

__all__ = ["reworded"]

_UNION = re.compile(
    r"Does not validate against any of the Union subtypes.*?Errors:\n(.*)\n\s*Given value type: .*\n\s*Given value: (.*)",
    re.DOTALL,
)
_REQUIRED = re.compile(r"(the following arguments are required: )(.*)")
_WORDINGS = (
    (r'Parser key "([\w.]+)":\s*', r"--\1: "),
    (r"Type \S*Callable.* expects a function or a callable class: ", "expected the import path of a function: "),
    (r"Expected an? (?:<class ')?(?:typing\.)?([^'\n]+?|Literal\[.*?\])(?:'>)?\. Got value: (.*)", r"expected \1; got \2"),
    (r"expected Literal\[(.*)\];", r"expected one of \1;"),
    (r"\. Got value: ", "; got "),
    (r"got (-?)inf$", r"got \1inf (write \1.inf)"),  # numbers are read as YAML has them
)


def reworded(message: str) -> str:
    """The message with options and types as the user knows them.

    >>> reworded('Parser key "lr": Expected a float. Got value: inf')
    '--lr: expected float; got inf (write .inf)'
    """
    message = _UNION.sub(_without_union, message)
    message = _REQUIRED.sub(lambda match: match[1] + ", ".join(f"--{name}" for name in match[2].split(", ")), message)
    for pattern, replacement in _WORDINGS:
        message = re.sub(pattern, replacement, message)
    return message


def _without_union(match: re.Match[str]) -> str:
    """The one alternative that was meant: all unions here are of a type and None."""
    reasons = [line.strip().removeprefix("- ") for line in match[1].splitlines() if "NoneType'>" not in line[-12:]]
    return f"{'; '.join(reasons)}. Got value: {match[2]}"
