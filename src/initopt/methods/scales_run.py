"""What runs of methods that learn one scale per tensor have in common."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from initopt.methods.base import MethodRun
from initopt.preserve import Originals
from initopt.problem import Problem
from initopt.rescale import Kind, ScaleAdam
from initopt.scales import Scales

__all__ = ["ScalesRun"]


class _Rescaling(Protocol):
    """The options of the scale optimizer, checked by :func:`initopt.rescale.check_rescaling`."""

    @property
    def lr(self) -> float: ...
    @property
    def betas(self) -> tuple[float, float]: ...
    @property
    def eps(self) -> float: ...
    @property
    def scale_grad_clip(self) -> float: ...
    @property
    def min_scale(self) -> float: ...
    @property
    def min_bias_scale(self) -> float: ...


class ScalesRun(MethodRun):
    """Scales and their optimizer at work on one model."""

    def __init__(self, options: _Rescaling, problem: Problem, originals: Originals) -> None:
        self._problem = problem
        self._scales = Scales(problem.scale_params, originals, options.min_scale, options.min_bias_scale)
        count = len(problem.scale_params)
        self._optimizer = ScaleAdam(count, options.lr, options.betas, options.eps, options.scale_grad_clip)

    def descend(self, along_weights: Tensor, kind: Kind = "objective") -> None:
        """Move scales and weights against <dW_k, W_k>, float64, shape ``(num_scales,)``."""
        self._scales.move(self._optimizer.step(self._scales.values, along_weights, kind))

    def scales(self) -> dict[str, float]:
        return self._scales.named()

    def state(self) -> dict[str, Tensor]:
        return {"scales": self._scales.values, "held": self._scales.held} | self._optimizer.state()

    def load_state(self, state: dict[str, Tensor]) -> None:
        for name, present in ScalesRun.state(self).items():
            if state[name].dtype != present.dtype or state[name].shape != present.shape:
                raise ValueError(f"{name} has another type or shape than this run gives it")
        self._scales.values, self._scales.held = state["scales"], state["held"]
        self._scales.apply()
        self._optimizer.load_state(state)
