"""What is visibly wrong with a model's output and the targets of the first batch, in words that say what to do."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from initopt._support._torch_messages import is_of_other_dtype
from initopt._support.errors import LossError, warn
from initopt.batches.nested import named_tensors

__all__ = ["LabelError", "look_at_classes", "refuse_dtype"]


class LabelError(LossError):
    """The labels are of classes that the model has no outputs for."""


_FEW = 16
"""Targets that may be in order by chance."""


def look_at_classes(output: Tensor, targets: Tensor, classes: int, criterion: nn.Module | None) -> None:
    """Look at class labels, and at the output that a cross-entropy is about to get.

    Args:
        output: what the model returned, the classes along the second dimension.
        targets: integers, of the same shape without it.
        classes: how many there are.
        criterion: of the user, which may ignore a label or take logarithms of probabilities; ``None`` for the default.

    Raises:
        LabelError: for labels that there are no classes for. On a GPU, PyTorch would end the whole process for it.

    Warns:
        InitoptWarning: for an output that has been through a softmax, and for a batch that is sorted by class.
    """
    counted = targets[targets != getattr(criterion, "ignore_index", -100)].flatten()
    if not len(counted):
        return
    low, high = int(counted.min()), int(counted.max())
    if low < 0 or high >= classes:
        hint = (
            "they seem to count from 1: subtract 1" if low == 1 and high == classes else "does the last layer fit the data?"
        )
        raise LabelError(
            f"the model has {classes} outputs, for the classes 0 to {classes - 1}, and the labels of the first batch go "
            f"from {low} to {high}; {hint}"
        )
    _look_at_output(output.detach(), isinstance(criterion, nn.NLLLoss))
    if targets.ndim == 1:
        _look_at_order(targets)


def _look_at_output(output: Tensor, of_logarithms: bool) -> None:
    if not output.is_floating_point():
        return
    values = output.double()
    tolerance = 1e-3 if output.dtype in (torch.float32, torch.float64) else 3e-2
    total = values.sum(1)
    is_softmax = bool((values >= 0).all() and (total - 1).abs().max() < tolerance)
    if is_softmax and of_logarithms:
        warn(
            "the model's outputs are probabilities, and nn.NLLLoss takes their logarithms: use log_softmax in the place of "
            "softmax, or no softmax and nn.CrossEntropyLoss"
        )
    elif is_softmax:
        warn(
            "the model's outputs are probabilities (they sum to 1), but cross-entropy takes a softmax itself: taken twice, "
            "it makes gradients small and all alike. Leave out the softmax at the end of the model"
        )
    elif of_logarithms and bool((values.logsumexp(1).abs() > 0.1).any()):
        warn(
            "nn.NLLLoss takes logarithms of probabilities, and the model's outputs are none: use log_softmax at the end of "
            "the model, or nn.CrossEntropyLoss"
        )


def _look_at_order(targets: Tensor) -> None:
    """Warn of samples in the order of their classes, of which neighbours, and so sub-batches, are not fair parts."""
    runs = 1 + int((targets[1:] != targets[:-1]).sum())
    found = len(set(targets.tolist()))
    if len(targets) < _FEW or runs > found or found > len(targets) // 2:
        return
    which = f"are all {int(targets[0])}" if found == 1 else f"are in order: {found} classes, one after the other"
    warn(
        f"the labels of the first batch {which}. Sub-batches are neighbouring samples, so that GradCosine would tell "
        "classes apart and not samples: have the loader shuffle (shuffle=True)"
    )


def refuse_dtype(error: RuntimeError, model: nn.Module, batch: Any) -> None:
    """Put an operation's complaint about dtypes into words, if the inputs and the model differ in theirs.

    Raises:
        TypeError: if so; otherwise nothing happens.
    """
    if not is_of_other_dtype(error):
        return
    of_model = {p.dtype for p in model.parameters() if p.is_floating_point()}
    inputs = batch[0] if isinstance(batch, (tuple, list)) and batch else batch
    of_inputs = {tensor.dtype for _, tensor in named_tensors(inputs) if not tensor.is_complex()}
    if len(of_model) != 1 or not of_inputs or of_inputs & of_model:
        return
    ours, theirs = next(iter(of_model)), _names(of_inputs)
    if any(dtype.is_floating_point for dtype in of_inputs):
        what = f"give batches in {_name(ours)}, or bring the model to the dtype of the batches ({_method(of_inputs)})"
    else:
        what = f"convert them (inputs.to(torch.{_name(ours)}), and scale images to about [0, 1] or unit variance)"
    raise TypeError(
        f"the model is in {_name(ours)} and the inputs are in {theirs}: {what}. PyTorch says: {error}"
    ) from error


def _names(dtypes: Iterable[torch.dtype]) -> str:
    return " and ".join(sorted(map(_name, dtypes)))


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _method(dtypes: Iterable[torch.dtype]) -> str:
    dtype = next(dtype for dtype in dtypes if dtype.is_floating_point)
    return f"model.to(torch.{_name(dtype)})"
