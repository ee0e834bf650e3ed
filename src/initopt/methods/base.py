"""The interface of methods: what to do in a step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from torch import Tensor

from initopt.checks import plain_numbers
from initopt.engines import Engine
from initopt.parameters import ParameterFilter
from initopt.preserve import Originals
from initopt.problem import BatchNorm, Problem, Split, check_memory
from initopt.result import StepRecord

__all__ = ["Method", "MethodRun"]


@dataclass(frozen=True)
class Method(ABC):
    """An initialization method with its options, checked when it is made.

    A method is a frozen dataclass: its fields are its options, its defaults are theirs. What a run of it accumulates
    lives in the :class:`MethodRun` that :meth:`start` returns.
    """

    name: ClassVar[str]
    batches_per_step: ClassVar[int] = 1

    steps: int
    num_subbatches: int
    overlap: float
    split: Split
    batch_norm: BatchNorm
    grad_params: ParameterFilter | None
    scale_params: ParameterFilter | None
    engine: str
    train_mode: bool
    microbatch: int | None = None
    memory_budget: float | None = None

    def __post_init__(self) -> None:
        for option in fields(self):  # so that they can be stored: numbers of NumPy as Python's own
            object.__setattr__(self, option.name, plain_numbers(getattr(self, option.name)))
        check_memory(self.microbatch, self.memory_budget)

    @abstractmethod
    def start(self, problem: Problem, engine: Engine, originals: Originals) -> MethodRun:
        """Begin on a problem, whose weights are the original ones."""


class MethodRun(ABC):
    """A method at work on one model."""

    @abstractmethod
    def step(self, number: int, batches: list[Any]) -> tuple[StepRecord, Tensor]:
        """Do one step, which changes the weights.

        Args:
            number: of the step, from 0.
            batches: ``batches_per_step`` batches as the user's loader gave them.

        Returns:
            the record of the step, and the Gram matrix of its batch.
        """

    @abstractmethod
    def scales(self) -> dict[str, float]:
        """The scale of every tensor so far, by parameter name."""

    @abstractmethod
    def state(self) -> dict[str, Tensor]:
        """All that later steps depend on, but for the original weights."""

    @abstractmethod
    def load_state(self, state: dict[str, Tensor]) -> None:
        """Go on from a state: the inverse of :meth:`state`; sets the weights, too."""
