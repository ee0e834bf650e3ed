"""What a run is to do."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from torch import nn

from initopt._support.checks import check_choice, check_flag, check_integer
from initopt._support.errors import warn
from initopt._support.files import check_file
from initopt._support.progress import Progress
from initopt.methods import Measuring, Method, Record, find_method
from initopt.model.losses import Loss
from initopt.model.parameters import Parameters
from initopt.model.ranks import Alone, Ranks
from initopt.runs.verdict import ON_HARM, OnHarm

__all__ = ["ONCE_OF_ALL", "Callback", "Settings", "Task", "with_old_options"]

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
    """

    model: nn.Module
    batches: Iterable[Any]
    loss: Loss
    method: Method
    how: Measuring
    parameters: Parameters
    settings: Settings
    ranks: Ranks = field(default_factory=Alone)


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


ONCE_OF_ALL = ("num_subbatches", "engine", "grad_params")
"""Options that every method had, also those that never read them."""


def with_old_options(measuring: Measuring | None, method: str, options: dict[str, Any]) -> Measuring | None:
    """What configures the measurements; options of the method that used to do so are taken out of these, with a warning."""
    if not any(name in options for name in ONCE_OF_ALL):
        return measuring
    known = {option.name for option in fields(find_method(method))}
    old = {name: options.pop(name) for name in ONCE_OF_ALL if name in options and name not in known}
    if not old:
        return measuring
    if measuring is not None:
        raise TypeError(f"{', '.join(old)}: configures the measurements before and after; give it to Measuring(...) itself")
    shown = ", ".join(f"{name}=..." for name in old)
    warn(
        f"initopt: {', '.join(old)}: no option of the method {method!r}, but of the measurements before and after: pass "
        f"measuring=initopt.Measuring({shown}). The old form will go"
    )
    return Measuring(**old)
