"""What the first step of the user's optimizer is predicted to take off the loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from initopt.engines.base import Gradients
from initopt.methods.base import Training
from initopt.model.parameters import NamedParameter
from initopt.model.problem import Problem, as_real, inner_product
from initopt.training.optimizers import make_optimizer, places_of

__all__ = ["Decrease", "FirstStep"]

_WIDTH = 1e-4
"""Of the central differences by which the step itself is differentiated, relative to gradient and weights, in float64."""


@dataclass(frozen=True)
class Decrease:
    """The predicted decrease, with the way back from it.

    Attributes:
        value: <g, u>.
        vectors: v with d<g, u> = <v, dg> for fixed weights; a tensor per ``problem.grad_params``.
        along_weights: what the step's own dependence on the weights (by weight decay, for example) adds along every scaled
            tensor; float64 on the CPU, shape ``(num_scales,)``.
    """

    value: float
    vectors: Gradients
    along_weights: Tensor


class FirstStep:
    r"""The first step u of an optimizer, :math:`W \leftarrow W - u`, made on copies, and what it is predicted to do.

    The loss goes down by :math:`\langle g, u \rangle` to first order: by :math:`\eta \lVert g \rVert_2^2` for SGD, by
    :math:`\eta \lVert g \rVert_1` for Adam, whose first step is the sign of the gradient, and by
    :math:`\eta c \lVert g \rVert_2` for SGD whose gradients are clipped to c. Any optimizer will do, with its momentum,
    clipping and weight decay, since it is asked for its step.

    In :math:`d\langle g, u \rangle = \langle u + J^\top g, dg \rangle` with J = du/dg, :math:`J^\top g` is replaced by
    :math:`J g = \frac{d}{dt} u((1 + t) g)`. The two agree where u is the gradient of a potential: where every entry of u
    depends on the same entry of g alone, as in Adam, or u is along g, as with clipping, or both within a tensor. With Adam
    after clipping, they differ by as much as its eps counts beside the clipped gradient.

    Args:
        training: with the optimizer.
        problem: whose gradients and weights they are.
    """

    def __init__(self, training: Training, problem: Problem) -> None:
        self._problem = problem
        self._clip = training.clip_grad_norm
        values = [p.value for p in problem.parameters.trainable]
        self._optimizer = make_optimizer(training.optimizer, values)

    def value(self, gradients: Gradients) -> float:
        """<g, u> alone.

        Args:
            gradients: g, a tensor per ``problem.grad_params``.
        """
        return sum(self._decreases(_wide(gradients), self._step(_wide(gradients))))

    def differentiated(self, gradients: Gradients) -> Decrease:
        """<g, u> with its derivatives; the step is made five times."""
        wide = _wide(gradients)
        step = self._step(wide)
        more, less = (self._step([None if g is None else g * (1 + t) for g in wide]) for t in (_WIDTH, -_WIDTH))
        vectors: list[Tensor | None] = []
        for gradient, u, up, down in zip(gradients, step, more, less, strict=True):
            vector = None if u is None or up is None or down is None else u + (up - down) / (2 * _WIDTH)
            vectors.append(None if vector is None or gradient is None else vector.to(gradient.device, gradient.dtype))
        by_weights = [self._decreases(wide, self._step(wide, 1 + t)) for t in (_WIDTH, -_WIDTH)]
        slopes = [(up - down) / (2 * _WIDTH) for up, down in zip(*by_weights, strict=True)]
        known = {p.value: slope for p, slope in zip(self._problem.grad_params, slopes, strict=True)}
        along = [known.get(p.value, 0.0) for p in self._problem.scale_params]
        value = sum(self._decreases(wide, step))
        return Decrease(value, vectors, torch.tensor(along, dtype=torch.float64, device="cpu"))

    def _decreases(self, gradients: Gradients, step: Gradients) -> list[float]:
        """<g_k, u_k> of every tensor."""
        pairs = zip(gradients, step, strict=True)
        return [0.0 if g is None or u is None else float(inner_product(as_real(g), as_real(u))) for g, u in pairs]

    def _step(self, gradients: Gradients, weights: float = 1.0) -> Gradients:
        """The step for some gradients, the weights being multiplied by a number, in float64."""
        trainable: Sequence[NamedParameter] = self._problem.parameters.trainable
        before = {p.value: _to_wide(p.value.detach()) * weights for p in trainable}
        copies = {value: nn.Parameter(wide.clone()) for value, wide in before.items()}
        optimizer = make_optimizer(self._optimizer, list(copies.values()), places_of(copies))
        for p, gradient in zip(self._problem.grad_params, gradients, strict=True):
            copies[p.value].grad = None if gradient is None else gradient.clone()
        if self._clip is not None:
            nn.utils.clip_grad_norm_(copies.values(), self._clip)
        optimizer.step()
        values = [p.value for p in self._problem.grad_params]
        return [before[v] - copies[v].detach() if copies[v].grad is not None else None for v in values]


def _wide(gradients: Gradients) -> Gradients:
    return [None if g is None else _to_wide(g.detach().to_dense()) for g in gradients]


def _to_wide(tensor: Tensor) -> Tensor:
    """A copy in double precision, where that is to be had."""
    device = torch.device("cpu") if tensor.device.type == "mps" else tensor.device
    return tensor.to(device, torch.promote_types(tensor.dtype, torch.float64), copy=True)
