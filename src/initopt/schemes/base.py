"""The interface of schemes: what they are given, and what they make of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from initopt._support.checks import with_plain_numbers
from initopt.batches.nested import batch_size, map_tensors, to_device
from initopt.model.losses import Loss
from initopt.model.modes import measuring
from initopt.model.parameters import NamedParameter
from initopt.model.randomness import seeded
from initopt.model.state import StateGuard

__all__ = ["Drawn", "Scheme", "Subject"]


@dataclass(frozen=True)
class Subject:
    """A model that is to have new weights.

    Attributes:
        model: the model, whose parameters a scheme leaves as they are.
        chosen: the trainable parameters that may change.
        loss: runs the model on the batch.
        batch: a batch, or ``None``.
        seed: of all that is drawn.
        state: the guard of buffers and attributes.
    """

    model: nn.Module
    chosen: list[NamedParameter]
    loss: Loss
    batch: Any
    seed: int
    state: StateGuard

    @property
    def names(self) -> dict[nn.Parameter, str]:
        """The names of the parameters that may change."""
        return {parameter.value: parameter.name for parameter in self.chosen}

    def generator(self) -> torch.Generator:
        """A generator on the CPU, so that the draws are the same on every device."""
        return torch.Generator("cpu").manual_seed(self.seed)

    def run(self, *watches: AbstractContextManager[Any]) -> None:
        """Run the model on the batch, in measuring mode, inside of blocks that watch it."""
        data = map_tensors(torch.clone, to_device(self.batch, next(self.model.parameters()).device))
        with measuring(self.model), seeded(self.seed), self.state.running(), ExitStack() as stack:
            for watch in watches:
                stack.enter_context(watch)
            self.loss(self.model, data, batch_size(data))


@dataclass(frozen=True)
class Drawn:
    """New values of parameters.

    Attributes:
        values: of those that change, on any device.
        gains: of those that were drawn with one.
        nonlinearities: the nonlinearity that follows each of these, where one was seen.
        roles: the role in which a scheme takes each parameter, if it tells parameters apart.
    """

    values: dict[nn.Parameter, Tensor]
    gains: Mapping[nn.Parameter, float] = field(default_factory=dict)
    nonlinearities: Mapping[nn.Parameter, str] = field(default_factory=dict)
    roles: Mapping[nn.Parameter, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Scheme(ABC):
    """A scheme with its options, checked when it is made: a frozen dataclass, whose fields are the options."""

    name: ClassVar[str]
    """Name of the scheme."""
    needs_batch: ClassVar[bool] = False
    """Whether the scheme has to see the model run on a batch."""
    one_by_one: ClassVar[bool] = False
    """Whether the scheme draws tensor by tensor by their shapes, and so works on a model sharded over devices."""

    def __post_init__(self) -> None:
        with_plain_numbers(self)

    @abstractmethod
    def draw(self, subject: Subject) -> Drawn:
        """New values, computed on the CPU in single precision or more."""

    def options(self) -> dict[str, Any]:
        """The options that differ from their defaults."""
        return {f.name: value for f in fields(self) if (value := getattr(self, f.name)) != f.default}

    def as_plain(self) -> str | dict[str, Any]:
        """The form of the scheme in files: its name, with any options that differ from their defaults."""
        options = self.options()
        return {"scheme": self.name, **options} if options else self.name
