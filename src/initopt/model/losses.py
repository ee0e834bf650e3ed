"""What ``loss_fn`` may be, and the mean loss of each sub-batch from it."""

from __future__ import annotations

import functools
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from initopt._support.errors import LossError
from initopt.batches.first_look import look_at_classes
from initopt.batches.nested import batch_size, named_tensors, take

__all__ = ["Loss", "LossFunction", "as_loss"]

LossFunction = nn.Module | Callable[[nn.Module, Any], Tensor]
"""A criterion module, called as ``criterion(model(inputs), targets)``, or a function of ``(model, batch)``."""


class Loss(ABC):
    """The mean loss of a sub-batch, from the sub-batch alone or from one forward pass over the whole batch.

    Attributes:
        given: what the user gave as the loss.
    """

    given: LossFunction | None = None

    @abstractmethod
    def __call__(self, model: nn.Module, batch: Any, size: int) -> Tensor:
        """Mean loss of a batch of ``size`` samples, a scalar."""

    @abstractmethod
    def windows(self, model: nn.Module, batch: Any, windows: Sequence[Tensor], size: int) -> list[Tensor]:
        """Mean loss of each window of sample indices, all from one forward pass over the batch of ``size`` samples."""

    def channel(self, output: Tensor, batch: Any) -> int | None:
        """The dimension of an output of the model along which an output bias would have its entries.

        Args:
            output: one or more numbers for each sample, or for each position of each sample.
            batch: the batch that it is of.

        Returns:
            The last dimension for sequences (three dimensions), the second for images (four and more) and for vectors;
            ``None`` for one number a sample.
        """
        if output.ndim < 2:
            return None
        return 2 if output.ndim == 3 else 1

    def look_at(self, batch: Any) -> None:  # noqa: B027 - only some losses know what to look for
        """Have a batch looked at, with the model's next output, for what is visibly wrong; the first one only."""


def as_loss(loss_fn: LossFunction | None) -> Loss:
    """The :class:`Loss` for what the user gave.

    Args:
        loss_fn: ``None`` for cross-entropy of an ``(inputs, targets)`` batch with integer targets of any width, the
            classes along the second or the last dimension of the logits, or the ``.loss`` of the model's output for a
            dict batch; an ``nn.Module`` criterion; or a function of ``(model, batch)`` that
            returns a scalar mean or a vector with one loss per sample.

    Raises:
        TypeError: for anything else, and for the functions of torch that take ``(output, target)``.
    """
    if loss_fn is None:
        return _DefaultLoss()
    loss = _CriterionLoss(loss_fn) if isinstance(loss_fn, nn.Module) else _FunctionLoss(_checked(loss_fn))
    loss.given = loss_fn
    return loss


def _checked(loss_fn: Callable[[nn.Module, Any], Tensor]) -> Callable[[nn.Module, Any], Tensor]:
    if isinstance(loss_fn, type):
        raise TypeError(f"loss_fn is the class {loss_fn.__name__}; pass an instance of it: {loss_fn.__name__}()")
    if not callable(loss_fn):
        raise TypeError(
            f"loss_fn must be None, a criterion (nn.Module) or a function of (model, batch); got {type(loss_fn).__name__}"
        )
    function = loss_fn
    while isinstance(function, functools.partial):
        function = function.func
    if getattr(function, "__module__", None) == F.__name__:
        name = getattr(function, "__name__", "loss")
        raise TypeError(
            f"torch.nn.functional.{name} takes (output, target), but a loss function is called with (model, batch); "
            f"pass the criterion module, or lambda model, batch: F.{name}(model(batch[0]), batch[1])"
        )
    return loss_fn


def _pair(batch: Any, what: str) -> tuple[Any, Any]:
    if isinstance(batch, (tuple, list)) and len(batch) == 2:
        return batch[0], batch[1]
    found = f"{type(batch).__name__} of {len(batch)}" if hasattr(batch, "__len__") else type(batch).__name__
    raise LossError(
        f"{what} needs batches of the form (inputs, targets); got a {found}. "
        "Pass loss_fn as a function of (model, batch) that returns the loss"
    )


def _mean_loss(value: Any, size: int, source: str) -> Tensor:
    """Check a loss, a scalar or one value a sample, and reduce it to its mean."""
    if not isinstance(value, Tensor):
        raise LossError(f"{source} returned {type(value).__name__}; it must return a tensor")
    if value.ndim != 0 and tuple(value.shape) != (size,):
        raise LossError(
            f"{source} returned a tensor of shape {tuple(value.shape)} for {size} samples; it must return a scalar mean, "
            f"shape (), or one loss per sample, shape ({size},)"
        )
    if not value.is_floating_point():
        raise LossError(f"{source} returned a tensor of dtype {value.dtype}; a loss is a real floating-point number")
    if torch.is_grad_enabled() and not value.requires_grad:
        raise LossError(
            f"{source} returned a loss that does not depend on any trainable parameter; "
            "look for .detach(), .item() or torch.no_grad() in the model or the loss"
        )
    return value.mean()


