"""Names, lists and numbers of things, in the words of a message."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import Any

__all__ = ["columns", "counted", "did_you_mean", "first_few", "listed", "meant", "unknown"]


def counted(count: int, noun: str) -> str:
    """A number and its noun, in the plural where it needs one.

    >>> counted(1, "seed"), counted(2, "seed")
    ('1 seed', '2 seeds')
    """
    return f"{count} {noun}{'' if count == 1 else 's'}"


def listed(names: Sequence[str]) -> str:
    """Names as a sentence lists them.

    >>> listed(["a"]), listed(["a", "b"]), listed(["a", "b", "c"])
    ('a', 'a and b', 'a, b and c')
    """
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def first_few(items: Sequence[str], most: int = 3, separator: str = ", ") -> str:
    r"""The first items of a list, and how many there are beside them; after a line break, if that separates them.

    >>> first_few(["a", "b", "c", "d", "e"]), first_few(["a", "b"]), first_few(["a", "b", "c"], 2, "\n  ")
    ('a, b, c and 2 more', 'a, b', 'a\n  b\n  and 1 more')
    """
    rest = len(items) - most
    more = separator if "\n" in separator else " "
    return separator.join(items[:most]) + (f"{more}and {rest} more" if rest > 0 else "")


def unknown(kind: str, value: Any, known: Iterable[str]) -> str:
    """The message on a name that is not there.

    >>> unknown("engine", "grap", ["graph", "exact"])
    "unknown engine 'grap'; known are 'graph', 'exact'"

    What is not a name, such as an optimizer, is not shown whole.

    >>> unknown("optimizer", {"lr": 0.1}, ["sgd", "adam"])
    "unknown optimizer (a dict); known are 'sgd', 'adam'"
    """
    given = repr(value) if isinstance(value, (str, int, float)) or value is None else f"(a {type(value).__name__})"
    return f"unknown {kind} {given}; known are {', '.join(map(repr, known))}"


def meant(name: str, known: Iterable[str]) -> str:
    """The end of a message on an unknown name: the nearest of those that there are, or nothing if none is near.

    >>> meant("step", ["steps", "seed"]), meant("colour", ["steps", "seed"])
    ("; did you mean 'steps'?", '')
    """
    near = difflib.get_close_matches(name, list(known), 1)
    return f"; did you mean {near[0]!r}?" if near else ""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of a message on an unknown name: the nearest of those that there are, or all of them.

    >>> did_you_mean("colour", ["steps", "seed"])
    '; it has steps, seed'
    """
    names = list(known)
    return meant(name, names) or f"; it has {', '.join(names)}"


def columns(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table as text: the first column flush left, the others flush right.

    >>> print(columns(["start", "loss"], [["own", "2.31"], ["nio", "0.402"]]))
      start   loss
      own     2.31
      nio    0.402
    """
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]
    lines = [
        "  ".join(
            cell.rjust(width) if column else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in [head, *rows]
    ]
    return "\n".join(f"  {line.rstrip()}" for line in lines)
