"""All runs that share a start, one after the other."""

from __future__ import annotations

import platform
import time
import traceback
from collections.abc import Iterator
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from initopt._version import __version__
from initopt.comparison.running.evaluation import Judge
from initopt.comparison.running.mixup import MixupLoss
from initopt.comparison.running.start import Start, own_start, prepare_start
from initopt.comparison.running.training import Trained, train
from initopt.comparison.spec.plan import Plan
from initopt.comparison.spec.recipe import Recipe
from initopt.comparison.storage.job import Group, Job
from initopt.comparison.storage.record import RunRecord, Subset
from initopt.data import Splits
from initopt.model.losses import as_loss

if TYPE_CHECKING:
    from lightning_fabric import Fabric

__all__ = ["failed", "run_group", "versions"]


def versions(by_fabric: bool = False) -> dict[str, str]:
    """The versions of everything that results depend on; that of Lightning Fabric where it does the runs."""
    fabric = {"lightning-fabric": version("lightning-fabric")} if by_fabric else {}
    return {
        "initopt": __version__,
        "torch": torch.__version__,
        **fabric,
        "python": platform.python_version(),
        "machine": platform.machine(),
    }


def run_group(fabric: Fabric, plan: Plan, splits: Splits, group: Group) -> Iterator[RunRecord]:
    """Prepare the start of a group of jobs, and train from it with each learning rate.

    Args:
        fabric: where and in which precision.
        plan: of the comparison.
        splits: its data.
        group: the jobs.

    Yields:
        the record of each job; an exception in the user's code makes it a failed one.
    """
    first = group[0]
    recipe = plan.recipe_of(first.network, first.initialization)
    begun = time.perf_counter()
    try:
        model: nn.Module | None = fabric.to_device(own_start(plan.networks[first.network], first.seed))
        assert model is not None
        start = prepare_start(
            model,
            plan.initializations[first.initialization],
            splits.train,
            recipe,
            _loss_fn(plan, recipe),
            first.seed,
            measured=first.purpose == "final",
            loaders=plan.hardware.loaders,
        )
    except Exception as error:
        yield from (failed(job, _in_full(error), time.perf_counter() - begun) for job in group)
        return
    prepared = time.perf_counter() - begun
    for job in group:
        begun = time.perf_counter()
        try:
            if model is None:
                model = fabric.to_device(own_start(plan.networks[job.network], job.seed))
                model.load_state_dict(start.state)
            trained = _trained(fabric, plan, splits, job, model)
        except Exception as error:
            yield failed(job, _in_full(error), prepared + time.perf_counter() - begun, start)
        else:
            status: Literal["done", "diverged"] = "diverged" if trained.diverged else "done"
            yield _record(job, status, trained.diverged, prepared + time.perf_counter() - begun, start, trained)
        model = None  # the next one begins at the same start


def _trained(fabric: Fabric, plan: Plan, splits: Splits, job: Job, model: nn.Module) -> Trained:
    recipe = plan.recipe_of(job.network, job.initialization)
    subset: Subset = "test" if job.purpose == "final" else "validation"
    # The test split is out of reach of the runs that choose something.
    looked_at = splits.test if job.purpose == "final" else splits.validation
    assert looked_at is not None
    loaders = plan.hardware.loaders
    judge = Judge(looked_at, recipe.batch_size, as_loss(plan.loss_fn), fabric.device, job.seed, loaders)
    loss = as_loss(MixupLoss(recipe.label_smoothing) if recipe.mixup else _loss_fn(plan, recipe))
    return train(fabric, model, splits.train, loss, recipe, job.lr, judge, subset, job.seed, loaders)


def _loss_fn(plan: Plan, recipe: Recipe) -> Any:
    """What an initialization sees, and, without mixup, what is minimized."""
    return nn.CrossEntropyLoss(label_smoothing=recipe.label_smoothing) if recipe.label_smoothing else plan.loss_fn


def failed(job: Job, error: str, seconds: float = 0.0, start: Start | None = None) -> RunRecord:
    """The record of a run that came to no result."""
    return _record(job, "failed", error, seconds, start, Trained())


def _record(
    job: Job,
    status: Literal["done", "diverged", "failed"],
    error: str | None,
    seconds: float,
    start: Start | None,
    trained: Trained,
) -> RunRecord:
    step_seconds = trained.step_seconds
    cost = start.seconds if start else 0.0
    return RunRecord(
        **vars(job),
        status=status,
        error=error,
        steps=trained.steps,
        initialization_seconds=cost,
        initialization_steps=cost / step_seconds if step_seconds else None,
        step_seconds=step_seconds,
        seconds=seconds,
        before=start.before if start else None,
        after=start.after if start else None,
        scales=start.scales if start else None,
        curve=tuple(trained.curve),
        versions=versions(),
        findings=start.findings if start else None,
    )


def _in_full(error: Exception) -> str:
    """The last line of a traceback, and then all of it."""
    lines = traceback.format_exception(error)
    last = traceback.format_exception_only(error)[0].strip()
    return f"{last}\n\n{''.join(lines).strip()}"
