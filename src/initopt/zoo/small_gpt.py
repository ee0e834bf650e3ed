"""A small language model."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from initopt.zoo._layers import TransformerBlock, check_heads, check_sizes

__all__ = ["small_gpt"]


def small_gpt(vocabulary: int = 65, context: int = 128, *, depth: int = 4, width: int = 128, heads: int = 4) -> nn.Module:
    """A transformer that predicts the next token (Radford et al., *Language Models are Unsupervised Multitask Learners*).

    As in GPT-2, layer norms come before attention and perceptron, positions are learned, and the output layer is the
    embedding of the tokens. There is no dropout. The default, for the 65 characters of Shakespeare's plays, has 0.82 M
    parameters.

    Args:
        vocabulary: number of tokens.
        context: longest sequence.
        depth: number of blocks.
        width: number of features.
        heads: number of attention heads; divides the width.

    Returns:
        The network, from tokens of shape ``(B, T)``, ``T <= context``, to logits of shape ``(B, T, vocabulary)``, with
        PyTorch's default weights, but embeddings from a normal distribution of standard deviation 0.02, as in GPT-2.

    Raises:
        ValueError: if a number is not a positive integer, or the heads do not divide the width.

    >>> small_gpt(depth=1)(torch.zeros(2, 16, dtype=torch.long)).shape
    torch.Size([2, 16, 65])
    """
    check_sizes(vocabulary=vocabulary, context=context, depth=depth, width=width, heads=heads)
    check_heads(width, heads)
    return _LanguageModel(vocabulary, context, depth, width, heads)


class _LanguageModel(nn.Module):
    def __init__(self, vocabulary: int, context: int, depth: int, width: int, heads: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(context, width)
        self.blocks = nn.Sequential(*(TransformerBlock(width, heads, causal=True) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        for embedding in (self.tokens, self.positions):
            nn.init.normal_(embedding.weight, std=0.02)
        self.head.weight = self.tokens.weight

    def forward(self, tokens: Tensor) -> Tensor:
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        logits: Tensor = self.head(self.norm(self.blocks(self.tokens(tokens) + self.positions(positions))))
        return logits