def _called(model: nn.Module, inputs: Any) -> Any:
    try:
        return model(inputs)
    except TypeError as error:
        if isinstance(inputs, (tuple, list)):
            error.add_note(
                f"(the model was called as model(inputs), inputs being a {type(inputs).__name__} of {len(inputs)}; a "
                "loss_fn of (model, batch) can spread it: model(*batch[0]))"
            )
        raise


_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


class _PairLoss(Loss):
    """A loss of the model's output on the inputs, and the targets."""

    source: str
    _first: Any = None
    _looked = False

    def look_at(self, batch: Any) -> None:
        if not self._looked:
            self._first, self._looked = batch, True

    def _look(self, logits: Tensor, criterion: nn.Module | None) -> None:
        """Look at the first batch, now that there are logits, of samples of it, with the classes along dimension 1."""
        batch, self._first = self._first, None
        if batch is not None:
            look_at_classes(logits, _pair(batch, self.source)[1], logits.shape[1], criterion)

    @abstractmethod
    def _of_output(self, output: Any, targets: Any) -> Any: ...

    def __call__(self, model: nn.Module, batch: Any, size: int) -> Tensor:
        inputs, targets = _pair(batch, self.source)
        return _mean_loss(self._of_output(_called(model, inputs), targets), size, self.source)

    def windows(self, model: nn.Module, batch: Any, windows: Sequence[Tensor], size: int) -> list[Tensor]:
        # The criterion sees just the samples of a window, so that one that is no plain mean over samples (class weights,
        # ignored targets) is what it would be on the sub-batch alone.
        inputs, targets = _pair(batch, self.source)
        output = _called(model, inputs)
        for name, tensor in named_tensors(output, "output"):
            if tensor.shape[:1] != (size,):
                raise LossError(
                    f'batch_norm="batch" takes each sub-batch out of the model\'s output, but {name} has shape '
                    f"{tuple(tensor.shape)} and not its {size} samples along the first dimension; pass a loss_fn of "
                    "(model, batch) that returns one loss per sample"
                )
        return [
            _mean_loss(self._of_output(take(output, window, size), take(targets, window, size)), len(window), self.source)
            for window in windows
        ]


def _are_logits(output: Any, targets: Any) -> bool:
    """Whether the criteria of torch take them for the scores of classes and class labels."""
    both = isinstance(output, Tensor) and isinstance(targets, Tensor) and targets.dtype in _INTEGERS
    return both and output.ndim >= 2 and output.shape[:1] + output.shape[2:] == targets.shape


class _CriterionLoss(_PairLoss):
    def __init__(self, criterion: nn.Module) -> None:
        self.source = f"the criterion {type(criterion).__name__}"
        self._criterion = criterion
        self._reduction = getattr(criterion, "reduction", None)

    def channel(self, output: Tensor, batch: Any) -> int | None:
        if isinstance(self._criterion, (nn.CrossEntropyLoss, nn.NLLLoss)) and output.ndim > 1:
            return 1  # as these criteria have it
        return super().channel(output, batch)

    def _of_output(self, output: Any, targets: Any) -> Any:
        if isinstance(self._criterion, (nn.CrossEntropyLoss, nn.NLLLoss)) and _are_logits(output, targets):
            self._look(output, self._criterion)
        value = self._criterion(output, targets)
        if not isinstance(value, Tensor):
            return value
        if self._reduction == "none" and value.ndim > 1:
            return value.flatten(1).mean(1)
        if self._reduction == "sum":  # gradients here are those of a mean over samples
            return value / batch_size(targets)
        return value


