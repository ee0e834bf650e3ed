"""What a run is to do."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from initopt._support.files import check_file
from initopt._support.progress import Progress
from initopt.methods import Measuring, Method, Record
from initopt.model.losses import Loss
from initopt.model.parameters import Parameters
from initopt.model.ranks import Alone, Ranks
from initopt.runs.verdict import OnHarm

__all__ = ["Callback", "Settings", "Task", "as_callbacks", "checkpoint_file"]

Callback = Callable[[Record], object]
"""Is called with each record when its step is done."""


@dataclass(frozen=True)
class Settings:
    """What is the same for all methods; see :func:`initopt.optimize`."""

    measuring: Measuring | None
    measure_batches: int
    seed: int | None
    progress: Progress
    callbacks: tuple[Callback, ...]
    checkpoint: Path | None
    checkpoint_every: int
    on_harm: OnHarm
    allow_trained: bool


@dataclass(frozen=True)
class Task:
    """What a run is to do, all of it checked.

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


def as_callbacks(callbacks: Callback | Iterable[Callback]) -> tuple[Callback, ...]:
    """One function or several, as a tuple; a TypeError for anything else."""
    several = (callbacks,) if callable(callbacks) else tuple(callbacks)
    for callback in several:
        if not callable(callback):
            raise TypeError(f"a callback is a function of a step record; got {type(callback).__name__}")
    return several


def checkpoint_file(checkpoint: str | os.PathLike[str]) -> Path:
    """The absolute path of a checkpoint, into which a file can be written."""
    path = Path(checkpoint).expanduser().absolute()
    check_file(path, f"checkpoint={str(checkpoint)!r}")
    return path
