"""The interface of methods: what to do in a step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar

from torch import Tensor

from initopt._support.checks import check_integer, check_number, with_plain_numbers
from initopt.batches.subbatches import BatchNorm, Split, SubBatches
from initopt.engines import Engine
from initopt.engines.auto import check_engine
from initopt.gram.measurement import Measurement
from initopt.methods.records import Record, StepRecord, steps_taken
from initopt.model.parameters import ParameterFilter
from initopt.model.preserve import Originals
from initopt.model.problem import Problem
from initopt.schemes import Scheme, check_scheme
from initopt.training.optimizers import OptimizerFactory

__all__ = ["Measuring", "Method", "MethodRun", "Training"]


@dataclass(frozen=True, kw_only=True)
class Measuring:
    """How the gradients of sub-batches are computed; checked when it is made.

    :func:`initopt.measure` and :class:`initopt.methods.NIO` have these options themselves. For other methods, they
    configure the measurements before and after:
    ``optimize(..., method=GradInit(), measuring=Measuring(num_subbatches=8))``.

    Attributes:
        num_subbatches: D, the number of sub-batches that each batch is split into, 2 to the batch size.
        overlap: share by which sub-batches overlap, in [0, 1). Shared samples raise GradCosine.
        split: ``"cyclic"``, equal windows, or ``"published"``, those of the published code
            (:class:`initopt.batches.subbatches.SubBatches`).
        batch_norm: ``"subbatch"``: batch norms use the statistics of each sub-batch; ``"batch"``: of the whole batch, as
            the published code does. Running statistics are neither used nor changed.
        grad_params: a function of (qualified name, parameter, owning module) that says which parameters make up the
            gradient; all that train, by default.
        engine: how gradients are computed: ``"auto"``, ``"exact"`` or a name in :data:`initopt.engines.ENGINES`.
        microbatch: most samples of a sub-batch to run at a time, whose gradients are accumulated: for sub-batches that do
            not fit into memory. Whole sub-batches by default. Where memory runs out, it is halved, with a warning. Needs a
            loss that is a mean over samples, and no batch norm on the statistics of the sub-batch.
        memory_budget: bytes that ``engine="auto"`` may take beside the model and the batch; by default, what is free.

    Raises:
        ValueError: for a value that cannot work; the message says what was given and what is allowed.

    >>> Measuring(num_subbatches=8).subbatches().count
    8
    """

    num_subbatches: int = 4
    overlap: float = 0.0
    split: Split = "cyclic"
    batch_norm: BatchNorm = "subbatch"
    grad_params: ParameterFilter | None = None
    engine: str = "auto"
    microbatch: int | None = None
    memory_budget: float | None = None

    def __post_init__(self) -> None:
        with_plain_numbers(self)
        if self.memory_budget is not None:
            check_number("memory_budget", self.memory_budget, above=0)
        check_engine(self.engine)
        self.subbatches()  # which checks the others

    def subbatches(self) -> SubBatches:
        """The settings by which a batch is split and its sub-batches are run."""
        return SubBatches(
            count=self.num_subbatches,
            overlap=self.overlap,
            split=self.split,
            batch_norm=self.batch_norm,
            microbatch=self.microbatch,
        )


@dataclass(frozen=True, kw_only=True)
class Training:
    """The training that follows, for methods that take it into account.

    Attributes:
        optimizer: a function that makes the optimizer, or the optimizer itself, at the learning rate of the training's
            first steps.
        clip_grad_norm: the norm that gradients are clipped to; none, by default.
        trial_steps: training steps of a trial of the new weights, at most; 0 for none.
        max_decrease: bound on the share of the loss that the optimizer's first step is predicted to take off; none, by
            default.
    """

    optimizer: OptimizerFactory
    clip_grad_norm: float | None = None
    trial_steps: int = 20
    max_decrease: float | None = None


@dataclass(frozen=True, kw_only=True)
class Method(ABC):
    """An initialization method with its options, checked when it is made.

    A method is a frozen dataclass: its fields are its options, and its docstring is their documentation. The state of a run
    lives in the :class:`MethodRun` that :meth:`start` returns. Every method has the options that are here.

    Attributes:
        steps: number of steps.
        scale_params: a function of (qualified name, parameter, owning module) that says which tensors get a scale; all
            that train, by default.
        scheme: one of :data:`initopt.schemes.NAMES`, or a :class:`initopt.schemes.Scheme` with its options, whose weights,
            drawn with ``seed``, are the start to which the scales refer; the model's own weights by default.
            ``Result.before`` is of the model's own in either case.
        train_mode: run the model wholly in training mode, dropout included; by default, everything that only adds noise
            is off.
    """

    name: ClassVar[str]
    """Name of the method."""
    differentiates: ClassVar[bool] = True
    """Whether the method takes second derivatives."""
    unites: ClassVar[bool] = True
    """Whether its steps are right where each rank has a share of every batch, and derivatives are those of all ranks."""
    works_in_parts: ClassVar[bool] = False
    """Whether it knows of the model only what the engine and :mod:`initopt.engines.gradients` say, so that this may stay in
    parts on several devices."""
    record: ClassVar[type[Record]] = StepRecord
    """What its steps leave in the history; a plug-in may have a class of its own."""

    steps: int = 100
    scale_params: ParameterFilter | None = None
    scheme: str | Scheme | None = None
    train_mode: bool = False

    def __post_init__(self) -> None:
        with_plain_numbers(self)
        check_integer("steps", self.steps, 1)
        if self.scheme is not None:
            check_scheme(self.scheme)

    def measuring(self, asked: Measuring | None) -> Measuring:
        """The settings of gradients in a run: the caller's, except for those that are options of the method.

        Raises:
            TypeError: if the caller asks for another value of an option of the method.
        """
        if asked is not None and not isinstance(asked, Measuring):
            raise TypeError(f"measuring must be an initopt.Measuring; got {type(asked).__name__}")
        own = {option.name: getattr(self, option.name) for option in fields(Measuring) if hasattr(self, option.name)}
        if asked is None:
            return Measuring(**own)
        differing = [name for name, value in own.items() if getattr(asked, name) != value]
        if differing:
            raise TypeError(
                f"measuring= has {', '.join(differing)}, of which the method {self.name!r} has options of its own; give "
                "them to the method"
            )
        return replace(asked, **own)

    @property
    def training(self) -> Training | None:
        """The training that follows, by which the new weights are tried, if the method is told of it."""
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
        """Begin a run on a problem whose weights are those of the start: of the scheme, if there is one."""


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
        """The reason why the new weights are worse by the method's own standard, as a clause; ``None`` if they are not."""
        return None

    def gain(self, before: Measurement, after: Measurement) -> Tensor | None:
        """The amount by which the method has lowered what it minimizes, on each batch; ``None`` if it minimizes nothing."""
        return None

    @abstractmethod
    def state(self) -> dict[str, Tensor]:
        """The state that later steps depend on, except for the weights at the start."""

    @abstractmethod
    def load_state(self, state: dict[str, Tensor]) -> None:
        """Go on from a state: the inverse of :meth:`state`; sets the weights, too."""
