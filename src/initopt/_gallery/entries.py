"""The entries by name, and what the checks of engines and methods share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from initopt._gallery import flow, layers, linear, losses, norms, sharing, state
from initopt._gallery.entry import Entry

__all__ = ["ENTRIES", "chosen_entries", "expect_refusal", "raise_if_wrong"]

ENTRIES: dict[str, Entry] = {
    entry.name: entry for room in (sharing, flow, state, norms, linear, layers, losses) for entry in room.ENTRIES
}
"""Every entry by name."""


def chosen_entries(entries: Iterable[str | Entry] | None) -> list[Entry]:
    found = []
    for entry in ENTRIES.values() if entries is None else entries:
        if not isinstance(entry, Entry):
            if entry not in ENTRIES:
                raise ValueError(f"unknown entry {entry!r}; initopt.testing.ENTRIES has {len(ENTRIES)}, such as 'mlp'")
            entry = ENTRIES[entry]
        found.append(entry)
    return found


def raise_if_wrong(wrong: Sequence[str], count: int) -> None:
    if wrong:
        raise AssertionError("\n".join([f"wrong on {len(wrong)} of {count}:", *wrong]))


def expect_refusal(message: str, function: Callable[..., object], *arguments: Any, **options: Any) -> None:
    """Call a function that has to refuse with a message."""
    try:
        function(*arguments, **options)
    except Exception as error:
        if message not in str(error):
            raise AssertionError(f"refused, but it says {error}, without {message!r}") from error
        return
    raise AssertionError(f"not refused, which was to say {message!r}")
