"""``nn.MultiheadAttention`` with a weight gradient for every group of samples."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from initopt.engines.autograd.operations import CALLS
from initopt.engines.autograd.scaled import Replacing

__all__ = ["self_attention"]


def self_attention(
    mode: Replacing, query: Tensor, key: Tensor, value: Tensor, embed_dim_to_check: int, num_heads: int,
    in_proj_weight: Tensor | None, in_proj_bias: Tensor | None, bias_k: Tensor | None, bias_v: Tensor | None,
    add_zero_attn: bool, dropout_p: float, out_proj_weight: Tensor, out_proj_bias: Tensor | None, training: bool = True,
    key_padding_mask: Tensor | None = None, need_weights: bool = True, attn_mask: Tensor | None = None,
    use_separate_proj_weight: bool = False, q_proj_weight: Tensor | None = None, k_proj_weight: Tensor | None = None,
    v_proj_weight: Tensor | None = None, static_k: Tensor | None = None, static_v: Tensor | None = None,
    average_attn_weights: bool = True, is_causal: bool = False,
) -> tuple[Tensor, Tensor | None] | None:  # fmt: skip
    """Attention of a sequence to itself, with the arguments of ``F.multi_head_attention_forward``.

    That has the samples along the second dimension, and its projections are linear layers that cannot be seen from outside.

    Returns:
        The output, shape ``(T, B, E)``, and the attention weights if they are wanted; ``None`` for any other attention.
    """
    extras = (bias_k, bias_v, q_proj_weight, k_proj_weight, v_proj_weight, static_k, static_v)
    itself = query is key and key is value and query.ndim == 3 and in_proj_weight is not None
    if not itself or add_zero_attn or (training and dropout_p > 0) or any(extra is not None for extra in extras):
        return None
    sequences = query.transpose(0, 1)
    projected = _linear(mode, sequences, in_proj_weight, in_proj_bias)
    if projected is None:
        return None
    batch, length, width = sequences.shape
    q, k, v = projected.view(batch, length, 3, num_heads, width // num_heads).permute(2, 0, 3, 1, 4).unbind()
    mask = _mask(q, attn_mask, key_padding_mask)
    weights = None
    if need_weights:
        scores = q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5
        weights = torch.softmax(scores if mask is None else scores + mask, -1)
        mixed = weights @ v
    else:
        mixed = F.scaled_dot_product_attention(q, k, v, mask)
    output = _linear(mode, mixed.transpose(1, 2).flatten(2), out_proj_weight, out_proj_bias)
    if output is None:
        return None
    if weights is not None and average_attn_weights:
        weights = weights.mean(1)
    return output.transpose(0, 1), weights


def _linear(mode: Replacing, x: Tensor, weight: Any, bias: Tensor | None) -> Tensor | None:
    call = CALLS[F.linear](x, weight, bias)
    if call is None or not mode.replaceable(call):
        return None
    y: Tensor = mode.replaced(call)
    return y


def _mask(q: Tensor, attn_mask: Tensor | None, key_padding_mask: Tensor | None) -> Tensor | None:
    """What is added to the scores, shape ``(B or 1, heads or 1, T, T)``; -inf where attention is forbidden."""
    batch, heads, length, _ = q.shape
    masks = []
    if attn_mask is not None:
        shape = (1, 1, length, -1) if attn_mask.ndim == 2 else (batch, heads, length, -1)
        masks.append(_additive(attn_mask, q).view(shape))
    if key_padding_mask is not None:
        masks.append(_additive(key_padding_mask, q).view(batch, 1, 1, -1))
    return sum(masks[1:], masks[0]) if masks else None


def _additive(mask: Tensor, q: Tensor) -> Tensor:
    if mask.dtype == torch.bool:
        return torch.zeros_like(mask, dtype=q.dtype).masked_fill_(mask, -torch.inf)
    return mask.to(q.dtype)
