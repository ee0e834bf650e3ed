"""Callbacks for the Trainer of transformers, which work when training begins, with its own loss and data."""

from __future__ import annotations

import numbers
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from initopt._support.errors import LossError
from initopt.batches.stream import length_of
from initopt.choice.rate_result import LearningRates
from initopt.diagnosis import Diagnosis
from initopt.integrations._work import (
    Batches,
    Diagnosing,
    FindingRate,
    Initializing,
    Work,
    bare_optimizer,
    refuse_sharded,
    undisturbed,
)
from initopt.methods import Method
from initopt.model.losses import LossFunction, as_loss
from initopt.model.sharded import has_shards
from initopt.runs.result import Result

try:
    from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
except ImportError as error:
    raise ImportError(
        f"initopt.integrations.transformers needs transformers: pip install 'initopt[transformers]' ({error})"
    ) from error

__all__ = ["Diagnose", "FindLearningRate", "Initialize"]


class _WhenItBegins(TrainerCallback):  # type: ignore[misc]
    """Some work when training begins, on the trainer's model, loss and training batches.

    Args:
        work: what to do.
        loss: the loss, if it is not that of the trainer.
        trainer: whose ``compute_loss`` is the loss.
    """

    result: Any = None

    def __init__(self, work: Work, loss: LossFunction | None, trainer: Trainer | None) -> None:
        as_loss(loss)  # refuses what is no loss
        if trainer is not None and not isinstance(trainer, Trainer):
            raise TypeError(f"trainer must be a transformers.Trainer; got {type(trainer).__name__}")
        self._work, self._loss = work, loss
        self.trainer = trainer

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **present: Any) -> None:
        """Do the work, all being there: weights of a checkpoint, and the loader of this process."""
        self.result = None
        if state.global_step > 0:
            self._say(state, f"initopt: {type(self).__name__} leaves a training alone that goes on from a checkpoint")
            return
        trainer = self.trainer
        if trainer is None and self._loss is None:
            name = type(self).__name__
            raise ValueError(
                f"{name} needs the trainer, whose compute_loss is the loss: "
                f"trainer.add_callback({name}(..., trainer=trainer)) in the place of callbacks=[...]; or give it "
                "loss=, a function of (model, batch)"
            )
        _refuse_strategy(args, present["model"])
        if trainer is not None and trainer.callback_handler is not None and trainer.model is not present["model"]:
            raise ValueError(f"{type(self).__name__} was given another trainer than the one that it is a callback of")
        loader, model = present["train_dataloader"], present["model"]
        loss = _loss_of(trainer) if self._loss is None else self._loss
        batches = Batches(loader, _as_dict, length_of(loader))
        with undisturbed(loader), _books_kept(trainer):
            self.result = self._work(model, batches, loss, bare_optimizer(present["optimizer"]), **_where(args))
        self._done(present["optimizer"], present["lr_scheduler"])
        self._say(state, str(self.result))
        if trainer is not None:
            trainer.log(self._work.figures(self.result))

    def _done(self, optimizer: Any, scheduler: Any) -> None:
        """What is done with the result."""

    @staticmethod
    def _say(state: TrainerState, message: str) -> None:
        if state.is_world_process_zero:
            print(message)


class Initialize(_WhenItBegins):
    """Improves the initial weights when training begins, by any method.

    The loss is that of ``trainer.compute_loss``, your own or that of a subclass included, with label smoothing and in the
    precision of the arguments; the batches are those of the training loader. Nothing is logged meanwhile, and training
    sees the batches that it would have seen anyhow. A training that goes on from a checkpoint is left alone. In several
    processes (``torchrun``) all share the work, each with its own batches, and end with the same weights.

    The result is :attr:`result` afterwards (``None`` if a checkpoint was loaded); its figures go to ``trainer.log``.

    Args:
        method: as for :func:`initopt.optimize`.
        loss: a loss in the place of the trainer's, as for :func:`initopt.measure`. One loss per sample, from a function of
            ``(model, batch)``, makes many sub-batches cheaper.
        trainer: the trainer that this is a callback of, whose ``compute_loss`` is the loss; not needed with a ``loss``.
        options: of the method, and of :func:`initopt.optimize`: ``steps=50``, ``num_subbatches=8``, ``allow_trained=True``.

    Attributes:
        result: the :class:`initopt.Result` of the last training.

    Raises:
        ValueError, TypeError: for an unknown method or option, when it is made; without ``trainer`` and ``loss``, or with
            DeepSpeed or FSDP but of version 2, when training begins, before any step.

    Example::

        trainer = Trainer(model, args, train_dataset=data)
        trainer.add_callback(initopt.integrations.transformers.Initialize("nio", trainer=trainer))
        trainer.train()
    """

    result: Result | None = None

    def __init__(
        self,
        method: str | Method = "nio",
        loss: LossFunction | None = None,
        *,
        trainer: Trainer | None = None,
        **options: Any,
    ) -> None:
        super().__init__(Initializing(method, options), loss, trainer)


