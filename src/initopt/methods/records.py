"""The records of a run: one per step, or, for methods that go from layer to layer, one per layer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from initopt._support.reading import of_form

__all__ = ["LayerRecord", "Record", "StepRecord", "history_from", "steps_taken"]


@dataclass(frozen=True)
class Record(ABC):
    """An entry of the history: a frozen dataclass of numbers and strings, so that it can be stored.

    Attributes:
        step: number of the step, from 0.
    """

    step: int

    @abstractmethod
    def summary(self) -> str:
        """The figures for a progress bar."""


@dataclass(frozen=True)
class StepRecord(Record):
    """One step of a method, as it was before the step's own update.

    A method leaves at ``None`` what it does not compute.

    Attributes:
        step: number of the step, from 0.
        grad_cosine: GradCosine of the step's batch; methods that do not split batches have none.
        grad_norm: norm of the gradient that the method looks at: with sub-batches, the mean of theirs.
        grad_variance: population variance of the sub-batch gradients.
        objective: value of the method's objective, also in a step that enforced the constraint instead, unless it takes
            work of its own.
        constrained: whether the gradient norm exceeded its bound, so that the step lowered it.
        seconds: wall-clock time of the step, without loading the batch.
        centred_grad_norm: mean norm of the centred gradients of the sub-batches, in a step on these. Then ``grad_cosine``,
            ``grad_variance`` and ``objective`` are theirs, too, while ``grad_norm`` is that of the whole gradient of one
            sub-batch.
        noise_cosine: the GradCosine that sub-batches with these shared samples have without any common gradient; 0 if they
            share none (:meth:`initopt.batches.subbatches.SubBatches.noise_cosine`).
        predicted_decrease: share of the loss that the first step of the user's optimizer is predicted to take off, where
            NIO bounds it (``max_decrease``).
    """

    grad_cosine: float | None
    grad_norm: float | None
    grad_variance: float | None
    objective: float | None
    constrained: bool
    seconds: float
    centred_grad_norm: float | None = None
    noise_cosine: float | None = None
    predicted_decrease: float | None = None

    def summary(self) -> str:
        shown = (
            ("GradCosine", self.grad_cosine, "+.3f"),
            ("objective", self.objective if self.grad_cosine is None else None, ".4g"),
            ("gradient norm", self.grad_norm, ".3g"),
        )
        return "  ".join(f"{name} {value:{form}}" for name, value, form in shown if value is not None)


@dataclass(frozen=True)
class LayerRecord(Record):
    """One layer, as a method that goes from layer to layer has changed it.

    Attributes:
        step: number of the pass over the network, from 0.
        layer: name of the layer, in the order in which the layers run.
        variance_before: variance of the layer's output at its turn, after the layers before it.
        variance_after: the same with its new weight.
        iterations: how often its weight was rescaled.
        seconds: wall-clock time spent on it.
    """

    layer: str
    variance_before: float
    variance_after: float
    iterations: int
    seconds: float

    def summary(self) -> str:
        return f"{self.layer}: variance {self.variance_before:.3g} to {self.variance_after:.3g}"


def history_from(found: Any, kind: type[Record]) -> list[Record]:
    """The records of a run, from their JSON form.

    Args:
        found: the JSON form.
        kind: the class of the method's records.

    Raises:
        ValueError: if they are not records, or not one step after the other; the message says where.
    """
    records: list[Record] = []
    for number, values in enumerate(of_form(list[dict[str, Any]], found, "history")):
        record = of_form(kind, values, f"history[{number}]")
        if record.step - steps_taken(records) not in ((0, -1) if records else (0,)):
            raise ValueError(f"history[{number}] is step {record.step}, after {steps_taken(records)} steps")
        records.append(record)
    return records


def steps_taken(history: Sequence[Record]) -> int:
    """The number of steps in a history."""
    return history[-1].step + 1 if history else 0
