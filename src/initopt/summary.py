"""A result in words, a screen of them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from initopt.measurement import TITLES, Measurement
from initopt.records import steps_taken

if TYPE_CHECKING:
    from initopt.result import Result

__all__ = ["summary"]

_MOVED = 5
"""Scales that are shown."""


def summary(result: Result) -> str:
    """Verdict, figures before and after, what moved and what did not, the cost, and what to do next."""
    blocks = [f"{result.method}: {result.verdict}"]
    if result.before is not None and result.after is not None:
        blocks.append(_table(result.before, result.after))
    blocks.append("\n".join(_scales(result)))
    blocks.append(f"Next: {_next(result)}")
    return "\n\n".join(blocks)


def _table(before: Measurement, after: Measurement) -> str:
    names = [name for name in before.measured() if name in after.sem]
    lines = [f"{'':24}{'before':>19}{'after':>19}"]
    lines += [f"{TITLES[name]:24}{_figure(before, name):>19}{_figure(after, name):>19}" for name in names]
    lines.append(f"(means and standard errors over {before.num_batches} held-back batches)")
    return "\n".join(lines)


def _figure(found: Measurement, name: str) -> str:
    return f"{getattr(found, name):.3g} +- {found.sem[name]:.1g}"


def _scales(result: Result) -> list[str]:
    scales = result.scales if result.tried_scales is None else result.tried_scales
    moved = sorted((n for n, s in scales.items() if s != 1 and s > 0), key=lambda n: -abs(math.log(scales[n])))
    lines = []
    if moved:
        what = "moved most" if result.tried_scales is None else "tried, and given up"
        shown = ", ".join(f"{name} x {scales[name]:.3g}" for name in moved[:_MOVED])
        lines.append(f"{what + ':':14}{shown}{_more(len(moved) - _MOVED)}")
    for why, names in result.left_alone.items():
        lines.append(f"{'left alone:':14}{_count(len(names), 'tensor')}, {why}: {names[0]}{_more(len(names) - 1)}")
    steps = steps_taken(result.history)
    cost = f"{'cost:':14}{_count(steps, 'step')} and the measurements in {result.seconds:.1f} s"
    if result.training_step_seconds:
        cost += f", as long as {result.seconds / result.training_step_seconds:.0f} training steps"
    return [*lines, f"{cost} (engine {result.engine!r})"]


def _more(count: int) -> str:
    return f" and {count} more" if count > 0 else ""


def _count(count: int, word: str) -> str:
    return f"{count} {word}{'s' if count != 1 else ''}"


def _next(result: Result) -> str:
    word = result.verdict.partition(":")[0]
    if word in ("restored", "harmed"):
        return (
            "look for a layer that is dead or a rate that is too high before you train; initopt.lsuv(model, batches) or "
            'scheme="orthogonal" may cure what scales cannot.'
        )
    if word in ("left alone", "not improved"):
        return "train with what you have; another start would have to be shown to be better (initopt.compare)."
    if word == "not judged":
        return "have the new weights judged before you train, on batches held back (measure_steps=10)."
    return (
        "train, but look for the learning rate again, as the one of before may no longer fit: try it and a third of it. "
        "initopt.compare shows what the new start is worth."
    )
