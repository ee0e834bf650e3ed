"""The interface of methods: what to do in a step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from torch import Tensor

from initopt._support.checks import check_integer, plain_numbers
from initopt.engines import Engine
from initopt.engines.auto import check_engine
from initopt.gram.measurement import Measurement
from initopt.methods.records import Record, steps_taken
from initopt.model.parameters import ParameterFilter
from initopt.model.preserve import Originals
from initopt.model.problem import BatchNorm, Problem, Split, check_memory, check_splitting
from initopt.schemes import check_scheme

__all__ = ["Method", "MethodRun"]


@dataclass(frozen=True)
class Method(ABC):
    """An initialization method with its options, checked when it is made.

    A method is a frozen dataclass: its fields are its options, its defaults are theirs. What a run of it accumulates
    lives in the :class:`MethodRun` that :meth:`start` returns. The options that are here, every method has.

    Attributes:
        name: its name.
        steps: number of steps.
        num_subbatches: D, the number of sub-batches that an engine splits a batch into.
        grad_params: a function of (qualified name, parameter, owning module) that says which parameters make up the
            gradient; all that train, by default.
        scale_params: the same, for the tensors that get a scale.
        scheme: one of :data:`initopt.schemes.NAMES`, whose weights are the start; the model's own weights by default.
        engine: how gradients are computed: ``"auto"``, ``"exact"`` or a name in :data:`initopt.engines.ENGINES`.
        train_mode: whether the model runs wholly in training mode.
    """

    name: ClassVar[str]
    differentiates: ClassVar[bool] = True
    """Whether it takes second derivatives."""

    steps: int = 100
    num_subbatches: int = 4
    grad_params: ParameterFilter | None = None
    scale_params: ParameterFilter | None = None
    scheme: str | None = None
    engine: str = "auto"
    train_mode: bool = False

    def __post_init__(self) -> None:
        for option in fields(self):  # so that they can be stored: numbers of NumPy as Python's own
            object.__setattr__(self, option.name, plain_numbers(getattr(self, option.name)))
        check_memory(self.microbatch, self.memory_budget)
        check_integer("steps", self.steps, 1)
        check_splitting(self.num_subbatches, self.overlap, self.split, self.batch_norm)
        if self.scheme is not None:
            check_scheme(self.scheme)
        check_engine(self.engine)

    # How batches are split, normalized and run, for the measurements before and after; options of a method that has a say.

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
    def microbatch(self) -> int | None:
        """Most samples of a sub-batch to run at a time."""
        return None

    @property
    def memory_budget(self) -> float | None:
        """Bytes that an engine may take."""
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

    def left_alone(self) -> dict[str, list[str]]:
        """The names of the tensors that the method does not touch, by the reason."""
        return {}

    def harm(self, before: Measurement, after: Measurement) -> str | None:
        """Why the new weights are worse than the old ones by the method's own standard, as a clause; ``None`` if not."""
        return None

    def gain(self, before: Measurement, after: Measurement) -> Tensor | None:
        """By how much the method has lowered what it minimizes, on each batch; ``None`` if it minimizes nothing."""
        return None

    @abstractmethod
    def state(self) -> dict[str, Tensor]:
        """All that later steps depend on, but for the weights at the start."""

    @abstractmethod
    def load_state(self, state: dict[str, Tensor]) -> None:
        """Go on from a state: the inverse of :meth:`state`; sets the weights, too."""
