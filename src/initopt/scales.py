"""One positive scalar per parameter tensor: W = alpha * W(0)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from initopt.parameters import NamedParameter

__all__ = ["Scales"]


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
        self._has_direction = torch.tensor([bool(originals[p.value].any()) for p in parameters], device="cpu")

    @property
    def active(self) -> Tensor:
        """Which tensors move, shape ``(num_scales,)``: not those that are held, or zero, from the start or by scale."""
        return self.free & (self.values > 0)

    @property
    def free(self) -> Tensor:
        """Which tensors may move, or have moved to zero: not those that are held, or zero from the start."""
        return self._has_direction & ~self.held

    @property
    def at_minimum(self) -> Tensor:
        """Which tensors have come down to their least scale."""
        return self.free & (self.values <= self._minimum) & (self.values < 1)

    @property
    def zero(self) -> Tensor:
        """Which tensors are zero from the start."""
        return ~self._has_direction

    def move(self, values: Tensor) -> None:
        """Set the scales of the active tensors, no lower than their minimum, and the weights with them.

        Args:
            values: new scales, float64, shape ``(num_scales,)``; those of inactive tensors are ignored.
        """
        self.values = torch.where(self.active, torch.maximum(values, self._minimum), self.values)
        self.apply()

    def multiply(self, weight: nn.Parameter, factor: float) -> None:
        """Set the scale of one tensor to a multiple of what it is, and the tensor with it."""
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
