"""Time, by turns."""

from __future__ import annotations

import gc
import time
from collections.abc import Mapping
from typing import Any

import torch
from contenders import Contender

__all__ = ["take_turns"]

LONGEST = 60.0
"""Seconds; what takes longer to warm up is not measured."""

LONG = 20.0
"""Seconds; what takes longer is measured twice only."""

SHORT = 2.0
"""Seconds; what takes less is warmed up twice."""

ENOUGH = 3.0
"""Seconds; short contenders get more turns until they have run for about this long in all, if nothing else is said."""


def time_once(contender: Contender, device: str) -> float:
    """Seconds of one step. Memory is given back beforehand, so that no contender pays for another's."""
    gc.collect()
    with contender() as step:
        synchronize(device)
        start = time.perf_counter()
        step()
        synchronize(device)
        return time.perf_counter() - start


def synchronize(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


def take_turns(
    contenders: Mapping[str, Contender], device: str, repetitions: int, enough: float | None = None
) -> dict[str, dict[str, Any]]:
    """Time contenders by turns, A B C A B C, after a warm-up of each.

    Args:
        contenders: by name.
        device: where they run.
        repetitions: least number of turns, but for contenders that take long.
        enough: seconds; short contenders get more turns until they have run for about this long. :data:`ENOUGH`, if not
            given.

    Returns:
        For each name ``warm_up`` and ``seconds``, or why it was left out in ``skipped``.
    """
    found: dict[str, dict[str, Any]] = {}
    turns: dict[str, int] = {}
    for name, contender in contenders.items():
        try:
            warm_up = time_once(contender, device)
            if warm_up < SHORT:  # the first run may do what later ones need not: choose kernels, check, search
                warm_up = time_once(contender, device)
        except Exception as error:  # out of memory, or a network beyond an engine
            found[name] = {"skipped": _short(error)}
            _release(device)
            continue
        found[name] = {"warm_up": warm_up}
        if warm_up > LONGEST:
            found[name]["skipped"] = f"took {warm_up:.0f} s to warm up, more than {LONGEST:.0f} s"
            continue
        found[name]["seconds"] = []
        lasting = ENOUGH if enough is None else enough
        most = max(repetitions, min(4 * repetitions, round(lasting / warm_up)))
        turns[name] = min(2, repetitions) if warm_up > LONG else most
    for turn in range(max(turns.values(), default=0)):
        for name, count in turns.items():
            if turn < count:
                found[name]["seconds"].append(time_once(contenders[name], device))
    return found


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:200]


def _release(device: str) -> None:
    gc.collect()
    if device != "cpu":
        torch.cuda.empty_cache()
