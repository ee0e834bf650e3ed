"""One model of the sweep."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from initopt.model.losses import LossFunction

__all__ = ["BATCH_SIZE", "NUM_CLASSES", "Case", "image_batch"]

BATCH_SIZE = 8
NUM_CLASSES = 10


@dataclass(frozen=True)
class Case:
    """A model with a batch and a loss.

    Attributes:
        name: as the library calls it.
        family: module of the library that the architecture is from.
        library: the library.
        note: how it was made small.
        build: makes the model in float32.
        draw: makes a batch in float32.
        loss_fn: as for :func:`initopt.measure`.
        refusal: what is said of it in an error message, if it cannot be measured.
    """

    name: str
    family: str
    library: str
    note: str
    build: Callable[[], nn.Module]
    draw: Callable[[], Any]
    loss_fn: LossFunction | None = None
    refusal: str = ""


def image_batch(size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise with labels."""
    return torch.randn(BATCH_SIZE, 3, size, size), torch.randint(NUM_CLASSES, (BATCH_SIZE,))
