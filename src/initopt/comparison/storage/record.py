"""One training run of a comparison, as it is stored."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from initopt.diagnosis import Finding

__all__ = ["MOST_POINTS", "CurvePoint", "Purpose", "RunRecord", "Subset"]

MOST_POINTS = 1_000_000
"""The most points that a curve may have."""

Purpose = Literal["selection", "final"]
"""What a run is for: to choose a learning rate, or to be a result."""

Subset = Literal["train", "validation", "test"]
"""What a run is looked at on."""


@dataclass(frozen=True)
class CurvePoint:
    """A look at a run.

    Attributes:
        step: training steps done; 0 is before the first.
        epoch: passes over the training set done.
        subset: ``"train"`` (mean over the steps since the last point), ``"validation"`` or ``"test"``.
        loss: mean loss; not finite in a run that diverged.
        accuracy: share in [0, 1]; ``None`` where the task has none.
    """

    step: int
    epoch: float
    subset: Subset
    loss: float
    accuracy: float | None


@dataclass(frozen=True)
class RunRecord:
    """A training run of a comparison.

    Attributes:
        network: its name.
        initialization: its name; ``"default"`` is the model's own start.
        seed: of the weights and of the order of the data.
        lr: learning rate.
        purpose: ``"selection"`` (chooses the learning rate on the validation split) or ``"final"``.
        status: ``"done"``, ``"diverged"`` (with the curve up to there) or ``"failed"`` (an exception).
        error: of a failed run, the last line of the traceback and then the traceback; of a diverged one, why.
        steps: training steps done.
        initialization_seconds: what the initialization cost.
        initialization_steps: the same in training steps of this run.
        step_seconds: median time of a training step.
        seconds: of the whole run.
        before: GradCosine and the like, with their standard errors (``"_sem"``), of the network's own start.
        after: the same, on the same held-back batches, of the start that was trained from.
        scales: of learned methods, by parameter.
        curve: all looks at the run.
        versions: of what it ran with.
        findings: what the rules of :func:`initopt.diagnose` find in the start that was trained from, notes left out;
            ``None`` if nobody looked, as in the runs of earlier versions.
    """

    network: str
    initialization: str
    seed: int
    lr: float
    purpose: Purpose
    status: Literal["done", "diverged", "failed"]
    error: str | None
    steps: int
    initialization_seconds: float
    initialization_steps: float | None
    step_seconds: float | None
    seconds: float
    before: dict[str, float] | None
    after: dict[str, float] | None
    scales: dict[str, float] | None
    curve: tuple[CurvePoint, ...]
    versions: dict[str, str]
    findings: tuple[Finding, ...] | None = None
