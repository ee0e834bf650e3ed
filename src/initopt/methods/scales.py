"""One positive scalar per parameter tensor: W = alpha * W(0)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from initopt._support.checks import check_number
from initopt.methods.base import Method, MethodRun
from initopt.methods.scale_optimizer import Kind, ScaleAdam
from initopt.model.parameters import NamedParameter
from initopt.model.preserve import Originals
from initopt.model.problem import Problem
from initopt.model.sharded import has_entries

__all__ = ["Scales", "ScalesMethod", "ScalesRun"]


class Scales:
    """The scales of a model's parameter tensors.

    Weights are always computed from the original values, so that no rounding error builds up over the steps.

    Args:
        parameters: the tensors to scale.
        originals: their values at scale 1.
        min_scale: least scale of a tensor.
        min_bias_scale: least scale of a tensor that is a bias by its name.
    """

    def __init__(
        self,
        parameters: Sequence[NamedParameter],
        originals: Mapping[nn.Parameter, Tensor],
        min_scale: float,
        min_bias_scale: float,
    ) -> None:
        self._parameters = parameters
        self._originals = originals
        self.values = torch.ones(len(parameters), dtype=torch.float64, device="cpu")
        self.held = torch.zeros(len(parameters), dtype=torch.bool, device="cpu")
        """Which tensors are to keep their scale, whatever they are told."""
        minima = [min_bias_scale if p.is_bias else min_scale for p in parameters]
        self._minimum = torch.tensor(minima, dtype=torch.float64, device="cpu")
        self._has_direction = torch.tensor([has_entries(originals[p.value]) for p in parameters], device="cpu")

    @property
    def active(self) -> Tensor:
        """Mask of the tensors that move, shape ``(num_scales,)``: all but those held, or zero, also by their scale."""
        return self.free & (self.values > 0)

    @property
    def free(self) -> Tensor:
        """Mask of the tensors that may move, or have moved to zero: all but those held, or zero from the start."""
        return self._has_direction & ~self.held

    @property
    def at_minimum(self) -> Tensor:
        """Mask of the tensors that have come down to their least scale."""
        return self.free & (self.values <= self._minimum) & (self.values < 1)

    @property
    def zero(self) -> Tensor:
        """Mask of the tensors that are zero from the start."""
        return ~self._has_direction

    def move(self, values: Tensor) -> None:
        """Set the scales of the active tensors, no lower than their minimum, and the weights with them.

        Args:
            values: new scales, float64, shape ``(num_scales,)``; those of inactive tensors are ignored.
        """
        self.values = torch.where(self.active, torch.maximum(values, self._minimum), self.values)
        self.apply()

    def multiply(self, weight: nn.Parameter, factor: float) -> None:
        """Multiply the scale of one tensor, and the tensor with it."""
        (index,) = (k for k, parameter in enumerate(self._parameters) if parameter.value is weight)
        self.values[index] *= factor
        with torch.no_grad():
            weight.copy_(self._originals[weight] * float(self.values[index]))
        torch.clear_autocast_cache()  # which does not notice, and may be on within a forward pass, whatever was set before

    @torch.no_grad()
    def apply(self) -> None:
        """Write alpha * W(0) into the model."""
        for parameter, scale in zip(self._parameters, self.values.tolist(), strict=True):
            parameter.value.copy_(self._originals[parameter.value] * scale)

    def named(self) -> dict[str, float]:
        """The scale of every tensor by parameter name, in the order of the model."""
        return {p.name: scale for p, scale in zip(self._parameters, self.values.tolist(), strict=True)}


@dataclass(frozen=True, kw_only=True)
class ScalesMethod(Method):
    """A method that learns one scale per tensor by :class:`initopt.methods.scale_optimizer.ScaleAdam`.

    Attributes:
        lr: learning rate of the scales.
        betas: decay rates of the scale optimizer's moments.
        eps: added to its denominator.
        scale_grad_clip: bound on the derivative with respect to a scale.
        min_scale: least scale of a tensor.
        min_bias_scale: least scale of a bias (by its name).
    """

    lr: float = 0.01
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    scale_grad_clip: float = 1.0
    min_scale: float = 0.01
    min_bias_scale: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("lr", self.lr, above=0, finite=True)
        if not isinstance(self.betas, (tuple, list)) or len(self.betas) != 2:
            raise ValueError(f"betas must be a pair of numbers in [0, 1); got {self.betas!r}")
        for name, beta in zip(("betas[0]", "betas[1]"), self.betas, strict=True):
            check_number(name, beta, minimum=0, below=1)
        check_number("eps", self.eps, above=0, finite=True)
        check_number("scale_grad_clip", self.scale_grad_clip, above=0)
        for name in ("min_scale", "min_bias_scale"):  # every scale begins at 1
            check_number(name, getattr(self, name), minimum=0, maximum=1)


class ScalesRun(MethodRun):
    """Scales and their optimizer at work on one model."""

    def __init__(self, method: ScalesMethod, problem: Problem, originals: Originals) -> None:
        self._problem = problem
        self._scales = Scales(problem.scale_params, originals, method.min_scale, method.min_bias_scale)
        count = len(problem.scale_params)
        self._optimizer = ScaleAdam(count, method.lr, method.betas, method.eps, method.scale_grad_clip)

    def descend(self, along_weights: Tensor, kind: Kind = "objective") -> None:
        """Move scales and weights against <dW_k, W_k>, float64, shape ``(num_scales,)``, averaged over ranks."""
        ranks = self._problem.ranks
        if not ranks.union:
            along_weights = ranks.sum(along_weights / ranks.size, "derivatives")
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
