"""The work at the start of a training, whatever the framework, with its figures and the batches it is done on."""

from __future__ import annotations

import copy
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader, IterableDataset, Sampler

from initopt import diagnosis
from initopt._api import optimize
from initopt._support._torch_private import forget_iterator
from initopt._support.checks import check_flag
from initopt._support.words import did_you_mean
from initopt.choice.learning_rate import find_lr
from initopt.choice.rate_result import LearningRates
from initopt.diagnosis import Diagnosis
from initopt.gram.measurement import Measurement
from initopt.methods import Method, create_method
from initopt.model.losses import LossFunction
from initopt.model.randomness import OwnGenerator, RandomState
from initopt.model.reach import Reach
from initopt.runs.result import Result

__all__ = [
    "Batches",
    "Calling",
    "Diagnosing",
    "FindingRate",
    "Initializing",
    "Work",
    "as_it_is",
    "bare_optimizer",
    "refuse_sharded",
    "undisturbed",
]


class Work(ABC):
    """Something to do with a model before its first training step, with the options that it was given.

    Attributes:
        changes: whether it changes the weights, which is not for a model that has been trained already.
    """

    changes = False

    @abstractmethod
    def __call__(
        self,
        model: nn.Module,
        batches: Iterable[Any],
        loss_fn: LossFunction | None,
        optimizer: Optimizer | None,
        **where: Any,
    ) -> Any:
        """Do it.

        Args:
            model: the model.
            batches: its training batches.
            loss_fn: its loss.
            optimizer: what it is going to be trained by.
            where: how several processes share the work.
        """

    @abstractmethod
    def figures(self, result: Any) -> dict[str, float]:
        """The figures of the result for a logger, by name."""


class Initializing(Work):
    """New weights from a method.

    Args:
        method: as for :func:`initopt.optimize`.
        options: of the method, if it is given by its name, and of :func:`initopt.optimize`.

    Raises:
        ValueError, TypeError: for an unknown method, or options that it does not have.
    """

    changes = True

    def __init__(self, method: str | Method, options: dict[str, Any]) -> None:
        of_run = _options_of(optimize) - {"method", "options"}
        self._method = create_method(method, {name: value for name, value in options.items() if name not in of_run})
        self._options = {name: value for name, value in options.items() if name in of_run}

    def __call__(
        self,
        model: nn.Module,
        batches: Iterable[Any],
        loss_fn: LossFunction | None,
        optimizer: Optimizer | None,
        **where: Any,
    ) -> Result:
        return optimize(model, batches, loss_fn, self._method, **self._options, **where)

    def figures(self, result: Result) -> dict[str, float]:
        found = {"initopt/seconds": result.seconds}
        for name, measured in {"before": result.before, "after": result.after}.items():
            if measured is not None:
                found |= {f"initopt/{figure}_{name}": value for figure, value in _measured(measured).items()}
        return found


def _measured(found: Measurement) -> dict[str, float]:
    return {"grad_cosine": found.grad_cosine, "grad_norm": found.grad_norm, "loss": found.loss}


class Calling(Work):
    """A function of initopt's, of a model, batches and a loss, that changes nothing.

    Args:
        function: what to call.
        options: of the function.

    Raises:
        TypeError: for an option that it does not have.
    """

    _given: frozenset[str] = frozenset()
    """Options that are not for the user to give."""

    def __init__(self, function: Callable[..., Any], options: dict[str, Any]) -> None:
        self._function, self._options = function, options
        known = sorted(_options_of(function) - self._given)
        for name in options:
            if name not in known:
                raise TypeError(f"{function.__name__}() has no option {name!r}{did_you_mean(name, known)}")

    def __call__(
        self,
        model: nn.Module,
        batches: Iterable[Any],
        loss_fn: LossFunction | None,
        optimizer: Optimizer | None,
        **where: Any,
    ) -> Any:
        return self._function(model, batches, loss_fn, **self._options, **where)

    def figures(self, result: Any) -> dict[str, float]:
        return {f"initopt/{name}": value for name, value in _measured(result).items()}


