"""An entry of the gallery: a model, a batch and a loss."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from initopt.batches.nested import map_tensors
from initopt.batches.subbatches import SubBatches
from initopt.model.losses import LossFunction, as_loss
from initopt.model.parameters import Parameters
from initopt.model.problem import Problem

SEED = 5
"""Base of the seeds for what a model draws."""


@contextmanager
def double_precision(seed: int) -> Iterator[None]:
    """New tensors are float64, and draws depend on the seed alone."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            yield
    finally:
        torch.set_default_dtype(before)


_SINGLE = {torch.float64: torch.float32, torch.complex128: torch.complex64}


@dataclass(frozen=True)
class Entry:
    """One odd little architecture with a batch and a loss.

    What :attr:`build`, :attr:`draw` and :attr:`loss` make is in float64, and the same in every call: they draw from torch's
    random numbers, which are seeded for them.

    Attributes:
        name: says what is odd.
        build: makes the model.
        draw: makes a batch.
        loss: makes the ``loss_fn``; each call a new one. By default there is none.
        modes: the values of ``batch_norm`` that its loss allows.
        train_mode: whether it is measured in training mode.
        num_subbatches: D, the number of sub-batches.
        overlap: share by which sub-batches overlap.
        smooth: whether its gradient has no kinks and jumps, so that central differences may take a long step.
        double_backward: whether torch has a second derivative for it.
        conservative: whether what it calls its gradient is the gradient of something. Where it is not, double backward
            defines the derivative, and differences do not see it.
    """

    name: str
    build: Callable[[], nn.Module]
    draw: Callable[[], Any]
    loss: Callable[[], LossFunction | None] = lambda: None
    modes: tuple[str, ...] = ("subbatch", "batch")
    train_mode: bool = False
    num_subbatches: int = 3
    overlap: float = 0.25
    smooth: bool = True
    double_backward: bool = True
    conservative: bool = True

    def model(self, seed: int = 0) -> nn.Module:
        """A new model in float64, the same one for the same seed."""
        with double_precision(seed):
            return self.build()

    def batch(self, seed: int = 1) -> Any:
        """A new batch, the same one for the same seed."""
        with double_precision(seed):
            return self.draw()

    def loss_fn(self) -> LossFunction | None:
        with double_precision(2):
            return self.loss()

    def single(self) -> Entry:
        """The same in single precision: weights, batch and what the loss keeps."""
        return self._moved(lambda tensor: tensor.to(_SINGLE.get(tensor.dtype, tensor.dtype)))

    def to(self, device: torch.device | str) -> Entry:
        """The same on a device; drawn on the CPU, and so the same everywhere."""
        return self._moved(lambda tensor: tensor.to(device))

    def _moved(self, move: Callable[[Tensor], Tensor]) -> Entry:
        def module(made: Any) -> Any:
            return made._apply(move) if isinstance(made, nn.Module) else made

        return replace(
            self,
            build=lambda: module(self.build()),
            draw=lambda: map_tensors(move, self.draw()),
            loss=lambda: module(self.loss()),
        )

    def problem(
        self, model: nn.Module, batch_norm: Any, *, num_subbatches: int | None = None, seed: int = SEED, **options: Any
    ) -> Problem:
        """What an engine works on; the options are those of the sub-batches, and the two filters of parameters."""
        filters = {name: options.pop(name, None) for name in ("grad_params", "scale_params")}
        count = self.num_subbatches if num_subbatches is None else num_subbatches
        subbatches = SubBatches(count=count, batch_norm=batch_norm, **{"overlap": self.overlap, **options})
        return Problem(model, as_loss(self.loss_fn()), Parameters.of(model, **filters), subbatches, seed)
