"""The engine of a name, or the best one for a problem."""

from __future__ import annotations

from initopt.engines.base import Engine
from initopt.engines.coupled import CoupledEngine
from initopt.engines.differences import DifferencesEngine
from initopt.engines.falling_back import FallingBackEngine
from initopt.engines.groups import GroupsEngine
from initopt.engines.separate import GraphEngine, PlainEngine, RecomputeEngine
from initopt.problem import Problem

__all__ = ["ENGINES", "check_engine", "create_engine"]

_ALL: tuple[type[Engine], ...] = (
    GraphEngine,
    RecomputeEngine,
    GroupsEngine,
    CoupledEngine,
    PlainEngine,
    DifferencesEngine,
)

ENGINES: dict[str, type[Engine]] = {engine.name: engine for engine in _ALL}
"""Every engine by name."""

_CHOICES = ("auto", "exact", *ENGINES)


def check_engine(engine: str) -> None:
    """Refuse an unknown name.

    Raises:
        ValueError: the message lists the known names.
    """
    if engine not in _CHOICES:
        raise ValueError(f"unknown engine {engine!r}; known are {', '.join(map(repr, _CHOICES))}")


def create_engine(engine: str, problem: Problem) -> Engine:
    """Make an engine.

    Args:
        engine: a key of :data:`ENGINES`; ``"exact"`` for the cheapest exact one that can work on the problem; ``"auto"``
            for the same, which goes over to ``"differences"`` with a warning if an operation has no second derivative.
        problem: what it is to work on.

    Raises:
        ValueError: if the name is unknown or the named engine cannot work on the problem; the message says why.
    """
    check_engine(engine)
    if engine in ENGINES:
        reason = ENGINES[engine].refusal(problem)
        if reason is not None:
            raise ValueError(f'engine {engine!r} cannot be used here: {reason}; engine="auto" chooses one that can')
        return ENGINES[engine](problem)
    return FallingBackEngine(problem, allow_differences=engine == "auto")
