"""Remedies, tried on a copy: what they change, and what a few training steps make of it."""

from __future__ import annotations

import copy
import itertools
import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from initopt import schemes
from initopt._support.errors import InitoptWarning, LossError, in_short
from initopt.diagnosis.rules import Evidence, Finding, found_in
from initopt.diagnosis.rules.base import notable
from initopt.diagnosis.seen import Trace
from initopt.diagnosis.trace import trace
from initopt.methods import LSUV, NIO
from initopt.model.losses import LossFunction, as_loss
from initopt.model.parameters import trainable_parameters
from initopt.model.randomness import seeded
from initopt.training.optimizers import OptimizerFactory, make_optimizer, places_of
from initopt.training.steps import OF_ANOTHER_MODEL, Trainer, only_own_gradients, train_steps

__all__ = ["Remedies", "Trial", "remedies_for", "vital_signs"]

STEPS = 20
"""Most training steps of each start."""

_COSTS = {"lsuv": 3, "nio": 30}
"""Cost of a remedy in training steps; that of a scheme is 1."""

_CURABLE = (
    *(
        "W101",
        "W102",
        "W103",
        "W104",
        "W105",
        "W106",
        "W107",
        "W108",
        "W109",
        "W111",
        "A201",
        "A202",
        "A203",
        "A204",
        "A205",
    ),
    *("A207", "A208", "A210", "A212", "G301", "G302", "G305", "G307", "G308", "G309"),
)
"""Rules whose findings new weights can cure."""


def remedies_for(findings: Sequence[Finding]) -> tuple[str, ...]:
    """The remedies that address the worst finding; none if weights are not what is wrong.

    >>> remedies_for([Finding("D405", "warning", (), "", "")])
    ()
    """
    worst = next(notable(findings), None)
    if worst is None or worst.rule not in _CURABLE:
        return ()
    if worst.rule in ("A203", "A204", "A205", "A212", "G301", "G302", "G309"):
        return ("orthogonal", "lsuv", "nio")
    return ("kaiming_normal", "orthogonal", "lsuv")


def vital_signs(trace: Trace) -> dict[str, float]:
    """Figures by which a start is judged, as far as they can be told.

    Returns:
        ``"dead units"``, the largest share in a layer; ``"saturated"``, likewise; ``"signal"``, of the last layer relative
        to the first; ``"gradient of the first layer"``, relative to that of the last; ``"loss"``.
    """
    figures = {"dead units": max((c.dead for c in trace.calls if c.function in ("relu", "relu6")), default=math.nan)}
    figures["saturated"] = max((c.saturated for c in trace.calls if c.saturated > 0), default=math.nan)
    layers = [call for call in trace.calls if call.matrix and call.deviation > 0]
    if len(layers) > 1:
        figures["signal of the last layer"] = layers[-1].deviation / layers[0].deviation
    sloped = [call for call in layers if call.slope > 0]
    if len(sloped) > 1:
        figures["gradient of the first layer"] = sloped[0].slope / sloped[-1].slope
    figures["loss"] = trace.loss
    return {name: value for name, value in figures.items() if not math.isnan(value)}


@dataclass(frozen=True)
class Trial:
    """A remedy that was tried on a copy of the model.

    Attributes:
        name: of the remedy.
        before: figures of the model as it is; see :func:`vital_signs`.
        after: those of the copy.
        findings: findings above notes that are left on the copy.
        steps: training steps that both were given; 0 without an optimizer.
        trained_before: mean loss of the model over the last of these steps; nan without any.
        trained_after: that of the copy.
        failure: why it could not be tried; ``""`` if it was.
        found: number of findings above notes that the model has.
    """

    name: str
    before: dict[str, float]
    after: dict[str, float] = field(default_factory=dict)
    findings: tuple[Finding, ...] = ()
    steps: int = 0
    trained_before: float = math.nan
    trained_after: float = math.nan
    failure: str = ""
    found: int = 0

    @property
    def call(self) -> str:
        """The call that applies the remedy."""
        if self.name in schemes.NAMES:
            return f'initopt.schemes.apply_(model, "{self.name}", batch)'
        return f"initopt.{self.name}(model, batches)"

    @property
    def better(self) -> bool:
        """Whether fewer findings are left, or as many and a loss that is lower by 2 % after the steps."""
        if self.failure:
            return False
        gains = self.trained_after < 0.98 * self.trained_before or math.isnan(self.trained_before)
        loses = self.trained_after > 1.02 * self.trained_before
        return (len(self.findings) < self.found and not loses) or (
            len(self.findings) == self.found and gains and not math.isnan(self.trained_after)
        )

    @property
    def changes(self) -> str:
        """The changes that the remedy makes, in words."""
        if self.failure:
            return self.failure
        pairs = [(name, self.before[name], self.after[name]) for name in self.before if name in self.after]
        changed = [f"{name} {_figure(name, a)} to {_figure(name, b)}" for name, a, b in pairs if _differ(name, a, b)]
        if self.steps and not (math.isnan(self.trained_before) and math.isnan(self.trained_after)):
            changed.append(
                f"loss after {self.steps} steps at your learning rate {self.trained_before:.3g} to {self.trained_after:.3g}"
            )
        left = f"{len(self.findings)} of {self.found} findings left" if self.findings else "no finding left"
        return "; ".join([*changed, left])

    def to_dict(self) -> dict[str, Any]:
        """The trial as plain values."""
        names = ("name", "before", "after", "steps", "trained_before", "trained_after", "failure", "better", "changes")
        return {name: getattr(self, name) for name in names} | {"findings": [finding.rule for finding in self.findings]}

    def __str__(self) -> str:
        return f"{self.name}: {self.changes}"


