"""The learning rate over a run, as a share of its peak."""

from __future__ import annotations

import math
from typing import Literal

__all__ = ["SCHEDULES", "Schedule", "lr_factor"]

Schedule = Literal["constant", "cosine", "linear"]
SCHEDULES = ("constant", "cosine", "linear")


def lr_factor(step: int, steps: int, schedule: Schedule, warmup_steps: int) -> float:
    """The learning rate of a step, divided by the peak.

    It rises linearly over the warm-up, whose last step has the peak; then it stays there, or falls along a line or half a
    cosine, and would be zero one step after the last.

    Args:
        step: its number, from 0.
        steps: how many there are.
        schedule: what comes after the warm-up.
        warmup_steps: how many steps rise.

    >>> [lr_factor(step, 6, "linear", warmup_steps=2) for step in range(6)]
    [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]
    >>> [round(lr_factor(step, 4, "cosine", warmup_steps=0), 3) for step in range(4)]
    [1.0, 0.854, 0.5, 0.146]
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    done = (step - warmup_steps) / max(steps - warmup_steps, 1)
    if schedule == "cosine":
        return (1 + math.cos(math.pi * done)) / 2
    return 1 - done if schedule == "linear" else 1.0
