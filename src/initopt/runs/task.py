"""What a run is to do."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from initopt._support.checks import check_choice, check_flag, check_integer
from initopt._support.files import check_file
from initopt._support.progress import Progress
from initopt.methods import Measuring, Method, Record
from initopt.model.losses import Loss
from initopt.model.parameters import Parameters
from initopt.model.problem import Problem
from initopt.model.ranks import Alone, Ranks
from initopt.model.shard_passes import ShardPasses
from initopt.model.state import StateGuard
from initopt.runs.verdict import ON_HARM, OnHarm

__all__ = ["Callback", "Settings", "Task"]

Callback = Callable[[Record], object]
"""Is called with each record when its step is done."""


@dataclass(frozen=True)
class Settings:
    """The settings of a run that are the same for all methods; see :func:`initopt.optimize`."""

    measuring: Measuring | None
    measure_batches: int
    seed: int | None
    progress: Progress
    callbacks: tuple[Callback, ...]
    checkpoint: Path | None
    checkpoint_every: int
    on_harm: OnHarm
    allow_trained: bool
    diagnose: bool

    @classmethod
    def checked(
        cls,
        *,
        callbacks: Callback | Iterable[Callback],
        checkpoint: str | os.PathLike[str] | None,
        **others: Any,
    ) -> Settings:
        """Settings as a user gives them.

        Raises:
            ValueError, TypeError: for what cannot be; the message says what can.
        """
        check_choice("on_harm", others["on_harm"], ON_HARM)
        check_flag("allow_trained", others["allow_trained"])
        check_flag("diagnose", others["diagnose"])
        others["measure_batches"] = check_integer("measure_batches", others["measure_batches"], 0)
        others["checkpoint_every"] = check_integer("checkpoint_every", others["checkpoint_every"], 1)
        if others["seed"] is not None:
            others["seed"] = check_integer("seed", others["seed"], 0)
        file = None if checkpoint is None else _file(checkpoint)
        return cls(callbacks=_functions(callbacks), checkpoint=file, **others)


@dataclass(frozen=True)
class Task:
    """A run that is to be done, all of it checked.

    Attributes:
        model: the model.
        batches: the user's batches.
        loss: the loss.
        method: what to run.
        how: gradients are computed.
        parameters: of the model.
        settings: and all that is the same for all methods.
        ranks: the processes that do it together.
        shards: the passes of a model that stays in parts on these; ``None`` for one that is whole.
    """

    model: nn.Module
    batches: Iterable[Any]
    loss: Loss
    method: Method
    how: Measuring
    parameters: Parameters
    settings: Settings
    ranks: Ranks = field(default_factory=Alone)
    shards: ShardPasses | None = None

    def problem(self, seed: int, state: StateGuard) -> Problem:
        """What engines work on.

        Args:
            seed: base of the seeds for what the model draws.
            state: the guard of what the model and the loss keep.
        """
        how, ranks, shards = self.how.subbatches(), self.ranks, self.shards
        return Problem(self.model, self.loss, self.parameters, how, seed, state=state, ranks=ranks, shards=shards)


def _functions(callbacks: Callback | Iterable[Callback]) -> tuple[Callback, ...]:
    several = (callbacks,) if callable(callbacks) else tuple(callbacks)
    for callback in several:
        if not callable(callback):
            raise TypeError(f"a callback is a function of a step record; got {type(callback).__name__}")
    return several


def _file(checkpoint: str | os.PathLike[str]) -> Path:
    path = Path(checkpoint).expanduser().absolute()
    check_file(path, f"checkpoint={str(checkpoint)!r}")
    return path
