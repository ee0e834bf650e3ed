"""How every run of a comparison is trained."""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal, get_args

import torch
from torch import nn

from initopt._support.checks import check_integer, check_number, plain_numbers
from initopt._support.words import did_you_mean
from initopt.comparison.storage.record import MOST_POINTS
from initopt.model.parameters import ParameterFilter, as_predicate, trainable_parameters

__all__ = ["OPTIMIZERS", "Recipe", "lr_factor"]

OPTIMIZERS: dict[str, type[torch.optim.Optimizer]] = {
    "sgd": torch.optim.SGD,
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
}
"""Every optimizer by name."""

Schedule = Literal["constant", "cosine", "linear"]
Optimizer = Literal["sgd", "adam", "adamw"]
Precision = Literal["32-true", "16-mixed", "bf16-mixed", "16-true", "bf16-true", "64-true"]


@dataclass(frozen=True)
class Recipe:
    """How a network is trained from its start.

    Checked when it is made. A network or an initialization may change single fields of it.

    Args:
        optimizer: ``"sgd"``, ``"adam"`` or ``"adamw"``.
        optimizer_options: further arguments of the class in ``torch.optim``, such as ``{"momentum": 0.9}``.
        no_decay: which parameters have no weight decay: names of kinds (``"norms"``, ``"biases"``, ``"positions"``,
            ``"embeddings"``, ``"linear"``, ``"convolutions"``), or a function of (qualified name, parameter, owning
            module); none, by default.
        bias_lr: learning rate of biases, in units of the learning rate: 0.1 for a tenth of it.
        lr: peak learning rate; or several, of which the one that does best on the validation split is taken, for each
            network and initialization by itself.
        schedule: of the learning rate after the warm-up: ``"constant"``, ``"cosine"`` or ``"linear"``, down to zero.
        warmup_steps: steps in which the learning rate rises linearly; none, by default.
        clip_grad_norm: bound on the norm of the gradient; none, by default.
        epochs: passes over the training set.
        batch_size: samples of a step, over all devices; what is left over at the end of a pass waits for the next.
        precision: as Lightning Fabric has it: ``"32-true"``, ``"bf16-mixed"``, ``"16-mixed"``, ``"64-true"``,
            ``"bf16-true"`` or ``"16-true"``. Initializations work in the precision that the model is made in.
        label_smoothing: of the cross-entropy in training, in [0, 1); only without a loss of one's own.
        mixup: alpha of the Beta distribution that samples are mixed by in training, 0.2 say; 0 does not mix. Only without a
            loss of one's own, and with a label a sample.
        looks_per_epoch: how often a run is looked at on the test split (or the validation split).
        measure_batches: how many batches of the training set are kept away from the initialization, to measure
            GradCosine and gradient norm on, before and after it; 0 measures nothing.

    Raises:
        ValueError: for a value that cannot work; the message says what is allowed.

    >>> Recipe(lr=[0.1, 0.01]).lrs
    (0.01, 0.1)
    """

    optimizer: Optimizer = "sgd"
    optimizer_options: dict[str, Any] = field(default_factory=dict)
    no_decay: ParameterFilter | None = None
    bias_lr: float = 1.0
    lr: float | Sequence[float] = 0.01
    schedule: Schedule = "constant"
    warmup_steps: int = 0
    clip_grad_norm: float | None = None
    epochs: int = 10
    batch_size: int = 64
    precision: Precision = "32-true"
    label_smoothing: float = 0.0
    mixup: float = 0.0
    looks_per_epoch: int = 1
    measure_batches: int = 8

    def __post_init__(self) -> None:
        for option in fields(self):
            object.__setattr__(self, option.name, plain_numbers(getattr(self, option.name)))
        _check_name("optimizer", self.optimizer, tuple(OPTIMIZERS))
        _check_name("schedule", self.schedule, get_args(Schedule))
        _check_name("precision", self.precision, get_args(Precision))
        self._check_lr()
        for name, minimum in (("epochs", 1), ("batch_size", 1), ("looks_per_epoch", 1)):
            check_integer(name, getattr(self, name), minimum)
        if 2 * self.epochs * self.looks_per_epoch >= MOST_POINTS:
            raise ValueError(
                f"{self.epochs} epochs with looks_per_epoch={self.looks_per_epoch} make a curve of more than "
                f"{MOST_POINTS:,} points, which is the most; look less often"
            )
        check_integer("warmup_steps", self.warmup_steps, 0)
        check_integer("measure_batches", self.measure_batches, 0)
        check_number("label_smoothing", self.label_smoothing, minimum=0, below=1)
        check_number("mixup", self.mixup, minimum=0, finite=True)
        if self.clip_grad_norm is not None:
            check_number("clip_grad_norm", self.clip_grad_norm, above=0, finite=True)
        check_number("bias_lr", self.bias_lr, above=0, finite=True)
        if self.no_decay is not None:
            as_predicate(self.no_decay, "no_decay")
        self._check_optimizer()

    def _check_lr(self) -> None:
        several = isinstance(self.lr, (list, tuple))
        values: Sequence[Any] = self.lr if isinstance(self.lr, (list, tuple)) else (self.lr,)
        if not values:
            raise ValueError("lr is an empty list; give a number or a list of numbers")
        for value in values:
            check_number("lr", value, above=0, finite=True)
        if len(set(values)) < len(values):
            raise ValueError(f"lr has a value twice: {list(values)}")
        floats = sorted(map(float, values))
        object.__setattr__(self, "lr", floats if several else floats[0])

    def _check_optimizer(self) -> None:
        kind: Any = OPTIMIZERS[self.optimizer]
        known = [name for name in inspect.signature(kind).parameters if name not in ("params", "lr")]
        if not isinstance(self.optimizer_options, Mapping):
            raise ValueError(
                f"optimizer_options must be a dict, such as {{'momentum': 0.9}}; got {self.optimizer_options!r}"
            )
        for name in self.optimizer_options:
            if name not in known:
                hint = "; the learning rate is the recipe's lr" if name == "lr" else ""
                raise ValueError(
                    f"optimizer_options: {self.optimizer!r} has no option {name!r}; it has {', '.join(known)}{hint}"
                )
        try:
            kind([nn.Parameter(torch.zeros(1, device="cpu"))], lr=self.lrs[0], **_with_pairs(self.optimizer_options))
        except (TypeError, ValueError) as error:
            given = dict(self.optimizer_options)
            raise ValueError(f"optimizer_options: {self.optimizer!r} refuses {given}: {error}") from None

    @property
    def lrs(self) -> tuple[float, ...]:
        """All learning rates, from the least."""
        return tuple(self.lr) if isinstance(self.lr, list) else (float(self.lr),)  # type: ignore[arg-type]

    def create_optimizer(self, model: nn.Module, lr: float) -> torch.optim.Optimizer:
        """The optimizer of a model, at its peak learning rates.

        >>> norm = nn.LayerNorm(3)
        >>> groups = Recipe(optimizer="adamw", no_decay="norms", bias_lr=0.5).create_optimizer(norm, 0.1).param_groups
        >>> [(group["lr"], group["weight_decay"]) for group in groups]
        [(0.1, 0.0), (0.05, 0.0)]
        """
        kind: Any = OPTIMIZERS[self.optimizer]
        made: torch.optim.Optimizer = kind(self._groups(model, lr), lr=lr, **_with_pairs(self.optimizer_options))
        return made

    def _groups(self, model: nn.Module, lr: float) -> Iterable[Any]:
        if self.no_decay is None and self.bias_lr == 1.0:
            return model.parameters()
        spared = as_predicate(self.no_decay or (), "no_decay")
        groups: dict[tuple[bool, bool], dict[str, Any]] = {}
        for parameter in trainable_parameters(model):
            is_spared = any(spared(name, parameter.value, module) for name, module in parameter.holders)
            is_slow = parameter.is_bias and self.bias_lr != 1.0
            group = groups.setdefault((is_spared, is_slow), {"params": []})
            group["params"].append(parameter.value)
            group |= {"weight_decay": 0.0} if is_spared else {}
            group |= {"lr": lr * self.bias_lr} if is_slow else {}
        return groups.values()

    def changed(self, changes: Mapping[str, Any], whose: str = "recipe") -> Recipe:
        """The same recipe with some fields changed.

        Args:
            changes: new values by field.
            whose: what the message of an error says they are.

        Raises:
            ValueError: if there is no such field, or a value cannot work.

        >>> Recipe(epochs=5).changed({"warmup_steps": 10}).epochs
        5
        """
        if not isinstance(changes, Mapping):
            raise ValueError(f"{whose} must be a dict of fields of the recipe, such as {{'epochs': 5}}; got {changes!r}")
        known = [option.name for option in fields(self)]
        for name in changes:
            if name not in known:
                raise ValueError(f"{whose} has no field {name!r}{did_you_mean(str(name), known)}")
        try:
            return dataclasses.replace(self, **changes)
        except ValueError as error:
            raise ValueError(f"{whose}: {error}") from None