class Diagnosing(Calling):
    """A look at the start: :func:`initopt.diagnose`, by the optimizer there, in each process at its own batches."""

    def __init__(self, options: dict[str, Any]) -> None:
        super().__init__(diagnosis.diagnose, options)

    def __call__(
        self,
        model: nn.Module,
        batches: Iterable[Any],
        loss_fn: LossFunction | None,
        optimizer: Optimizer | None,
        **where: Any,
    ) -> Diagnosis:
        options = {"optimizer": optimizer} | self._options
        found: Diagnosis = diagnosis.diagnose(model, batches, loss_fn, **options)
        return found

    def figures(self, result: Diagnosis) -> dict[str, float]:
        counted = {"errors": "error", "warnings": "warning", "notes": "note"}
        return {
            f"initopt/{name}": float(sum(finding.severity == severity for finding in result.findings))
            for name, severity in counted.items()
        }


class FindingRate(Calling):
    """A search for the learning rates that suit the start: :func:`initopt.find_lr`, for the optimizer that is there.

    Args:
        set_rate: whether the optimizer is given the rate that was found.
        options: of :func:`initopt.find_lr`.
    """

    _given = frozenset({"optimizer", "step"})

    def __init__(self, set_rate: bool, options: dict[str, Any]) -> None:
        check_flag("set_rate", set_rate)
        super().__init__(find_lr, options)
        self._set_rate = set_rate

    def __call__(
        self,
        model: nn.Module,
        batches: Iterable[Any],
        loss_fn: LossFunction | None,
        optimizer: Optimizer | None,
        **where: Any,
    ) -> LearningRates:
        if optimizer is None:
            raise ValueError("find_lr is for a training with one optimizer, and this one has several, or none")
        found: LearningRates = find_lr(model, batches, at_its_peak(optimizer), loss_fn, **self._options, **where)
        return found

    def set(self, result: LearningRates, optimizer: Optimizer, schedulers: Iterable[Any]) -> None:
        """Give an optimizer, and the schedules of its rates, the rate that was found, if they are to have it."""
        if not self._set_rate or result.suggested is None:
            return
        factor = result.suggested / at_its_peak(optimizer).param_groups[0]["lr"]
        for group in optimizer.param_groups:
            group |= {name: group[name] * factor for name in ("lr", "initial_lr") if name in group}
        for scheduler in schedulers:
            if hasattr(scheduler, "base_lrs"):
                scheduler.base_lrs = [rate * factor for rate in scheduler.base_lrs]

    def figures(self, result: LearningRates) -> dict[str, float]:
        found = {"initopt/suggested_lr": result.suggested, "initopt/largest_stable_lr": result.largest_stable}
        return {name: value for name, value in found.items() if value is not None}


def at_its_peak(optimizer: Optimizer) -> Optimizer:
    """An optimizer with the rates that the schedules of its rates multiply: at the start of a warm-up, it has others."""
    peak = copy.copy(optimizer)
    peak.param_groups = [group | {"lr": group.get("initial_lr", group["lr"])} for group in optimizer.param_groups]
    return peak


def _options_of(function: Callable[..., Any]) -> set[str]:
    """The keyword arguments of a function that are for the user of a framework to give."""
    return set(inspect.signature(function).parameters) - {"model", "batches", "loader", "loss_fn", "process_group"}


def refuse_sharded(what: str) -> None:
    """Refuse a way to train that spreads the weights over processes.

    Raises:
        ValueError: says what is spread by whom, and what to do.
    """
    raise ValueError(
        f"{what} spreads the weights over processes in a way that initopt does not know here. It knows DDP and fully_shard "
        "(ModelParallelStrategy in Lightning and Fabric, FSDP of version 2 in Accelerate and transformers). Or call "
        "initopt.nio before the weights are spread, and begin from its"
    )


