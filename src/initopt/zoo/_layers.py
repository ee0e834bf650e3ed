"""Parts and checks that several of the networks share."""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor, nn
from torch.nn import functional as F

from initopt._support.checks import check_choice, check_integer

__all__ = ["Norm", "TransformerBlock", "check_heads", "check_norm", "check_sizes", "convolution", "norm_layer"]

Norm = Literal["batch", "none"]


def check_sizes(**sizes: Any) -> None:
    """Raise a ValueError unless all sizes are positive integers."""
    for name, value in sizes.items():
        check_integer(name, value, 1)


def check_norm(norm: str) -> None:
    """Raise a ValueError, which lists the known ones, for an unknown norm."""
    check_choice("norm", norm, ("batch", "none"))


def check_heads(width: int, heads: int) -> None:
    """Raise a ValueError unless the heads share the width equally."""
    if width % heads:
        raise ValueError(f"width must be a multiple of heads; got width {width} and {heads} heads")


def convolution(inputs: int, outputs: int, norm: Norm, *, size: int = 3, stride: int = 1) -> nn.Conv2d:
    """A convolution that keeps height and width at stride 1, with a bias only where no norm would undo it."""
    return nn.Conv2d(inputs, outputs, size, stride=stride, padding=size // 2, bias=norm == "none")


def norm_layer(norm: Norm, channels: int) -> nn.Module:
    """A batch norm, or nothing."""
    return nn.BatchNorm2d(channels) if norm == "batch" else nn.Identity()


class TransformerBlock(nn.Module):
    """Self-attention, then two linear layers, each after a layer norm and beside a shortcut.

    Args:
        width: number of features.
        heads: number of attention heads; divides the width.
        causal: whether a position attends to those before it and itself only.
    """

    def __init__(self, width: int, heads: int, causal: bool) -> None:
        super().__init__()
        self._heads = heads
        self._causal = causal
        self.attention_norm = nn.LayerNorm(width)
        self.queries_keys_values = nn.Linear(width, 3 * width)
        self.attention_output = nn.Linear(width, width)
        self.perceptron_norm = nn.LayerNorm(width)
        self.perceptron = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        """Run the block; inputs and outputs have the shape ``(B, T, width)``."""
        x = x + self._attend(self.attention_norm(x))
        change: Tensor = self.perceptron(self.perceptron_norm(x))
        return x + change

    def _attend(self, x: Tensor) -> Tensor:
        split = self.queries_keys_values(x).unflatten(-1, (3, self._heads, -1))  # (B, T, 3, heads, features)
        queries, keys, values = split.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(queries, keys, values, is_causal=self._causal)
        attended: Tensor = self.attention_output(mixed.transpose(1, 2).flatten(2))
        return attended