def lr_factor(step: int, steps: int, schedule: Schedule, warmup_steps: int) -> float:
    """The learning rate of a step, divided by the peak.

    It rises linearly over the warm-up, whose last step has the peak; then it stays there, or falls along a line or half a
    cosine, and would be zero one step after the last.

    Args:
        step: its number, from 0.
        steps: how many there are.
        schedule: what comes after the warm-up.
        warmup_steps: how many steps rise.

    >>> [lr_factor(step, 6, "linear", warmup_steps=2) for step in range(6)]
    [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]
    >>> [round(lr_factor(step, 4, "cosine", warmup_steps=0), 3) for step in range(4)]
    [1.0, 0.854, 0.5, 0.146]
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    done = (step - warmup_steps) / max(steps - warmup_steps, 1)
    if schedule == "cosine":
        return (1 + math.cos(math.pi * done)) / 2
    return 1 - done if schedule == "linear" else 1.0


def _check_name(option: str, value: Any, known: Sequence[str]) -> None:
    if value not in known:
        raise ValueError(f"{option} must be one of {', '.join(map(repr, known))}; got {value!r}")


def _with_pairs(options: Mapping[str, Any]) -> dict[str, Any]:
    """Lists, which are what YAML has, as tuples, which are what Adam's betas must be."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in options.items()}