class _CrossEntropyLoss(_PairLoss):
    source = "the default loss, cross-entropy,"

    def _of_output(self, output: Any, targets: Any) -> Tensor:
        logits = output.logits if hasattr(output, "logits") else output
        if not isinstance(logits, Tensor):
            raise LossError(
                f"{self.source} needs a model that returns logits; it returned {type(output).__name__}. "
                "Pass loss_fn as a function of (model, batch)"
            )
        logits = self._classes_second(logits, targets)
        self._look(logits, None)
        return F.cross_entropy(logits, targets.long())

    def channel(self, output: Tensor, batch: Any) -> int | None:
        positions = _pair(batch, self.source)[1].shape[1:]  # the output may be that of a part of the samples
        if output.ndim > 1 and output.shape[2:] == positions:
            return 1
        return output.ndim - 1 if output.shape[1:-1] == positions else super().channel(output, batch)

    def _classes_second(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The logits with the classes along the second dimension; sequence models mostly have them along the last."""
        second = logits.ndim >= 2 and logits.shape[:1] + logits.shape[2:] == targets.shape
        last = logits.ndim >= 2 and logits.shape[:-1] == targets.shape
        shapes = f"logits of shape {tuple(logits.shape)} and targets of shape {tuple(targets.shape)}"
        if second and last and logits.ndim > 2:
            raise LossError(
                f"with {shapes}, the classes could be along the second or the last dimension; pass a loss_fn of "
                "(model, batch) that says which, such as "
                "lambda model, batch: F.cross_entropy(model(batch[0]).flatten(0, 1), batch[1].flatten()) for the last"
            )
        if logits.ndim < 2 or logits.shape[1 if second else -1] == 1:
            raise LossError(
                f"{self.source} needs a logit for each class, and got {shapes}: one logit a sample; for two classes, pass "
                "nn.BCEWithLogitsLoss(), with floating-point targets of the shape of the logits"
            )
        if not second and not last:
            one_hot = "; for one-hot targets, give targets.argmax(1), or targets.float() and nn.CrossEntropyLoss()"
            raise LossError(
                f"{self.source} needs logits with one dimension more than the targets, the classes, and got {shapes}"
                + (one_hot if logits.shape == targets.shape else "")
            )
        return logits if second else logits.movedim(-1, 1)


class _OutputLoss(Loss):
    """The ``.loss`` that the model itself puts into its output, as those of transformers do."""

    source = "the model's output .loss"

    def __call__(self, model: nn.Module, batch: Any, size: int) -> Tensor:
        try:
            output = model(**batch)
        except TypeError as error:
            error.add_note(
                "(the batch is a dict, so the model was called as model(**batch); a loss_fn of (model, batch) can pick its "
                "entries)"
            )
            raise
        value = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
        if value is None:
            raise LossError(
                f"the batch is a dict, so the default loss is that of the model's output, but {type(output).__name__} has "
                "no .loss; does the batch hold the labels? Otherwise pass loss_fn as a function of (model, batch)"
            )
        return _mean_loss(value, size, self.source)

    def windows(self, model: nn.Module, batch: Any, windows: Sequence[Tensor], size: int) -> list[Tensor]:
        raise LossError(_needs_samples(self.source))


class _DefaultLoss(Loss):
    """A loss that is chosen by the form of the batch."""

    def __init__(self) -> None:
        self._of_output, self._of_classes = _OutputLoss(), _CrossEntropyLoss()

    def look_at(self, batch: Any) -> None:
        self._of_classes.look_at(batch)

    def __call__(self, model: nn.Module, batch: Any, size: int) -> Tensor:
        return self._for(batch)(model, batch, size)

    def windows(self, model: nn.Module, batch: Any, windows: Sequence[Tensor], size: int) -> list[Tensor]:
        return self._for(batch).windows(model, batch, windows, size)

    def channel(self, output: Tensor, batch: Any) -> int | None:
        return self._for(batch).channel(output, batch)

    def _for(self, batch: Any) -> Loss:
        if isinstance(batch, Mapping):
            return self._of_output
        _, targets = _pair(batch, "the default loss (cross-entropy, as no loss_fn was given)")
        if not isinstance(targets, Tensor) or targets.dtype not in _INTEGERS:
            found = str(targets.dtype) if isinstance(targets, Tensor) else type(targets).__name__
            raise LossError(
                f"no loss_fn was given, and the targets are no integer class labels (torch.int64, say) but {found}; "
                "pass a criterion, such as nn.MSELoss(), or a function of (model, batch)"
            )
        return self._of_classes


_OUTPUTS = {
    "o",
    "out",
    "output",
    "outputs",
    "pred",
    "preds",
    "prediction",
    "predictions",
    "logits",
    "input",
    "y_pred",
    "y_hat",
}
_TARGETS = {"t", "target", "targets", "label", "labels", "y", "y_true"}


def _takes_output(function: Callable[..., Any]) -> bool:
    """Whether a function's signature shows that it is not meant to be called with a model and a batch."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # some built-in functions have none
        return False
    try:
        signature.bind(None, None)
    except TypeError:
        return True
    names = list(signature.parameters)
    return len(names) > 1 and (names[0] in _OUTPUTS or names[1] in _TARGETS)


class _FunctionLoss(Loss):
    def __init__(self, function: Callable[[nn.Module, Any], Tensor]) -> None:
        self._function = function
        self.source = f"loss_fn {getattr(function, '__name__', type(function).__name__)}"

    def _call(self, model: nn.Module, batch: Any) -> Any:
        try:
            return self._function(model, batch)
        except Exception as error:
            if _takes_output(self._function):
                error.add_note("(loss_fn is called with (model, batch) and returns the loss)")
            raise

    def __call__(self, model: nn.Module, batch: Any, size: int) -> Tensor:
        return _mean_loss(self._call(model, batch), size, self.source)

    def windows(self, model: nn.Module, batch: Any, windows: Sequence[Tensor], size: int) -> list[Tensor]:
        values = self._call(model, batch)
        if isinstance(values, Tensor) and values.ndim == 0:
            raise LossError(_needs_samples(self.source))
        _mean_loss(values, size, self.source)
        return [values.index_select(0, window.to(values.device)).mean() for window in windows]


def _needs_samples(source: str) -> str:
    return (
        f'batch_norm="batch" needs the loss of every sample from one forward pass, but {source} is a single number; '
        "pass a loss_fn of (model, batch) that returns one loss per sample, for example with reduction='none', "
        'or use batch_norm="subbatch"'
    )
