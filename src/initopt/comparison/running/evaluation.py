"""A look at a model on data that it is not trained on."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from initopt.batches.nested import batch_size, to_device
from initopt.comparison.running.batches import all_batches
from initopt.model.centring import watching
from initopt.model.losses import Loss

__all__ = ["Judge", "hits", "share"]


class Judge:
    """Looks at models on one data set.

    Args:
        dataset: what to look at; all of it, each time.
        size: samples in a batch.
        loss: what is computed.
        device: where the model is.
        seed: of what the data set draws.
        loaders: how many other processes make the batches.
    """

    def __init__(
        self, dataset: Dataset[Any], size: int, loss: Loss, device: torch.device, seed: int = 0, loaders: int = 0
    ) -> None:
        self._batches = all_batches(dataset, size, seed, loaders)
        self._loss = loss
        self._device = device

    @torch.no_grad()
    def __call__(self, model: nn.Module) -> tuple[float, float | None]:
        """Mean loss and accuracy, in evaluation mode; accuracy is ``None`` where there are no classes.

        The model is in training mode afterwards.
        """
        losses, counts, found = [], [], []
        model.eval()
        with watching(model) as outputs:
            for data in self._batches:
                batch = to_device(data, self._device)
                counts.append(batch_size(batch))
                losses.append(self._loss(model, batch, counts[-1]).double() * counts[-1])
                found.append(hits(outputs[-1] if outputs else None, batch))
                outputs.clear()
        model.train()
        return float(torch.stack(losses).sum()) / sum(counts), share(found)


def hits(output: Any, batch: Any) -> Tensor | None:
    """How many predictions are right, and how many there are, shape ``(2,)``; ``None`` where there are no classes.

    There are classes where a batch is a pair of inputs and integer targets, and the output has one dimension more than
    the targets, the second or the last. Negative targets do not count, as in the cross-entropy.

    >>> hits(torch.tensor([[0.1, 0.9], [0.1, 0.9]]), (None, torch.tensor([1, 0]))).tolist()
    [1, 2]
    """
    if not isinstance(batch, (tuple, list)) or len(batch) != 2:
        return None
    logits, targets = getattr(output, "logits", output), batch[1]
    if not isinstance(logits, Tensor) or not isinstance(targets, Tensor):
        return None
    if targets.is_floating_point() or targets.is_complex() or logits.ndim != targets.ndim + 1 or not targets.ndim:
        return None
    second = logits.shape[:1] + logits.shape[2:] == targets.shape
    if not second and logits.shape[:-1] != targets.shape:
        return None
    dimension = 1 if second else -1
    if logits.shape[dimension] == 1:
        return None
    counted = targets >= 0
    right = (logits.detach().argmax(dimension) == targets) & counted
    return torch.stack([right.sum(), counted.sum()])


def share(found: list[Tensor | None]) -> float | None:
    """Right predictions out of all, over some batches.

    >>> share([torch.tensor([1, 2]), torch.tensor([2, 2])]), share([None])
    (0.75, None)
    """
    counts = [pair for pair in found if pair is not None]
    if not counts:
        return None
    right, total = torch.stack(counts).sum(0).tolist()
    return right / total if total else None
