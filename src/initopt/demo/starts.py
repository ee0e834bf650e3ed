"""The starts that the demo compares."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

__all__ = ["STARTS", "Start", "xavier_"]


Start = Literal["default", "xavier", "nio"]

STARTS: dict[Start, str] = {"default": "default", "xavier": "Xavier", "nio": "NIO"}
"""How each start is called in tables and pictures."""


def xavier_(model: nn.Module, seed: int) -> None:
    """Draw the weights as textbooks do for tanh: Xavier's normal rule with gain 5/3, biases zero.

    The rule had to know the activation; it shows what somebody who knows it would have got without NIO.

    Args:
        model: its linear layers are changed in place.
        seed: of the draw.
    """
    generator = torch.Generator().manual_seed(seed)
    gain = nn.init.calculate_gain("tanh")
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_normal_(module.weight, gain=gain, generator=generator)
            nn.init.zeros_(module.bias)
