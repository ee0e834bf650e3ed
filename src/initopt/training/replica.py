"""Training steps that several processes do together, each on its own batches, as ``DistributedDataParallel`` does them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from initopt.model.checksums import checksums
from initopt.model.ranks import Alone, Ranks
from initopt.model.sharded import is_sharded, whole_parameters
from initopt.training.steps import Trainer, parameters_of

__all__ = ["Replica"]


@dataclass
class Replica(Trainer):
    """A trainer of a model that every process has, with the same weights: gradients and losses are means over processes.

    What is in parts on them, by ``fully_shard`` or tensor parallelism, has the gradient of its own backward pass.

    Before a step, buffers are those of rank 0. All ranks then have the same loss and do the same update, bit for bit, and
    come to the same decision by it. Where one fails, so do the others, in the exchange that they come to next; a
    ``DistributedDataParallel`` would have them wait in its reduction.

    Attributes:
        ranks: the processes; of one alone, this is a :class:`Trainer`.
    """

    ranks: Ranks = field(default_factory=Alone)

    def step(self, batch: Any) -> Tensor:
        """As :meth:`Trainer.step`, with the batch of this rank; the loss is float64."""
        if self.ranks.size == 1:
            return super().step(batch)
        self.share_buffers()
        with ExitStack() as stack:
            if self.own is not None:
                stack.enter_context(self._averaging())
            loss = float(super().step(batch))
        return torch.tensor(self.ranks.mean(loss, "a training loss"), dtype=torch.float64)

    def differentiate(self, loss: Tensor) -> None:
        super().differentiate(loss)
        if self.ranks.size > 1:
            self._average(self._whole(), "gradients")

    def _whole(self) -> list[Tensor]:
        return [parameter for parameter in parameters_of(self.optimizer) if not is_sharded(parameter)]

    @contextmanager
    def _averaging(self) -> Iterator[None]:
        """A block in which each gradient is that of all ranks as soon as a backward pass has it.

        A mean of means is the mean, so that a step may take several passes.
        """
        with ExitStack() as stack:
            for number, parameter in enumerate(self._whole()):
                average = partial(self._average_one, f"gradient {number}")
                hook = parameter.register_post_accumulate_grad_hook(average)  # type: ignore[no-untyped-call]
                stack.callback(hook.remove)
            yield

    def _average_one(self, place: str, parameter: Tensor) -> None:
        self._average([parameter], place)

    def _average(self, parameters: list[Tensor], place: str) -> None:
        shares = [None if p.grad is None else p.grad / self.ranks.size for p in parameters]
        gradients = self.ranks.sum_gradients(shares, parameters, place)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient

    def share_buffers(self) -> None:
        """Have the buffers of rank 0, such as running statistics."""
        self.ranks.copy_first(list(self.model.buffers()), "buffers")

    def mean_of(self, losses: list[float]) -> list[float]:
        """The means of some losses over ranks."""
        if self.ranks.size == 1:
            return losses
        own = torch.tensor(losses, dtype=torch.float64, device="cpu")
        means: list[float] = self.ranks.sum(own / self.ranks.size, "losses").tolist()
        return means

    def refuse_apart(self) -> None:
        """Refuse to go on where ranks have come to different weights.

        Raises:
            RankError: naming a rank and tensors.
        """
        if self.ranks.size > 1:
            advice = (
                "all ranks have to take the same steps: gradients are averaged in backward() of the loss, which a step of "
                "your own has to call as often on each of them"
            )
            self.ranks.same(checksums(whole_parameters(self.model)), "the weights that training has left", advice)
