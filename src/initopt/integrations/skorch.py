"""Callbacks for the nets of skorch, which work before the first step with the net's own iterator, criterion and split."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.utils.data import Dataset

from initopt.batches.stream import length_of
from initopt.diagnosis import Diagnosis
from initopt.integrations._work import Batches, Diagnosing, Initializing, Work, as_it_is, undisturbed
from initopt.methods import Method
from initopt.model.losses import LossFunction, as_loss
from initopt.runs.result import Result

try:
    from skorch import NeuralNet
    from skorch.callbacks import Callback
except ImportError as error:
    raise ImportError(f"initopt.integrations.skorch needs skorch: pip install 'initopt[skorch]' ({error})") from error

__all__ = ["Diagnose", "Initialize"]


class _BeforeTheFirstStep(Callback):  # type: ignore[misc]
    """Some work before the first step, on the net's module, loss and training batches.

    Args:
        work: what to do.
        loss: the loss, if it is not that of the net.
        arguments: what this callback was made with, by name, ``loss`` among it.
    """

    result: Any = None

    def __init__(self, work: Work, loss: LossFunction | None, **arguments: Any) -> None:
        as_loss(loss)  # refuses what is no loss
        self._work, self._loss, self._arguments = work, loss, {"loss": loss} | arguments

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """What this callback was made with: a grid search makes each of its copies with that."""
        return dict(self._arguments)

    def set_params(self, **params: Any) -> _BeforeTheFirstStep:
        """Make it anew with other arguments.

        Raises:
            ValueError, TypeError: for an option that there is not.
        """
        type(self).__init__(self, **(self._arguments | params))
        return self

    def on_train_begin(self, net: NeuralNet, X: Any = None, y: Any = None, **present: Any) -> None:  # noqa: N803
        """Refuse what cannot work, before anything else is done."""
        self.result = None
        if self._loss is None:
            _refuse_net(net)

    def on_epoch_begin(self, net: NeuralNet, dataset_train: Dataset[Any] | None = None, **present: Any) -> None:
        """Do the work, if this is the first epoch of all: the training split is there, and the weights are new."""
        if len(net.history) > 1 or dataset_train is None:
            return
        iterator = net.get_iterator(dataset_train, training=True)
        with undisturbed(iterator):
            batches = Batches(iterator, as_it_is, length_of(iterator))
            self.result = self._work(net.module_, batches, self._loss or _loss_of(net), net.optimizer_)
        if net.verbose:
            print(self.result)


class Initialize(_BeforeTheFirstStep):
    """Improves the initial weights of a net before its first step, by any method.

    The loss is the net's ``get_loss`` of what its ``infer`` returns, and the batches are those of its ``iterator_train`` on
    the training split. Training sees the batches that it would have seen anyhow. Only the first epoch of all has it: not
    that of ``partial_fit``, or of ``fit`` with ``warm_start``, on a net that has been trained, by its ``history``.

    The result is :attr:`result` afterwards, ``None`` where training went on; it is printed if the net is ``verbose``.

    Args:
        method: as for :func:`initopt.optimize`.
        loss: a loss in the place of the net's, as for :func:`initopt.measure`: a function of ``(module, batch)``, where a
            batch is what the iterator gives. Needed for a class with a training step of its own, and where ``fit`` is given
            what ``forward`` takes beside ``X``.
        options: of the method, and of :func:`initopt.optimize`: ``steps=50``, ``num_subbatches=8``.

    Attributes:
        result: the :class:`initopt.Result` of the last ``fit``.

    Raises:
        ValueError, TypeError: for an unknown method or option, when it is made.

    Example::

        NeuralNetClassifier(Net, callbacks=[("initopt", Initialize("nio", steps=50))]).fit(X, y)
    """

    result: Result | None = None

    def __init__(self, method: str | Method = "nio", loss: LossFunction | None = None, **options: Any) -> None:
        super().__init__(Initializing(method, options), loss, method=method, **options)


class Diagnose(_BeforeTheFirstStep):
    """Says before the first step of a net what is wrong with the initial weights, and in which layer; it changes nothing.

    As :class:`Initialize`, it sees the net's own loss and batches, and also its optimizer. Put it behind ``Initialize`` in
    the list of callbacks to look at the new weights.

    Args:
        loss: a loss in the place of the net's, as for :class:`Initialize`.
        options: of :func:`initopt.diagnose`: ``tries=()``, ``ignore=["D"]``.

    Attributes:
        result: the :class:`initopt.Diagnosis` of the last ``fit``; ``None`` where training went on.

    Raises:
        TypeError: for an unknown option.

    Example::

        NeuralNetClassifier(Net, callbacks=[Diagnose(tries=())]).fit(X, y)
    """

    result: Diagnosis | None = None

    def __init__(self, loss: LossFunction | None = None, **options: Any) -> None:
        super().__init__(Diagnosing(options), loss, **options)


def _refuse_net(net: NeuralNet) -> None:
    for name in ("train_step", "train_step_single"):
        if getattr(type(net), name) is not getattr(NeuralNet, name):
            raise ValueError(
                f"{type(net).__name__} has a {name} of its own, so get_loss may not be what its training descends; give "
                "loss=, a function of (module, batch) that returns the loss whose gradients count"
            )


def _loss_of(net: NeuralNet) -> LossFunction:
    """The loss of a training step of a net, with its own module or a copy of this."""

    def loss(module: nn.Module, batch: Any) -> Tensor:
        other = object.__new__(type(net))  # copy.copy would pickle the net
        vars(other).update(vars(net) | {"module_": module})
        inputs, targets = batch
        found: Tensor = other.get_loss(other.infer(inputs), targets, X=inputs, training=True)
        return found

    return loss
