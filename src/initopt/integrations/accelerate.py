"""initopt for what Accelerate has prepared: the wrapped model, and the loader of this process."""

from __future__ import annotations

from collections.abc import Iterable
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
    as_it_is,
    bare_optimizer,
    refuse_sharded,
    undisturbed,
)
from initopt.methods import Method
from initopt.model.losses import LossFunction
from initopt.runs import measuring
from initopt.runs.result import Result

try:
    from accelerate import Accelerator
    from accelerate.utils import DistributedType
except ImportError as error:
    raise ImportError(
        f"initopt.integrations.accelerate needs Accelerate: pip install 'initopt[accelerate]' ({error})"
    ) from error

__all__ = ["diagnose", "measure", "optimize"]


def optimize(
    accelerator: Accelerator,
    model: nn.Module,
    batches: Iterable[Any],
    loss_fn: LossFunction | None = None,
    method: str | Method = "nio",
    **options: Any,
) -> Result:
    """Improve the initial weights of a prepared model, in place: :func:`initopt.optimize` after ``accelerator.prepare``.

    The model runs as it trains: with the accelerator's mixed precision, but without the scaling of its loss. Training then
    sees the batches that it would have seen anyhow, and gradient accumulation is where it was. In several processes every
    one makes the call; they share the work, each with its own batches, and end with the same weights.

    Args:
        accelerator: the accelerator.
        model: as ``accelerator.prepare`` returned it.
        batches: the training loader, as it returned that.
        loss_fn: as for :func:`initopt.measure`; a function of ``(model, batch)`` is given the model that was prepared.
        method: as for :func:`initopt.optimize`.
        options: of the method, and of :func:`initopt.optimize`.

    Raises:
        ValueError, TypeError: as :func:`initopt.optimize`, and for DeepSpeed, Megatron and FSDP but of version 2.

    Example::

        model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
        result = initopt.integrations.accelerate.optimize(accelerator, model, loader, loss_fn, "nio", steps=50)
    """
    found: Result = _done(Initializing(method, options), accelerator, model, batches, loss_fn)
    return found


def measure(
    accelerator: Accelerator,
    model: nn.Module,
    batches: Iterable[Any],
    loss_fn: LossFunction | None = None,
    **options: Any,
) -> Measurement:
    """Measure a prepared model: :func:`initopt.measure` after ``accelerator.prepare``; see :func:`optimize`."""
    found: Measurement = _done(Calling(measuring.measure, options), accelerator, model, batches, loss_fn)
    return found


def diagnose(
    accelerator: Accelerator,
    model: nn.Module,
    batches: Iterable[Any],
    loss_fn: LossFunction | None = None,
    *,
    optimizer: Any = None,
    **options: Any,
) -> Diagnosis:
    """Say what is wrong with the start of a prepared model: :func:`initopt.diagnose`; see :func:`optimize`.

    Args:
        accelerator: the accelerator.
        model: as ``accelerator.prepare`` returned it.
        batches: the training loader, as it returned that.
        loss_fn: as for :func:`initopt.measure`.
        optimizer: as for :func:`initopt.diagnose`, or as ``accelerator.prepare`` returned it.
        options: of :func:`initopt.diagnose`.
    """
    given = bare_optimizer(optimizer) or optimizer
    found: Diagnosis = _done(Diagnosing(options | {"optimizer": given}), accelerator, model, batches, loss_fn)
    return found


_SHARDED = (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM)


def _done(
    work: Work,
    accelerator: Accelerator,
    model: nn.Module,
    batches: Iterable[Any],
    loss_fn: LossFunction | None,
) -> Any:
    if not isinstance(accelerator, Accelerator):
        raise TypeError(f"accelerator must be an accelerate.Accelerator; got {type(accelerator).__name__}")
    if accelerator.distributed_type in _SHARDED and not getattr(accelerator, "is_fsdp2", False):
        refuse_sharded(accelerator.distributed_type.value)
    check_batches(batches)
    where = {"process_group": torch.distributed.group.WORLD} if accelerator.num_processes > 1 else {}
    # What autocasts is the forward of the model itself, and stays.
    bare = accelerator.unwrap_model(model, keep_fp32_wrapper=True)
    with undisturbed(batches):
        return work(bare, Batches(batches, as_it_is, length_of(batches)), loss_fn, None, **where)