class Diagnose(_WhenItBegins):
    """Says when training begins what is wrong with the initial weights, and in which layer; it changes nothing.

    As :class:`Initialize`, it sees the trainer's own loss and batches, and also its optimizer. Added after ``Initialize``,
    it looks at the new weights.

    Args:
        loss: a loss in the place of the trainer's, as for :func:`initopt.measure`.
        trainer: the trainer that this is a callback of, whose ``compute_loss`` is the loss; not needed with a ``loss``.
        options: of :func:`initopt.diagnose`: ``tries=()``, ``ignore=["D"]``.

    Attributes:
        result: the :class:`initopt.Diagnosis` of the last training; ``None`` if a checkpoint was loaded.

    Raises:
        TypeError: for an unknown option.
        ValueError: as :class:`Initialize`.

    Example::

        trainer.add_callback(initopt.integrations.transformers.Diagnose(trainer=trainer, tries=()))
    """

    result: Diagnosis | None = None

    def __init__(self, loss: LossFunction | None = None, *, trainer: Trainer | None = None, **options: Any) -> None:
        super().__init__(Diagnosing(options), loss, trainer)


class FindLearningRate(_WhenItBegins):
    """Says when training begins which learning rates suit it, by short trainings; see :func:`initopt.find_lr`.

    As :class:`Initialize`, it sees the trainer's own loss and batches, and the class and settings of its optimizer.
    Afterwards, the model and the optimizer are as they were. Clipping and accumulation of gradients are not in it. Add it
    after ``Initialize``, since new weights may want another rate. Under DDP all processes run the trainings together, each
    with its own batches, and find the same rate.

    Args:
        loss: a loss in the place of the trainer's, as for :func:`initopt.measure`.
        trainer: the trainer that this is a callback of, whose ``compute_loss`` is the loss; not needed with a ``loss``.
        set_rate: whether the optimizer and its schedule get the rate that was found; by default, it is only said.
        options: of :func:`initopt.find_lr`: ``budget=1000``, ``seeds=2``.

    Attributes:
        result: the :class:`initopt.choice.rate_result.LearningRates` of the last training; ``None`` if a checkpoint was
            loaded.

    Raises:
        TypeError: for an unknown option.
        ValueError: as :class:`Initialize`.

    Example::

        trainer.add_callback(initopt.integrations.transformers.FindLearningRate(trainer=trainer, set_rate=True))
    """

    result: LearningRates | None = None

    def __init__(
        self,
        loss: LossFunction | None = None,
        *,
        trainer: Trainer | None = None,
        set_rate: bool = False,
        **options: Any,
    ) -> None:
        self._search = FindingRate(set_rate, options)
        super().__init__(self._search, loss, trainer)

    def _done(self, optimizer: Any, scheduler: Any) -> None:
        own = bare_optimizer(optimizer)
        assert self.result is not None
        assert own is not None  # it has been looked at
        self._search.set(self.result, own, [getattr(scheduler, "scheduler", scheduler)])


def _refuse_strategy(args: TrainingArguments, model: nn.Module) -> None:
    for name, used in {"DeepSpeed": args.deepspeed, "FSDP": args.fsdp and not has_shards(model)}.items():
        if used:
            refuse_sharded(name)


def _as_dict(batch: Any) -> Any:
    """A batch as the model is called with it."""
    return dict(batch) if hasattr(batch, "keys") else batch


def _loss_of(trainer: Trainer) -> LossFunction:
    """The trainer's ``compute_loss`` as in a training step, but for the share of an accumulated batch."""

    def compute_loss(model: nn.Module, batch: Any) -> Any:
        with trainer.compute_loss_context_manager():
            found = trainer.compute_loss(model, dict(batch), **_count(trainer, batch))
        if found is None:
            raise LossError(f"compute_loss of {type(trainer).__name__} returned None; it must return the loss")
        shared = trainer.compute_loss_func is not None and trainer.args.average_tokens_across_devices
        return found / trainer.accelerator.num_processes if shared else found

    return compute_loss


def _count(trainer: Trainer, batch: Any) -> dict[str, Tensor]:
    """How many labels a batch has, for a function that divides by it; models have a mean of their own."""
    labels = batch.get("labels")
    if trainer.compute_loss_func is None or not isinstance(labels, Tensor):
        return {}
    return {"num_items_in_batch": (labels != -100).sum()}


def _where(args: TrainingArguments) -> dict[str, Any]:
    """How the processes of a training share the work."""
    return {"process_group": torch.distributed.group.WORLD} if args.world_size > 1 else {}


@contextmanager
def _books_kept(trainer: Trainer | None) -> Iterator[None]:
    """A block in which a trainer logs nothing, and after which its running figures are what they were.

    Trainers add up what a loss reports in numbers, and lists and dicts of them.
    """
    if trainer is None:
        yield
        return
    own = vars(trainer)
    before = set(own)
    kept = {name: _copied(value) for name, value in own.items() if _is_figures(value)}
    log = own.get("log")
    own["log"] = lambda *args, **options: None
    try:
        yield
    finally:
        own.pop("log", None)
        if log is not None:
            own["log"] = log
        for name in [name for name, value in own.items() if name not in before and _is_figures(value)]:
            del own[name]
        for name, value in kept.items():
            now = own.get(name)
            if isinstance(now, list) and isinstance(value, list):
                now[:] = value
            elif isinstance(now, dict) and isinstance(value, dict):
                now.clear()
                now.update(value)
            else:
                own[name] = value


def _is_figures(value: Any) -> bool:
    """Whether a value is a number, or a nest of lists and dicts of numbers."""
    if isinstance(value, dict):
        return all(_is_figures(item) for item in value.values())
    if isinstance(value, list):
        return all(_is_figures(item) for item in value)
    return value is None or isinstance(value, (str, numbers.Number))


def _copied(value: Any) -> Any:
    if isinstance(value, dict):
        copy = value.copy()  # of its own class
        copy.update({key: _copied(item) for key, item in value.items()})
        return copy
    return [_copied(item) for item in value] if isinstance(value, list) else value
