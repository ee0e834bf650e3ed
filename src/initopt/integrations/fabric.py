"""initopt for what Lightning Fabric has set up: the wrapped model, and the loader of this process."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from initopt.batches.stream import check_batches, length_of
from initopt.diagnosis import Diagnosis
from initopt.gram.measurement import Measurement
from initopt.integrations._work import (
    Batches,
    Calling,
    Diagnosing,
    Initializing,
    Work,
    bare_optimizer,
    refuse_sharded,
    undisturbed,
)
from initopt.methods import Method
from initopt.model.losses import LossFunction
from initopt.runs import measuring
from initopt.runs.result import Result

__all__ = ["diagnose", "measure", "optimize"]


def optimize(
    fabric: Any,
    model: nn.Module,
    batches: Iterable[Any],
    loss_fn: LossFunction | None = None,
    method: str | Method = "nio",
    **options: Any,
) -> Result:
    """Improve the initial weights of a model that Fabric has set up, in place: :func:`initopt.optimize` after ``setup``.

    The model runs as it trains, in the precision of Fabric, but without the scaling of its loss. Training then sees the
    batches that it would have seen anyhow. In several processes every one makes the call; they share the work, each with
    its own batches, and end with the same weights.

    Args:
        fabric: the ``lightning.Fabric`` (or ``lightning_fabric.Fabric``).
        model: as ``fabric.setup`` returned it.
        batches: the training loader, as ``fabric.setup_dataloaders`` returned it, or any other.
        loss_fn: as for :func:`initopt.measure`; a function of ``(model, batch)`` is given the model that was set up.
        method: as for :func:`initopt.optimize`.
        options: of the method, and of :func:`initopt.optimize`.

    Raises:
        ValueError, TypeError: as :func:`initopt.optimize`, and for a strategy that shards the weights.

    Example::

        model, optimizer = fabric.setup(model, optimizer)
        loader = fabric.setup_dataloaders(loader)
        result = initopt.integrations.fabric.optimize(fabric, model, loader, loss_fn, "nio", steps=50)
    """
    found: Result = _done(Initializing(method, options), fabric, model, batches, loss_fn)
    return found


def measure(
    fabric: Any, model: nn.Module, batches: Iterable[Any], loss_fn: LossFunction | None = None, **options: Any
) -> Measurement:
    """Measure a model that Fabric has set up: :func:`initopt.measure` after ``setup``; see :func:`optimize`."""
    found: Measurement = _done(Calling(measuring.measure, options), fabric, model, batches, loss_fn)
    return found


def diagnose(
    fabric: Any,
    model: nn.Module,
    batches: Iterable[Any],
    loss_fn: LossFunction | None = None,
    *,
    optimizer: Any = None,
    **options: Any,
) -> Diagnosis:
    """Say what is wrong with the start of a model that Fabric has set up: :func:`initopt.diagnose`; see :func:`optimize`.

    Args:
        fabric: the ``lightning.Fabric``.
        model: as ``fabric.setup`` returned it.
        batches: the training loader.
        loss_fn: as for :func:`initopt.measure`.
        optimizer: as for :func:`initopt.diagnose`, or as ``fabric.setup`` returned it.
        options: of :func:`initopt.diagnose`.
    """
    given = bare_optimizer(optimizer) or optimizer
    found: Diagnosis = _done(Diagnosing(options | {"optimizer": given}), fabric, model, batches, loss_fn)
    return found


_STRATEGIES = ("SingleDeviceStrategy", "DDPStrategy", "ModelParallelStrategy")


def _done(work: Work, fabric: Any, model: nn.Module, batches: Iterable[Any], loss_fn: LossFunction | None) -> Any:
    if not hasattr(fabric, "setup") or not hasattr(fabric, "autocast"):
        raise TypeError(f"fabric must be a lightning.Fabric; got {type(fabric).__name__}")
    strategy = type(fabric.strategy).__name__
    if strategy not in _STRATEGIES:
        refuse_sharded(strategy)
    check_batches(batches)
    where = {"process_group": torch.distributed.group.WORLD} if fabric.world_size > 1 else {}
    if not hasattr(model, "_forward_module"):
        raise TypeError(f"model must be what fabric.setup returned; got {type(model).__name__}, which initopt takes itself")
    bare: Any = model.module
    with undisturbed(batches), _in_precision(fabric, bare):
        return work(bare, Batches(batches, fabric.to_device, length_of(batches)), loss_fn, None, **where)


@contextmanager
def _in_precision(fabric: Any, model: nn.Module) -> Iterator[None]:
    """A block in which a model runs in Fabric's precision by itself, as within the wrapper."""
    precision, forward, own = fabric.strategy.precision, model.forward, dict(vars(model))

    def in_precision(*args: Any, **options: Any) -> Any:
        args, options = precision.convert_input((args, options))
        with precision.forward_context():
            output = forward(*args, **options)
        return precision.convert_output(output)

    vars(model)["forward"] = in_precision
    try:
        yield
    finally:
        if "forward" in own:
            vars(model)["forward"] = own["forward"]
        else:
            del vars(model)["forward"]
