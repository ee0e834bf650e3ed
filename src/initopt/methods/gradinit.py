"""GradInit (arXiv 2102.08098)."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from initopt._support._torch_private import without_hooks
from initopt._support.checks import check_choice, check_flag, check_number
from initopt._support.errors import NonFiniteError
from initopt.batches.nested import concatenate
from initopt.engines import Engine
from initopt.engines.base import Gradients
from initopt.engines.gradients import moved
from initopt.methods._whole_batch import LossGradient, check_gradients, loss_of, sum_over, whole_batch
from initopt.methods.base import MethodRun
from initopt.methods.records import Record, StepRecord, steps_taken
from initopt.methods.scales import ScalesMethod, ScalesRun
from initopt.model.double_backward import plain_attention
from initopt.model.parameters import ParameterFilter
from initopt.model.preserve import Originals
from initopt.model.problem import Problem, as_real, inner_product

__all__ = ["GradInit", "InnerOptimizer"]

InnerOptimizer = Literal["sgd", "adam"]


@dataclass(frozen=True, kw_only=True)
class GradInit(ScalesMethod):
    r"""Learn one scale per parameter tensor so that the optimizer's first step lowers the loss as far as it can.

    Each step takes two batches and joins them; g is the gradient of their loss. If its norm exceeds ``max_grad_norm``, the
    scales move so as to lower that norm: the 2-norm for SGD, the 1-norm for Adam. Otherwise they move so as to lower

    .. math:: \frac1\eta L_{\tilde S}(W - \eta u), \qquad u = g / \lVert g \rVert_2 \text{ for SGD}, \quad
        \operatorname{sign}(g) \text{ for Adam},

    with u held fixed, on a second batch, the first half of the first one joined with a third from the loader (Zhu, Ni, Xu,
    Kong, Huang, Goldstein, NeurIPS 2021, arXiv 2102.08098, algorithm 1, as its published code has it). Batch norms use the
    statistics of these joined batches. A step takes three batches, two if it is constrained, and one more with
    ``fresh_second_batch``. Give batches of half the size that you are going to train with. A constrained step has no
    objective.

    Attributes:
        eta: learning rate of the optimizer's step, that of the training.
        optimizer: the optimizer that takes the step, ``"sgd"`` or ``"adam"``.
        normalize_grad: whether SGD steps along the gradient divided by its length; it makes no difference to Adam.
        fresh_second_batch: whether the second batch shares no samples with the first, at the cost of one more batch of the
            loader.
        max_grad_norm: the bound on the norm of g: the 2-norm for SGD, by default 1; for Adam the sum of absolute values,
            which grows with the number of parameters, by default without bound.
        grad_params: a function of (qualified name, parameter, owning module) that says which parameters the optimizer's
            step moves and make up g; all that train, by default.

    >>> GradInit(optimizer="adam", eta=1e-3, max_grad_norm=100.0).steps
    100
    """

    name: ClassVar[str] = "gradinit"

    eta: float = 0.1
    optimizer: InnerOptimizer = "sgd"
    normalize_grad: bool = True
    fresh_second_batch: bool = False
    max_grad_norm: float | None = None
    grad_params: ParameterFilter | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("eta", self.eta, above=0, finite=True)
        check_choice("optimizer", self.optimizer, ("sgd", "adam"))
        check_flag("normalize_grad", self.normalize_grad)
        check_flag("fresh_second_batch", self.fresh_second_batch)
        if self.max_grad_norm is not None:
            check_number("max_grad_norm", self.max_grad_norm, above=0)

    @property
    def batches_per_step(self) -> int:
        return 4 if self.fresh_second_batch else 3

    def batches_taken(self, history: Sequence[Record]) -> int:
        constrained = sum(isinstance(record, StepRecord) and record.constrained for record in history)
        return 2 * constrained + self.batches_per_step * (steps_taken(history) - constrained)

    def start(self, problem: Problem, engine: Engine, originals: Originals) -> MethodRun:
        return _GradInitRun(self, problem, originals)


class _GradInitRun(ScalesRun):
    def __init__(self, method: GradInit, problem: Problem, originals: Originals) -> None:
        super().__init__(method, problem, originals)
        self._method = method
        default = 1.0 if method.optimizer == "sgd" else math.inf
        self._max_grad_norm = default if method.max_grad_norm is None else method.max_grad_norm

    def step(self, number: int, batches: Iterator[Any]) -> list[Record]:
        halves = [next(batches), next(batches)]
        start = time.perf_counter()
        gradient = LossGradient(self._problem, whole_batch(self._problem, concatenate(halves), number, 0))
        norm = self._mean_over_ranks(self._norm(gradient.gradients))
        constrained = norm > self._max_grad_norm
        objective = None
        if constrained:
            along_weights = gradient.along_weights(self._norm_derivative(gradient.gradients, norm))
            self.descend(along_weights, "constraint")
        else:
            directions = self._directions(gradient.gradients, norm)
            del gradient  # and its graph, before the weights are written to
            loading = time.perf_counter()
            other = next(batches)
            half = next(batches) if self._method.fresh_second_batch else halves[0]
            start += time.perf_counter() - loading
            second = whole_batch(self._problem, concatenate([half, other]), number, 1)
            objective, along_weights = self._after_step(second, directions)
            self.descend(along_weights)
        seconds = time.perf_counter() - start
        return [StepRecord(number, None, norm, None, objective, constrained, seconds)]

    def _mean_over_ranks(self, value: float) -> float:
        ranks = self._problem.ranks
        return value if ranks.union else ranks.mean(value, "figures")

    def _norm(self, gradients: Gradients) -> float:
        if self._method.optimizer == "adam":
            return sum_over(gradients, torch.abs)
        return math.sqrt(sum_over(gradients, torch.square))

    def _norm_derivative(self, gradients: Gradients, norm: float) -> Gradients:
        if self._method.optimizer == "adam":
            return _signs(gradients)
        return [None if g is None else g / norm for g in gradients]

    def _directions(self, gradients: Gradients, norm: float) -> Gradients:
        """u, the direction of the step of the optimizer, over its learning rate."""
        if self._method.optimizer == "adam":
            return _signs(gradients)
        return [None if g is None else g / norm for g in gradients] if self._method.normalize_grad else gradients

    def _after_step(self, batch: Any, directions: Gradients) -> tuple[float, Tensor]:
        """The objective, and <dW_k, W_k> of it for every scaled tensor, W_k being its value before the step."""
        eta = self._method.eta
        weights = [p.value for p in self._problem.scale_params]
        with moved([p.value for p in self._problem.grad_params], directions, -eta):
            try:
                loss = loss_of(self._problem, batch)
            except NonFiniteError as error:
                raise NonFiniteError(f"after the optimizer's step, {error}; try a smaller eta than {eta:g}") from None
            with plain_attention(), without_hooks(weights):
                gradients = torch.autograd.grad(loss, weights, allow_unused=True)
        products = torch.zeros(len(weights), dtype=torch.float64, device="cpu")
        for k, (gradient, weight) in enumerate(zip(gradients, weights, strict=True)):
            if gradient is not None:
                products[k] = inner_product(as_real(gradient).double(), as_real(weight.detach()).double())
        if not torch.isfinite(products).all():
            check_gradients(gradients, self._problem.scale_params)
        share, ranks = self._problem.shares(batch)[0], self._problem.ranks
        both = torch.cat([loss.detach().double().cpu().reshape(1), products]) / eta
        if ranks.union:
            both = ranks.sum(share * both, "the loss after a step")
        return self._mean_over_ranks(float(both[0])), both[1:]


def _signs(gradients: Gradients) -> Gradients:
    def sign(g: Tensor) -> Tensor:
        return torch.complex(g.real.sign(), g.imag.sign()) if g.is_complex() else g.sign()

    return [None if g is None else sign(g) for g in gradients]
