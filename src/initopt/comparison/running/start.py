"""The start of a run: the model's own, and what an initialization makes of it."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import initopt
from initopt.comparison.running.batches import start_batches
from initopt.comparison.spec.initialization import Custom, Drawing, Initialization, Step
from initopt.comparison.spec.network import Network
from initopt.comparison.spec.recipe import Recipe
from initopt.diagnosis import Finding
from initopt.diagnosis.change import look_at
from initopt.diagnosis.rules.base import notable
from initopt.gram.measurement import STATISTICS
from initopt.model.losses import LossFunction
from initopt.model.randomness import Stream, mixed_seed, seeded
from initopt.model.ranks import ProcessGroup
from initopt.schemes import apply_

__all__ = ["Start", "own_start", "prepare_start", "take"]


@dataclass(frozen=True)
class Start:
    """A start to train from.

    Attributes:
        state: all parameters and buffers.
        seconds: what the initialization cost.
        scales: of a method that learns some.
        before: the figures of the model's own start.
        after: of the start that is trained from, on the same batches.
        findings: of the rules on that start, notes left out; ``None`` if it could not be looked at.
    """

    state: dict[str, Tensor]
    seconds: float
    scales: dict[str, float] | None
    before: dict[str, float] | None
    after: dict[str, float] | None
    findings: tuple[Finding, ...] | None


def own_start(network: Network, seed: int) -> nn.Module:
    """The model with its own start, which follows from the seed."""
    with seeded(seed, Stream.WEIGHTS):
        return network.make()


def prepare_start(
    model: nn.Module,
    initialization: Initialization,
    dataset: Any,
    recipe: Recipe,
    loss_fn: LossFunction | None,
    seed: int,
    *,
    measured: bool,
    loaders: int = 0,
) -> Start:
    """Turn a model's own start into the one that is trained from, in place.

    Args:
        model: with its own start, on the device where it will be trained.
        initialization: what to do.
        dataset: the training set.
        recipe: says how many batches are held back; the initialization does not see them.
        loss_fn: what the initialization minimizes or differentiates.
        seed: of the batches, and of what the initialization draws.
        measured: whether to measure on the batches held back.
        loaders: how many other processes make the batches.
    """
    held, others = start_batches(  # never mixed: mixup is a part of training
        dataset, recipe.batch_size, recipe.measure_batches, seed, initialization.batch_size, loaders
    )
    held = held if measured else []
    before = _measured(model, held, loss_fn, seed)
    _wait(model)
    begun = time.perf_counter()
    scales: dict[str, float] = {}
    for number, step in enumerate(initialization.steps):
        found = take(step, model, others, loss_fn, seed, number)
        # Of several methods, the product; what changes weights without scales leaves those of before without a meaning.
        scales = {name: scales.get(name, 1.0) * found.get(name, 1.0) for name in {**scales, **found}} if found else {}
    _wait(model)
    seconds = time.perf_counter() - begun
    return Start(
        state={name: value.detach().clone() for name, value in model.state_dict().items() if isinstance(value, Tensor)},
        seconds=seconds,
        scales=scales or None,
        before=before,
        after=_measured(model, held, loss_fn, seed) if initialization.steps else before,
        findings=_found(model, held, loss_fn, seed),
    )


def take(
    step: Step,
    model: nn.Module,
    batches: Iterable[Any],
    loss_fn: LossFunction | None,
    seed: int,
    number: int,
    process_group: ProcessGroup = None,
) -> dict[str, float]:
    """Do one step of an initialization, in place.

    Args:
        step: what to do.
        model: is changed.
        batches: can be iterated over again.
        loss_fn: the user's.
        seed: of what the step draws.
        number: of the step in its initialization.
        process_group: the processes that do it together, each with its own batches; a method then ends with the same
            weights on all. By default, this one has all the batches.

    Returns:
        The scales that it has learned; none, if it learns none.

    Raises:
        TypeError: if a function returns another model in the place of changing this one.
    """
    if isinstance(step, Drawing):
        batch = next(iter(batches)) if step.scheme.needs_batch else None
        key = mixed_seed(seed, Stream.SCHEME, number)
        apply_(model, step.scheme, batch, loss_fn, params=step.params, seed=key)
        return {}
    if isinstance(step, Custom):
        with seeded(seed, Stream.FUNCTION, number):
            returned = step.function(model, batches, loss_fn)
        if isinstance(returned, nn.Module) and returned is not model:
            raise TypeError(f"{step.identity} returned a {type(returned).__name__}; it has to change the model in place")
        return {}
    result = initopt.optimize(
        model,
        batches,
        loss_fn,
        method=step,
        measure_batches=0,
        seed=seed,
        progress=False,
        allow_trained=True,  # what is compared is somebody's start
        process_group=process_group,
        share="union" if step.unites else "average",
    )
    return result.scales


def _measured(model: nn.Module, held: Sequence[Any], loss_fn: LossFunction | None, seed: int) -> dict[str, float] | None:
    """The figures of a start; ``None`` where there are none, since its gradients are not finite, or all zero."""
    if not held:
        return None
    try:
        found = initopt.measure(model, held, loss_fn, seed=seed, progress=False, process_group=None)
    except (initopt.NonFiniteError, initopt.ZeroGradientError):
        return None
    names = (*STATISTICS, "loss")
    return {name: getattr(found, name) for name in names} | {f"{name}_sem": found.sem[name] for name in names}


def _found(model: nn.Module, held: Sequence[Any], loss_fn: LossFunction | None, seed: int) -> tuple[Finding, ...] | None:
    """What is wrong with a start; ``None`` where there is nothing to look at, or looking fails."""
    if not held:
        return None
    try:
        return tuple(notable(look_at(model, held, loss_fn, seed=seed).findings))
    except Exception:  # of models that can be trained, and not traced; the report says that nobody looked
        return None


def _wait(model: nn.Module) -> None:
    """Until the device has done what it was told, so that a clock shows it."""
    device = next(model.parameters()).device
    if device.type == "cuda":
        torch.cuda.synchronize(device)
