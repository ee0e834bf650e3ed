"""A hyperbolic tangent with a right first derivative and no second one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class TanhOnce(nn.Module):
    """Hyperbolic tangent without a second derivative.

    Args:
        refusal: what the second derivative says; by default it is missing without a word.
        dtype: the only precision that it works in, as a kernel for single precision does.
    """

    def __init__(self, refusal: str | None = None, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.refusal, self.dtype = refusal, dtype

    def forward(self, x: Tensor) -> Tensor:
        return _Tanh.apply(x, self.refusal, self.dtype)


class _Tanh(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, refusal: str | None, dtype: torch.dtype | None) -> Tensor:
        if dtype not in (None, x.dtype):
            raise TypeError(f"{dtype} only")
        ctx.save_for_backward(x)
        ctx.refusal = refusal
        return torch.tanh(x)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, None, None]:
        (x,) = ctx.saved_tensors
        if ctx.refusal is None:
            return slope.data * (1 - torch.tanh(x.data) ** 2), None, None
        return _Slope.apply(slope, x, ctx.refusal), None, None


class _Slope(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, slope: Tensor, x: Tensor, refusal: str) -> Tensor:
        ctx.refusal = refusal
        return slope * (1 - torch.tanh(x) ** 2)

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> Tensor:
        raise RuntimeError(ctx.refusal)
