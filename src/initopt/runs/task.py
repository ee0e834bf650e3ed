"""What a run is to do."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from initopt._support.progress import Progress
from initopt.methods import Measuring, Method, Record
from initopt.model.losses import Loss
from initopt.model.parameters import Parameters
from initopt.model.ranks import Alone, Ranks
from initopt.runs.verdict import OnHarm

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
    """

    model: nn.Module
    batches: Iterable[Any]
    loss: Loss
    method: Method
    how: Measuring
    parameters: Parameters
    settings: Settings
    ranks: Ranks = field(default_factory=Alone)
