"""Attention as libraries lay it out: the same names and shapes, and no more than that."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int, causal: bool = False) -> Tensor:
    """Of shapes (B, T, features), with keys and values of fewer heads if they have fewer features."""
    size = q.shape[-1] // heads
    q, k, v = (x.unflatten(-1, (-1, size)).transpose(1, 2) for x in (q, k, v))
    k, v = (x.repeat_interleave(heads // x.shape[1], 1) for x in (k, v))
    weights = (q @ k.transpose(-1, -2) / size**0.5).softmax(-1)
    return (weights @ v).transpose(1, 2).flatten(2)


class Fused(nn.Module):
    """As in timm: ``qkv`` and ``proj``."""

    def __init__(self, width: int = 16, heads: int = 4, qkv: str = "qkv", proj: str = "proj", attribute: str = "num_heads"):
        super().__init__()
        self.names = qkv, proj
        self.count = [heads]
        if attribute:
            setattr(self, attribute, heads)
        self.add_module(qkv, nn.Linear(width, 3 * width))
        self.add_module(proj, nn.Linear(width, width))

    def forward(self, x: Tensor) -> Tensor:
        qkv, proj = (getattr(self, name) for name in self.names)
        return proj(attend(*qkv(x).chunk(3, -1), self.count[0]))


class Conv1D(nn.Module):
    """As in transformers: a linear layer whose weight has the inputs first."""

    def __init__(self, nf: int, nx: int) -> None:
        super().__init__()
        self.nf = nf
        self.weight = nn.Parameter(0.02 * torch.randn(nx, nf))
        self.bias = nn.Parameter(torch.zeros(nf))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x.flatten(0, -2), self.weight).unflatten(0, x.shape[:-1])


class GPT2Attention(nn.Module):
    def __init__(self, width: int = 16, heads: int = 4) -> None:
        super().__init__()
        self.num_heads = heads
        self.c_attn = Conv1D(3 * width, width)
        self.c_proj = Conv1D(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.c_proj(attend(*self.c_attn(x).chunk(3, -1), self.num_heads))


class BertSelfAttention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.num_attention_heads = heads
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        return attend(self.query(x), self.key(x), self.value(x), self.num_attention_heads)


class BertSelfOutput(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width, width)
        self.LayerNorm = nn.LayerNorm(width)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        return self.LayerNorm(self.dense(x) + residual)


class BertAttention(nn.Module):
    """The output layer in a module beside that of query, key and value, with the sum and the norm."""

    def __init__(self, width: int = 16, heads: int = 4) -> None:
        super().__init__()
        self.self = BertSelfAttention(width, heads)
        self.output = BertSelfOutput(width)

    def forward(self, x: Tensor) -> Tensor:
        return self.output(self.self(x), x)


class LlamaAttention(nn.Module):
    """Grouped queries, the number of heads in a configuration."""

    def __init__(self, width: int = 16, heads: int = 4, key_heads: int = 2, size: int = 4) -> None:
        super().__init__()
        self.config = SimpleNamespace(num_attention_heads=heads, num_key_value_heads=key_heads)
        self.head_dim = size
        self.q_proj = nn.Linear(width, heads * size, bias=False)
        self.k_proj = nn.Linear(width, key_heads * size, bias=False)
        self.v_proj = nn.Linear(width, key_heads * size, bias=False)
        self.o_proj = nn.Linear(heads * size, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.o_proj(attend(self.q_proj(x), self.k_proj(x), self.v_proj(x), self.config.num_attention_heads))


class Block(nn.Module):
    """A layer before whose attention and perceptron is a norm."""

    def __init__(self, attention: nn.Module, width: int = 16) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = attention
        self.up, self.down = nn.Linear(width, 32), nn.Linear(32, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.first(x))
        return x + self.down(F.gelu(self.up(self.second(x))))


class Classifier(nn.Module):
    """A transformer on vectors, with a table of positions."""

    def __init__(self, *blocks: nn.Module, width: int = 16, positions: int = 5) -> None:
        super().__init__()
        self.pos_embed = nn.Parameter(0.02 * torch.randn(1, positions, width))
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(x + self.pos_embed)).mean(1))


def sequences(count: int = 8, length: int = 5, width: int = 16, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, length, width, generator=generator), torch.randint(3, (count,), generator=generator)


LAYOUTS: dict[str, Any] = {
    "torch": lambda: nn.MultiheadAttention(16, 4, batch_first=True),
    "timm": Fused,
    "GPT-2": GPT2Attention,
    "BERT": BertAttention,
    "Llama": LlamaAttention,
    "plain": lambda: Fused(qkv="queries_keys_values", proj="attention_output", attribute="_heads"),
}
