"""Many names in few: ``blocks.0.fc``, ``blocks.1.fc`` and ``blocks.2.fc`` as ``blocks.0-2.fc``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise

from initopt._support.words import first_few

__all__ = ["fold", "listed"]


def fold(names: Iterable[str]) -> list[str]:
    """Names that differ in one number only as one name with a range, one number after the other.

    >>> fold(["blocks.0.fc1", "blocks.1.fc1", "blocks.2.fc1", "head"])
    ['blocks.0-2.fc1', 'head']
    >>> fold(["a.0.b.0", "a.0.b.1", "a.1.b.0", "a.1.b.1", "a.5.b.0"])
    ['a.0-1.b.0-1', 'a.5.b.0']
    """
    found = [tuple(name.split(".")) for name in dict.fromkeys(names)]
    for place in reversed(range(max(map(len, found), default=0))):
        groups: dict[tuple[str, ...], list[str]] = {}
        for parts in found:
            number = parts[place] if place < len(parts) and parts[place].isdigit() else None
            key = parts if number is None else (*parts[:place], "", *parts[place + 1 :])
            groups.setdefault(key, []).append("" if number is None else number)
        found = [
            key if numbers == [""] else (*key[:place], _ranges(numbers), *key[place + 1 :])
            for key, numbers in groups.items()
        ]
    return [".".join(parts) for parts in found]


def _ranges(numbers: Sequence[str]) -> str:
    """Numbers as ranges, and evenly spaced ones by the first two and the last.

    >>> _ranges(["0", "1", "2", "5"]), _ranges(["1", "3", "5", "7", "9"])
    ('0-2,5', '1,3...9')
    """
    values = sorted(map(int, numbers))
    step = values[1] - values[0] if len(values) > 1 else 0
    if len(values) > 3 and step > 1 and all(b - a == step for a, b in pairwise(values)):
        return f"{values[0]},{values[1]}...{values[-1]}"
    runs: list[list[int]] = []
    for number in values:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(str(low) if low == high else f"{low}-{high}" for low, high in runs)


def listed(names: Iterable[str], most: int = 3) -> str:
    """Names folded, for a sentence.

    >>> listed(["a.0", "a.1", "b", "c", "d"])
    'a.0-1, b, c and 1 more'
    """
    return first_few(fold(names), most)
