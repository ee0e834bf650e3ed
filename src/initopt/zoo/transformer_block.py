"""The block that the transformers are made of."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["TransformerBlock", "check_heads"]


def check_heads(width: int, heads: int) -> None:
    """Raise a ValueError unless the heads share the width equally."""
    if width % heads:
        raise ValueError(f"width must be a multiple of heads; got width {width} and {heads} heads")


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
        """From and to shape ``(B, T, width)``."""
        x = x + self._attend(self.attention_norm(x))
        change: Tensor = self.perceptron(self.perceptron_norm(x))
        return x + change

    def _attend(self, x: Tensor) -> Tensor:
        split = self.queries_keys_values(x).unflatten(-1, (3, self._heads, -1))  # (B, T, 3, heads, features)
        queries, keys, values = split.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(queries, keys, values, is_causal=self._causal)
        attended: Tensor = self.attention_output(mixed.transpose(1, 2).flatten(2))
        return attended
