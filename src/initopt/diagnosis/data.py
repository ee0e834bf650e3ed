"""The data as a diagnosis sees them: inputs, targets, and the outputs of the model beside them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from initopt.batches.nested import named_tensors
from initopt.diagnosis.recording import real

__all__ = ["DataFacts", "OutputFacts", "Values"]

Task = Literal["classes", "binary", "regression"]

_MANY_CLASSES = 100_000


class Values:
    """Sums over the floating-point values of a tensor of every batch.

    Attributes:
        count: values seen.
        low: least of them.
        high: largest.
        broken: number of values that are infinite or not a number.
    """

    def __init__(self) -> None:
        self.count = self.broken = 0
        self.low, self.high = math.inf, -math.inf
        self._sum = self._square = 0.0
        self._features: tuple[Tensor, Tensor, int] | None = None

    def add(self, tensor: Tensor) -> None:
        """Add a tensor, its features along the second dimension."""
        values = real(tensor).double().cpu() if tensor.device.type == "mps" else real(tensor).double()
        finite = torch.isfinite(values)
        self.broken += int((~finite).sum())
        self.count += values.numel()
        values = torch.where(finite, values, torch.zeros_like(values))
        if not values.numel():
            return
        self.low, self.high = min(self.low, float(values.min())), max(self.high, float(values.max()))
        self._sum += float(values.sum())
        self._square += float(values.square().sum())
        if values.ndim < 2:
            return
        flat = values.movedim(1, -1).flatten(0, -2)
        sums, squares = flat.sum(0).cpu(), flat.square().sum(0).cpu()
        if self._features is None or self._features[0].shape != sums.shape:
            self._features = sums, squares, len(flat)
        else:
            self._features = self._features[0] + sums, self._features[1] + squares, self._features[2] + len(flat)

    @property
    def mean(self) -> float:
        """The mean."""
        return self._sum / self.count if self.count else math.nan

    @property
    def deviation(self) -> float:
        """The standard deviation."""
        return math.sqrt(max(self._square / self.count - self.mean**2, 0.0)) if self.count else math.nan

    @property
    def rms(self) -> float:
        """The root mean square."""
        return math.sqrt(self._square / self.count) if self.count else math.nan

    def feature_deviations(self) -> list[float]:
        """The standard deviation of every feature, for inputs that have features."""
        if self._features is None:
            return []
        sums, squares, count = self._features
        found: list[float] = (squares / count - (sums / count).square()).clamp_min(0).sqrt().tolist()
        return found


@dataclass(eq=False)
class DataFacts:
    """The facts about inputs and targets that were seen.

    Attributes:
        task: the kind of loss, as far as it can be told.
        samples: number of samples that were seen.
        inputs: floating-point inputs by the expression that reaches them.
        repeated: number of samples that had been seen before, with all their inputs.
        classes: how often each label was seen, of integer targets.
        targets: sums over floating-point targets.
    """

    task: Task | None = None
    samples: int = 0
    inputs: dict[str, Values] = field(default_factory=dict)
    repeated: int = 0
    classes: Counter[int] = field(default_factory=Counter)
    targets: Values = field(default_factory=Values)
    _given: Any = None
    _seen: set[tuple[float, ...]] = field(default_factory=set)

    @classmethod
    def of(cls, criterion: Any) -> DataFacts:
        """No facts yet, for the loss that the user gave."""
        return cls(_given=criterion)

    def add(self, batch: Any, size: int) -> None:
        """Look at a batch of so many samples."""
        self.samples += size
        inputs, targets = _parts(batch)
        tensors = dict(named_tensors(inputs, "inputs"))
        for name, tensor in tensors.items():
            if tensor.is_floating_point():
                self.inputs.setdefault(name, Values()).add(tensor)
        self._count_repeated([t for t in tensors.values() if t.ndim > 0 and len(t) == size], size)
        if not isinstance(targets, Tensor):
            return
        given = self._given
        ignored = getattr(given, "ignore_index", -100)
        if targets.is_floating_point():
            self.targets.add(targets)
            if isinstance(given, nn.MSELoss):
                self.task = "regression"
            elif isinstance(given, (nn.BCEWithLogitsLoss, nn.BCELoss)):
                self.task = "binary"
        elif not targets.is_complex():
            counted = targets.flatten()[targets.flatten() != ignored]
            labels, counts = torch.unique(counted, return_counts=True)
            if len(labels) <= _MANY_CLASSES:
                self.classes.update(dict(zip(labels.tolist(), counts.tolist(), strict=True)))
            if given is None or isinstance(given, (nn.CrossEntropyLoss, nn.NLLLoss)):
                self.task = "classes"

    def _count_repeated(self, tensors: list[Tensor], size: int) -> None:
        if not tensors:
            return
        marks = []
        for tensor in tensors:
            flat = (
                torch.nan_to_num(real(tensor).flatten(1) if tensor.ndim > 1 else real(tensor).unsqueeze(1)).cpu().double()
            )
            generator = torch.Generator("cpu").manual_seed(flat.shape[1])
            weights = torch.randn(flat.shape[1], 2, generator=generator, dtype=torch.float64, device="cpu")
            marks.append(flat @ weights)
        for mark in torch.cat(marks, 1).tolist():
            key = tuple(mark)
            self.repeated += key in self._seen
            self._seen.add(key)

    @property
    def prior(self) -> list[float]:
        """The shares of the labels that were seen, the largest first."""
        total = sum(self.classes.values())
        return [count / total for _, count in self.classes.most_common()] if total else []

    @property
    def prior_entropy(self) -> float:
        """The loss of an output that states the frequencies of the classes, in nats; nan if these are not known."""
        if self.task == "binary":
            share = self.targets.mean
            return -sum(p * math.log(p) for p in (share, 1 - share) if p > 0) if 0 <= share <= 1 else math.nan
        return -sum(p * math.log(p) for p in self.prior) if self.task == "classes" and self.prior else math.nan


def _parts(batch: Any) -> tuple[Any, Any]:
    """Inputs and targets of a batch, as far as it shows which these are."""
    if isinstance(batch, (tuple, list)) and len(batch) == 2:
        return batch[0], batch[1]
    if isinstance(batch, Mapping):
        return {key: value for key, value in batch.items() if key != "labels"}, batch.get("labels")
    return batch, None


@dataclass(eq=False)
class OutputFacts:
    """The facts about the output of the model that were seen: of its first tensor, or its ``logits``.

    Attributes:
        channels: entries along the dimension of an output bias; 0 if there are none.
        values: sums over all of it.
        chosen: how often each channel was the largest.
    """

    channels: int = 0
    values: Values = field(default_factory=Values)
    chosen: Counter[int] = field(default_factory=Counter)

    def add(self, output: Any, channel_of: Callable[[Tensor], int | None]) -> None:
        """Add the output of a pass."""
        tensor = getattr(output, "logits", None)
        if not isinstance(tensor, Tensor):
            tensor = next(_floating(output), None)
        if tensor is None or tensor.numel() == 0:
            return
        tensor = tensor.detach()
        self.values.add(tensor)
        try:
            channel = channel_of(tensor)
        except Exception:  # the loss is of another form than the output suggests
            channel = None
        if channel is None or channel >= tensor.ndim:
            return
        self.channels = tensor.shape[channel]
        labels, counts = torch.unique(tensor.argmax(channel).flatten(), return_counts=True)
        self.chosen.update(dict(zip(labels.tolist(), counts.tolist(), strict=True)))


def _floating(output: Any) -> Iterator[Tensor]:
    items = output.to_tuple() if hasattr(output, "to_tuple") else output
    return (tensor for _, tensor in named_tensors(items, "output") if tensor.is_floating_point())
