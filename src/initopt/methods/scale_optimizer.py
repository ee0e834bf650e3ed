"""The optimizer of the scales: Adam with a first moment for each kind of step."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

__all__ = ["Kind", "ScaleAdam"]

Kind = Literal["objective", "constraint"]


class ScaleAdam:
    r"""Adam on scales, with clipped derivatives.

    For the derivative :math:`dW_k` of what is minimized, and a scale :math:`\alpha_k`:

    .. math::
        s &= \operatorname{clip}(\langle dW_k, W_k \rangle / \alpha_k, -c, c) \\
        m &\leftarrow \beta_1 m + (1 - \beta_1) s, \quad v \leftarrow \beta_2 v + (1 - \beta_2) s^2 \\
        \alpha_k &\leftarrow \alpha_k - \text{lr} \, \hat m / (\sqrt{\hat v} + \epsilon)

    Steps that minimize the objective and steps that enforce the constraint have a first moment m and a step count each,
    and share the second moment v, as in the published code.

    Args:
        count: number of scales.
        lr: learning rate.
        betas: decay rates of the moments.
        eps: added to the denominator.
        scale_grad_clip: c, the bound on a scale's derivative.
    """

    def __init__(self, count: int, lr: float, betas: tuple[float, float], eps: float, scale_grad_clip: float) -> None:
        self._lr = lr
        self._betas = betas
        self._eps = eps
        self._clip = scale_grad_clip
        self._moments = {
            kind: torch.zeros(count, dtype=torch.float64, device="cpu") for kind in ("objective", "constraint")
        }
        self._squares = torch.zeros(count, dtype=torch.float64, device="cpu")
        self._counts = {"objective": 0, "constraint": 0}

    def step(self, values: Tensor, along_weights: Tensor, kind: Kind) -> Tensor:
        """The scales after one step.

        Args:
            values: alpha, float64, shape ``(num_scales,)``.
            along_weights: <dW_k, W_k>, the same shape.
            kind: which first moment and count the step belongs to.
        """
        beta1, beta2 = self._betas
        slope = (along_weights / torch.where(values > 0, values, 1.0)).clamp(-self._clip, self._clip)
        self._counts[kind] += 1
        self._moments[kind] = beta1 * self._moments[kind] + (1 - beta1) * slope
        self._squares = beta2 * self._squares + (1 - beta2) * slope**2
        moment = self._moments[kind] / (1 - beta1 ** self._counts[kind])
        square = self._squares / (1 - beta2 ** sum(self._counts.values()))
        return values - self._lr * moment / (square.sqrt() + self._eps)

    def state(self) -> dict[str, Tensor]:
        """The state that later steps depend on, as named tensors."""
        counts = torch.tensor([self._counts["objective"], self._counts["constraint"]], device="cpu")
        return {"squares": self._squares, "counts": counts} | {f"moment.{k}": m for k, m in self._moments.items()}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """The inverse of :meth:`state`."""
        self._squares = state["squares"]
        self._moments = {kind: state[f"moment.{kind}"] for kind in self._moments}
        self._counts = dict(zip(("objective", "constraint"), state["counts"].tolist(), strict=True))
