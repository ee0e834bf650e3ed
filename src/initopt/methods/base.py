"""The interface of methods: what to do in a step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from torch import Tensor

from initopt.checks import plain_numbers
from initopt.engines import Engine
from initopt.parameters import ParameterFilter
from initopt.preserve import Originals
from initopt.problem import BatchNorm, Problem, Split
from initopt.records import Record, steps_taken
from initopt.schemes import check_scheme

__all__ = ["Method", "MethodRun", "check_start"]


@dataclass(frozen=True)
class Method(ABC):
    """An initialization method with its options, checked when it is made.

    A method is a frozen dataclass: its fields are its options, its defaults are theirs. What a run of it accumulates
    lives in the :class:`MethodRun` that :meth:`start` returns.
    """

    name: ClassVar[str]

    steps: int
    num_subbatches: int
    grad_params: ParameterFilter | None
    scale_params: ParameterFilter | None
    engine: str
    train_mode: bool

    def __post_init__(self) -> None:
        for option in fields(self):  # so that they can be stored: numbers of NumPy as Python's own
            object.__setattr__(self, option.name, plain_numbers(getattr(self, option.name)))

    # How batches are split and normalized, for the measurements before and after; options of a method that has a say.

    @property
    def overlap(self) -> float:
        """Overlap ratio of the sub-batches."""
        return 0.0

    @property
    def split(self) -> Split:
        """Rule of splitting."""
        return "cyclic"

    @property
    def batch_norm(self) -> BatchNorm:
        """Whose statistics normalize."""
        return "subbatch"

    @property
    def scheme(self) -> str | None:
        """The scheme whose weights are the start, one of :data:`initopt.schemes.NAMES`; the model's own, if ``None``."""
        return None

    @property
    def batches_per_step(self) -> int:
        """The most batches that a step takes."""
        return 1

    def batches_taken(self, history: Sequence[Record]) -> int:
        """How many batches the steps of a history have taken."""
        return steps_taken(history) * self.batches_per_step

    @abstractmethod
    def start(self, problem: Problem, engine: Engine, originals: Originals) -> MethodRun:
        """Begin on a problem, whose weights are the ones at the start, those of the scheme if there is one."""


def check_start(scheme: str | None) -> None:
    """Refuse an unknown scheme with a ValueError that lists the known ones."""
    if scheme is not None:
        check_scheme(scheme)


class MethodRun(ABC):
    """A method at work on one model."""

    @abstractmethod
    def step(self, number: int, batches: Iterator[Any]) -> Sequence[Record]:
        """Do one step, which changes the weights.

        Args:
            number: of the step, from 0.
            batches: gives batches as the user's loader gave them; at most ``batches_per_step`` are to be taken.

        Returns:
            The record of the step; a method that goes from layer to layer gives one for each.
        """

    @abstractmethod
    def scales(self) -> dict[str, float]:
        """The scale of every tensor so far, by parameter name."""

    @abstractmethod
    def state(self) -> dict[str, Tensor]:
        """All that later steps depend on, but for the weights at the start."""

    @abstractmethod
    def load_state(self, state: dict[str, Tensor]) -> None:
        """Go on from a state: the inverse of :meth:`state`; sets the weights, too."""