def as_it_is(batch: Any) -> Any:
    """The batch, for a framework that does nothing to it before a step."""
    return batch


def bare_optimizer(optimizer: Any) -> Optimizer | None:
    """The optimizer that Accelerate or Fabric have wrapped."""
    while isinstance(inner := getattr(optimizer, "optimizer", None), Optimizer):
        optimizer = inner
    return optimizer if isinstance(optimizer, Optimizer) else None


class Batches(IterableDataset[Any]):
    """The batches of a training loader as a training step gets them.

    It counts as a data set, so that what the loaders draw from is found in it.

    Args:
        loader: gives the batches.
        prepared: what the framework does to a batch before a step.
        length: how many there are, if that is known.
    """

    def __init__(
        self,
        loader: Iterable[Any],
        prepared: Callable[[Any], Any],
        length: int | None,
    ) -> None:
        self.loader = loader
        self.sources = [keeper for keeper in _keepers([loader]) if isinstance(keeper, (DataLoader, Sampler))]
        self._prepared, self._length = prepared, length

    def __iter__(self) -> Iterator[Any]:
        for batch in self.loader:
            yield self._prepared(batch)

    def __len__(self) -> int:
        if self._length is None:
            raise TypeError("the loader does not say how many batches it has")
        return self._length


@contextmanager
def undisturbed(*loaders: Any) -> Iterator[None]:
    """A block that iterates over training loaders, after which they give what they would have given without it.

    Loaders keep books of their epochs, which order and shuffling follow from; so do samplers, and what Accelerate keeps of
    the loader that is at work. A training loop may hold an iterator already, whose worker processes go on to be its own.
    """
    randomness = RandomState.now()
    keepers = _keepers(loaders)
    generators = [
        OwnGenerator(generator) for generator in Reach.of([list(vars(each).values()) for each in keepers]).generators
    ]
    books = [_Book(keeper) for keeper in keepers]
    for keeper in keepers:
        if isinstance(keeper, DataLoader):
            forget_iterator(keeper)
    try:
        yield
    finally:
        for book in books:
            book.put_back()
        for generator in generators:
            generator.put_back()
        randomness.put_back()


@dataclass
class _Book:
    """What an object keeps in attributes, and in lists and dicts of these, as it is now."""

    keeper: Any
    _attributes: dict[str, Any] = field(init=False)
    _contents: list[tuple[Any, Any]] = field(init=False)

    def __post_init__(self) -> None:
        self._attributes = dict(vars(self.keeper))
        self._contents = [(value, value.copy()) for value in self._attributes.values() if type(value) in (list, dict)]

    def put_back(self) -> None:
        now = vars(self.keeper)
        for name in [name for name in now if name not in self._attributes]:
            del now[name]
        now.update(self._attributes)
        for value, before in self._contents:
            if isinstance(value, list):
                value[:] = before
            else:
                value.clear()
                value.update(before)


_OF_LOADERS = ("accelerate.", "lightning.", "lightning_fabric.", "pytorch_lightning.")
"""Packages whose objects keep books of loaders, beside loaders and samplers themselves."""


def _keepers(loaders: Iterable[Any]) -> list[Any]:
    """Loaders, their samplers and their like, to any depth."""
    found: dict[int, Any] = {}
    waiting = list(loaders)
    while waiting:
        each = waiting.pop()
        if isinstance(each, (list, tuple)):
            waiting.extend(each)
        elif isinstance(each, dict):
            waiting.extend(each.values())
        elif id(each) not in found and _keeps_books(each):
            found[id(each)] = each
            waiting.extend(vars(each).values())
    return list(found.values())


def _keeps_books(value: Any) -> bool:
    if not hasattr(value, "__dict__") or isinstance(value, (type, nn.Module)):
        return False
    return isinstance(value, (DataLoader, Sampler)) or type(value).__module__.startswith(_OF_LOADERS)
