"""The distributions that matrices are drawn from."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from initopt._support.checks import check_choice, check_number

__all__ = ["NAMES", "Draw", "Mode", "check_scheme", "make_draw"]

Mode = Literal["fan_in", "fan_out"]

NAMES: tuple[str, ...] = (
    "default",
    "kaiming_normal",
    "kaiming_uniform",
    "xavier_normal",
    "xavier_uniform",
    "orthogonal",
    "normal",
    "trunc_normal",
)
"""The schemes by name."""


def check_scheme(scheme: Any) -> None:
    """Refuse an unknown scheme with a ValueError that lists the known ones."""
    check_choice("scheme", scheme, NAMES)


@dataclass(frozen=True)
class Draw:
    """How to draw a matrix.

    Attributes:
        fill: fills a contiguous tensor, given the gain and the generator.
        textbook: the nonlinearity that the scheme is for, where nothing else is known.
        uses_gain: whether the gain matters.
    """

    fill: Callable[[Tensor, float, torch.Generator], object]
    textbook: str = "linear"
    uses_gain: bool = True

    def matrix(self, shape: torch.Size, dtype: torch.dtype, gain: float, generator: torch.Generator) -> Tensor:
        """A new matrix on the CPU, drawn in single precision or more, so that it is the same on every device."""
        wide = torch.promote_types(dtype, torch.float32)
        block = torch.empty(shape, dtype=wide, device="cpu")
        self.fill(block, gain, generator)
        return block


def make_draw(scheme: str, mode: Mode, std: float) -> Draw:
    """The draw of a scheme.

    Args:
        scheme: one of :data:`NAMES` but ``"default"``, which is no distribution of its own.
        mode: which fan Kaiming's variance is over.
        std: standard deviation of ``"normal"`` and ``"trunc_normal"``.

    Raises:
        ValueError: for a mode or deviation that cannot be, or that the scheme has no use for.
    """
    check_choice("mode", mode, ("fan_in", "fan_out"))
    check_number("std", std, above=0, finite=True)
    if mode != "fan_in" and not scheme.startswith("kaiming"):
        raise ValueError(f"mode={mode!r} is for the kaiming schemes; {scheme!r} has no use for it")
    if std != 0.02 and scheme not in ("normal", "trunc_normal"):
        raise ValueError(f"std={std!r} is for the schemes 'normal' and 'trunc_normal'; {scheme!r} has its own")

    def deviation(w: Tensor, gain: float) -> float:
        outputs, inputs, *kernel = w.shape
        return float(gain / ((inputs if mode == "fan_in" else outputs) * math.prod(kernel)) ** 0.5)

    draws = {
        "kaiming_normal": Draw(lambda w, gain, g: w.normal_(0, deviation(w, gain), generator=g), "relu"),
        "kaiming_uniform": Draw(lambda w, gain, g: _uniform(w, deviation(w, gain), g), "relu"),
        "xavier_normal": Draw(lambda w, gain, g: nn.init.xavier_normal_(w, gain, generator=g)),
        "xavier_uniform": Draw(lambda w, gain, g: nn.init.xavier_uniform_(w, gain, generator=g)),
        "orthogonal": Draw(lambda w, gain, g: nn.init.orthogonal_(w, gain, generator=g)),
        "normal": Draw(lambda w, gain, g: w.normal_(0, std, generator=g), uses_gain=False),
        "trunc_normal": Draw(
            lambda w, gain, g: nn.init.trunc_normal_(w, std=std, a=-2 * std, b=2 * std, generator=g), uses_gain=False
        ),
    }
    return draws[scheme]


def _uniform(w: Tensor, deviation: float, generator: torch.Generator) -> Tensor:
    bound = deviation * 3**0.5
    return w.uniform_(-bound, bound, generator=generator)
