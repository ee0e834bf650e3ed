"""The loss of a model on batches that it is not trained on."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from initopt.batches.nested import batch_size, map_tensors, to_device
from initopt.model.losses import Loss
from initopt.model.modes import ModeGuard
from initopt.model.randomness import Stream, seeded

__all__ = ["losses_on"]


def losses_on(model: nn.Module, batches: Iterable[Any], loss: Loss, seed: int, training: bool = False) -> list[float]:
    """The mean loss of each batch, in evaluation mode by default.

    Args:
        model: its modules are in the modes of before afterwards.
        batches: of any device; they stay as they are.
        loss: what is computed.
        seed: of what a model draws; the same in each look.
        training: whether to look in training mode, in which buffers may change.
    """
    device = next(iter(model.parameters())).device
    guard = ModeGuard(model)
    try:
        model.train(training)
        losses = []
        for number, data in enumerate(batches):

            def value(data: Any = data, number: int = number) -> Tensor:
                with seeded(seed, Stream.LOOKS, number):
                    return loss(model, map_tensors(torch.clone, to_device(data, device)), batch_size(data)).detach()

            try:
                with torch.no_grad():
                    losses.append(value())
            except RuntimeError:  # a loss may itself differentiate, as a penalty on gradients does
                with torch.enable_grad():
                    losses.append(value())
        return [float(value) for value in losses]
    finally:
        guard.put_back()
