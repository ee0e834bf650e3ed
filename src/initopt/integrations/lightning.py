"""Callbacks for Lightning's Trainer, which work at the start of ``fit`` with the module's own training step and data."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor, nn

from initopt._support.errors import LossError
from initopt.choice.rate_result import LearningRates
from initopt.diagnosis import Diagnosis
from initopt.integrations._work import Batches, Diagnosing, FindingRate, Initializing, Work, refuse_sharded, undisturbed
from initopt.methods import Method
from initopt.model.losses import LossFunction, as_loss
from initopt.runs.result import Result

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
    from lightning.pytorch.loggers.logger import DummyLogger
    from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
    from lightning.pytorch.utilities import rank_zero_info
except ImportError as error:
    raise ImportError(
        f"initopt.integrations.lightning needs Lightning: pip install 'initopt[lightning]' ({error})"
    ) from error

__all__ = ["Diagnose", "FindLearningRate", "Initialize"]


class _AtTheStart(Callback):  # type: ignore[misc]
    """Some work at the start of ``fit``, on the module, its training step and its training batches.

    Args:
        work: what to do.
        loss: the loss, if it is not that of the training step.
    """

    result: Any = None

    def __init__(self, work: Work, loss: LossFunction | None) -> None:
        as_loss(loss)  # refuses what is no loss
        self._work, self._loss = work, loss

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse what cannot work, before anything else is done."""
        if stage == "fit":
            _refuse_strategy(trainer)
            if self._loss is None:
                _refuse_module(pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Do the work, all being there: weights of a checkpoint, optimizers, and loaders with their samplers."""
        self.result = None
        if trainer.ckpt_path is not None or trainer.global_step > 0:
            rank_zero_info(f"initopt: {type(self).__name__} leaves a training alone that goes on from a checkpoint")
            return
        if self._loss is None:
            _refuse_module(pl_module)  # automatic optimization may have been switched off since
        loss = _in_precision(trainer, pl_module, self._loss)
        optimizer = trainer.optimizers[0] if len(trainer.optimizers) == 1 else None
        with undisturbed(trainer.fit_loop._combined_loader), _muted(trainer, pl_module):
            self.result = self._work(pl_module, _batches(trainer, pl_module), loss, optimizer, **_where(trainer))
        self._done(trainer)
        self._report(trainer)

    def _done(self, trainer: Trainer) -> None:
        """What is done with the result."""

    def _report(self, trainer: Trainer) -> None:
        """Tell the user and the trainer's loggers."""
        rank_zero_info(f"{self.result}")
        if not trainer.is_global_zero:
            return
        for logger in trainer.loggers:
            logger.log_metrics(self._work.figures(self.result), step=trainer.global_step)
            _draw(logger, self.result, f"initopt/{type(self).__name__}", trainer.global_step)


class Initialize(_AtTheStart):
    """Improves the initial weights at the start of ``fit``, by any method.

    The loss is that of the module's ``training_step``, in the precision of the trainer, on the batches of its training
    loader; nothing is logged meanwhile, metrics count nothing, and training sees the batches that it would have seen
    anyhow. A training that goes on from a checkpoint is left alone. Under DDP all processes share the work, each with its
    own batches, and end with the same weights.

    The result is :attr:`result` afterwards (``None`` if a checkpoint was loaded); its figures go to the trainer's loggers,
    and a picture of it to those that take one (TensorBoard, Weights & Biases).

    Args:
        method: as for :func:`initopt.optimize`.
        loss: a loss in the place of the training step's, as for :func:`initopt.measure`: a function of ``(module, batch)``,
            preferably one loss per sample, with which many sub-batches are cheaper. Needed with manual optimization.
        options: of the method, and of :func:`initopt.optimize`: ``steps=50``, ``num_subbatches=8``, ``allow_trained=True``.

    Attributes:
        result: the :class:`initopt.Result` of the last fit.

    Raises:
        ValueError, TypeError: for an unknown method or option, when it is made; for a module with manual optimization, at
            the beginning of ``fit``, before any step.

    Example::

        start = initopt.integrations.lightning.Initialize("nio", steps=50)
        Trainer(max_epochs=10, callbacks=[start]).fit(module, loader)
        print(start.result)
    """

    result: Result | None = None

    def __init__(self, method: str | Method = "nio", loss: LossFunction | None = None, **options: Any) -> None:
        super().__init__(Initializing(method, options), loss)


class Diagnose(_AtTheStart):
    """Says at the start of ``fit`` what is wrong with the initial weights, and in which layer; it changes nothing.

    As :class:`Initialize`, it sees the module's own training step and batches, and also the module's optimizer, if it has
    one. Put it behind ``Initialize`` in the list of callbacks to look at the new weights.

    Args:
        loss: a loss in the place of the training step's, as for :func:`initopt.measure`.
        options: of :func:`initopt.diagnose`: ``tries=()``, ``ignore=["D"]``.

    Attributes:
        result: the :class:`initopt.Diagnosis` of the last fit; ``None`` if a checkpoint was loaded.

    Raises:
        TypeError: for an unknown option.

    Example::

        Trainer(callbacks=[initopt.integrations.lightning.Diagnose(tries=())]).fit(module, loader)
    """

    result: Diagnosis | None = None

    def __init__(self, loss: LossFunction | None = None, **options: Any) -> None:
        super().__init__(Diagnosing(options), loss)


class FindLearningRate(_AtTheStart):
    """Says at the start of ``fit`` which learning rates suit it, by short trainings; see :func:`initopt.find_lr`.

    As :class:`Initialize`, it sees the module's own training step and batches, and the class and settings of its optimizer.
    Afterwards, the model and the optimizer are as they were. Clipping and accumulation of gradients are not in it. Put it
    behind ``Initialize`` in the list of callbacks, since new weights may want another rate. Under DDP all processes run the
    trainings together, each with its own batches, and find the same rate.

    Args:
        loss: a loss in the place of the training step's, as for :func:`initopt.measure`.
        set_rate: whether the optimizer and its schedulers get the rate that was found; by default, it is only said.
        options: of :func:`initopt.find_lr`: ``budget=1000``, ``seeds=2``.

    Attributes:
        result: the :class:`initopt.choice.rate_result.LearningRates` of the last fit; ``None`` if a checkpoint was loaded.

    Raises:
        TypeError: for an unknown option.
        ValueError: for several optimizers.

    Example::

        Trainer(callbacks=[initopt.integrations.lightning.FindLearningRate(set_rate=True)]).fit(module, loader)
    """

    result: LearningRates | None = None

    def __init__(self, loss: LossFunction | None = None, *, set_rate: bool = False, **options: Any) -> None:
        self._search = FindingRate(set_rate, options)
        super().__init__(self._search, loss)

    def _done(self, trainer: Trainer) -> None:
        assert self.result is not None
        self._search.set(self.result, trainer.optimizers[0], [config.scheduler for config in trainer.lr_scheduler_configs])


def _refuse_strategy(trainer: Trainer) -> None:
    strategy = trainer.strategy
    if trainer.world_size > 1 and not isinstance(strategy, (DDPStrategy, ModelParallelStrategy)):
        refuse_sharded(type(strategy).__name__)
    if type(strategy).__name__ in ("DeepSpeedStrategy", "FSDPStrategy"):
        raise ValueError(f"{type(strategy).__name__} has no second derivative; use strategy='auto' or 'ddp'")


_INSTEAD = "; give loss=, a function of (module, batch) that returns the loss whose gradients count"


def _refuse_module(module: LightningModule) -> None:
    if not module.automatic_optimization:
        raise ValueError(
            f"{type(module).__name__} has manual optimization: its training_step takes optimizer steps by itself, and "
            f"returns no loss that could be differentiated{_INSTEAD}"
        )
    if "dataloader_iter" in inspect.signature(module.training_step).parameters:
        raise ValueError(
            f"the training_step of {type(module).__name__} reads its batches itself (dataloader_iter){_INSTEAD}"
        )


def _in_precision(trainer: Trainer, module: LightningModule, loss: LossFunction | None) -> LossFunction:
    """The loss, computed as the trainer runs a training step: under its autocast, say, or with its default precision."""
    precision = trainer.precision_plugin
    if isinstance(loss, nn.Module):
        criterion = loss
        loss = lambda model, batch: criterion(model(batch[0]), batch[1])  # noqa: E731
    of = _training_step(module) if loss is None else loss

    def in_precision(model: nn.Module, batch: Any) -> Tensor:
        with precision.train_step_context():
            return of(model, batch)

    return in_precision


def _training_step(module: LightningModule) -> Callable[[nn.Module, Any], Tensor]:
    names = list(inspect.signature(module.training_step).parameters)
    index = (0,) if "batch_idx" in names or len(names) > 1 else ()

    def training_step(model: nn.Module, batch: Any) -> Any:
        step: Any = model.training_step  # remedies are tried on a copy of the module
        found = step(batch, *index)
        if isinstance(found, Mapping):
            found = found.get("loss")
        if found is None:
            raise LossError(
                f"the training_step of {type(module).__name__} returned no loss for a batch (None skips it){_INSTEAD}"
            )
        return found

    return training_step


def _batches(trainer: Trainer, module: LightningModule) -> Batches:
    """The batches of an epoch, on the module's device and in the precision that its training step is given."""
    combined = trainer.fit_loop._combined_loader
    number = trainer.num_training_batches

    def prepared(found: tuple[Any, int, int]) -> Any:
        batch = trainer.precision_plugin.convert_input(found[0])
        batch = module._on_before_batch_transfer(batch, dataloader_idx=0)
        return trainer.strategy.batch_to_device(batch, dataloader_idx=0)

    # A copy, since the loop already reads from the iterator that this one has.
    return Batches(copy.copy(combined), prepared, None if math.isinf(number) else int(number))


def _where(trainer: Trainer) -> dict[str, Any]:
    """How the processes of a trainer share the work."""
    return {"process_group": torch.distributed.group.WORLD} if trainer.world_size > 1 else {}


@contextmanager
def _muted(trainer: Trainer, module: LightningModule) -> Iterator[None]:
    """A block in which nothing that a training step logs goes anywhere."""
    loggers = trainer.loggers
    modules = [each for each in module.modules() if isinstance(each, LightningModule)]
    own = [{name: vars(each)[name] for name in _LOGGING if name in vars(each)} for each in modules]
    try:
        trainer.loggers = [DummyLogger() for _ in loggers]
        for each in modules:
            vars(each).update(dict.fromkeys(_LOGGING, _ignore))
        yield
    finally:
        trainer.loggers = loggers
        for each, before in zip(modules, own, strict=True):
            for name in _LOGGING:
                vars(each).pop(name, None)
            vars(each).update(before)


_LOGGING = ("log", "log_dict")


def _ignore(*args: Any, **options: Any) -> None:
    pass


def _draw(logger: Any, result: Any, name: str, step: int) -> None:
    """Give a picture of a result to a logger that takes one."""
    experiment: Any = getattr(logger, "experiment", None)
    if hasattr(experiment, "add_figure"):
        experiment.add_figure(name, result.plot(), global_step=step)
    elif hasattr(logger, "log_image"):
        logger.log_image(key=name, images=[_pixels(result.plot())], step=step)


def _pixels(figure: Figure) -> np.ndarray[Any, Any]:
    """A figure as an array, shape ``(height, width, 4)``, of bytes."""
    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())