def _figure(name: str, value: float) -> str:
    return f"{100 * value:.0f} %" if name in ("dead units", "saturated") else f"{value:.2g}"


def _differ(name: str, before: float, after: float) -> bool:
    if name in ("dead units", "saturated"):
        return abs(before - after) > 0.1
    low, high = sorted((abs(before), abs(after)))
    return high > (1.2 if name == "loss" else 2) * low


@dataclass(frozen=True)
class Remedies:
    """Remedies to be tried on copies of a model.

    Attributes:
        model: the model, which stays as it is.
        batches: a few, kept in memory.
        loss_fn: the user's.
        seen: the trace of the model.
        findings: those of the model.
        optimizer: makes the user's optimizer; ``None`` for no training steps.
        seed: for all that is drawn.
    """

    model: nn.Module
    batches: Sequence[Any]
    loss_fn: LossFunction | None
    seen: Trace
    findings: Sequence[Finding]
    optimizer: OptimizerFactory | None
    seed: int

    def tried(self, names: Iterable[str], budget: int, report: Callable[[str], None]) -> list[Trial]:
        """Try remedies within a budget of training steps, and order them, the best first.

        Args:
            names: of schemes, ``"lsuv"`` or ``"nio"``.
            budget: training steps that all remedies may cost; what does not fit is not tried.
            report: is told of each that is done.
        """
        wanted = list(names)
        steps = min(STEPS, budget // (2 * (len(wanted) + 1))) if self.optimizer is not None else 0
        left = budget - steps
        try:
            baseline = self._trained(self.model, steps)
        except Exception as error:  # anything that a model may not bear; the diagnosis stands without it
            return [self._failed(name, error) for name in wanted]
        trials = []
        for name in wanted:
            cost = _COSTS.get(name, 1) + steps + 1
            if cost > left:
                continue
            left -= cost
            trials.append(self._try(name, steps, baseline))
            report(name)
        return sorted(trials, key=lambda t: (bool(t.failure), len(t.findings), t.trained_after if t.steps else 0.0))

    def _failed(self, name: str, error: Exception) -> Trial:
        why = f"could not be tried: {in_short(error)}"
        return Trial(name, vital_signs(self.seen), failure=why)

    def _try(self, name: str, steps: int, baseline: float) -> Trial:
        found = len(list(notable(self.findings)))
        try:
            with warnings.catch_warnings(), seeded(self.seed):
                warnings.simplefilter("ignore", InitoptWarning)
                other = copy.deepcopy(self.model)
                self._apply(other, name)
                seen = trace(other, self.batches, self.loss_fn, num_batches=2, seed=self.seed, progress=False)
                if all(tensor.fate == "unused" for tensor in seen.tensors):
                    raise LossError(OF_ANOTHER_MODEL)
        except Exception as error:
            return self._failed(name, error)
        before = vital_signs(self.seen)
        left = tuple(notable(found_in(Evidence(other, seen))))
        return Trial(name, before, vital_signs(seen), left, steps, baseline, self._trained(other, steps), found=found)

    def _apply(self, model: nn.Module, name: str) -> None:
        from initopt._api import optimize  # which comes after the rest of this room, since runs look at layers

        options: dict[str, Any] = {
            "measure_batches": 0,
            "diagnose": False,
            "seed": self.seed,
            "progress": False,
            "allow_trained": True,
            "process_group": None,  # a copy, on this process
        }
        if name == "lsuv":
            optimize(model, self.batches, self.loss_fn, LSUV(), **options)
        elif name == "nio":
            optimize(model, self.batches, self.loss_fn, NIO(steps=10, lr=0.1), **options)
        else:
            schemes.apply_(model, name, self.batches[0], self.loss_fn, seed=self.seed)

    def _trained(self, model: nn.Module, steps: int) -> float:
        """Mean loss over the last fifth of some training steps, on a copy; infinite where they diverge, nan without any."""
        if steps == 0 or self.optimizer is None:
            return math.nan
        own = trainable_parameters(self.model)
        other = copy.deepcopy(model)
        parameters: list[Tensor] = [parameter.value for parameter in trainable_parameters(other)]
        optimizer = make_optimizer(self.optimizer, parameters, places_of(p.value for p in own))
        other.train()
        trainer = Trainer(other, optimizer, as_loss(self.loss_fn), backward=only_own_gradients(optimizer))
        course = train_steps(trainer, itertools.islice(itertools.cycle(self.batches), steps), self.seed)
        if course.diverged:
            return math.inf
        last = course.losses[-max(1, steps // 5) :]
        return sum(last) / len(last)
