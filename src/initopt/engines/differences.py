"""Derivatives from gradients alone, by finite differences: for models that have no double backward."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from initopt.engines.base import Engine, Evaluation, Gradients, check_gram, gram_matrix, weighted_sums
from initopt.problem import Batch, Problem, as_real, inner_product
from initopt.randomness import seeded

__all__ = ["DifferencesEngine"]

_LADDER = 4.0
"""Ratio of neighbouring step sizes in the search for the best one."""

_RECALIBRATE = 50
"""Batches after which the step size is searched for again: the weights have moved."""


class DifferencesEngine(Engine):
    r"""One-sided differences of gradients along the vectors of :math:`d\varphi = \sum_d \langle v_d, dg_d \rangle`.

    .. math:: \langle H_d v_d, W_k \rangle \approx \langle g_d(W + h v_d) - g_d(W), W_k \rangle / h

    Costs a second gradient of every sub-batch and nothing else, and needs no second derivative of any operation: compiled
    models, fused attention and custom kernels will do.

    The step h balances two errors. Truncation grows as h times the curvature of the gradient along v, and rounding as the
    noise of the gradient over h. Neither is known beforehand, so on the first batch (and every 50 thereafter) the
    difference is taken at a ladder of steps, relative to the length of the weights, around the square root of the
    precision. Halfway down, differences at neighbouring steps agree best; that step is used, and their disagreement, as a
    share of the largest derivative, is :attr:`error_estimate`. It is a worst case of the two neighbours, not of the step.

    Where the network has kinks (ReLU), a step crosses some. Differences then include their contribution to the curvature,
    which double backward leaves out: the two disagree by some 10% on a ResNet at batch 64, at any step but the tiniest. And
    a scale on which nothing depends (a bias before a batch norm) has a derivative of pure error, which Adam makes steps of.

    Attributes:
        relative_step: length of the step over the length of the weights; ``None`` before the first batch.
        error_estimate: estimated relative error of a derivative; ``None`` before the first batch.
    """

    name = "differences"

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        self.relative_step: float | None = None
        self.error_estimate: float | None = None
        self._batches = 0

    @classmethod
    def refusal(cls, problem: Problem) -> str | None:
        hooked = [p.name for p in problem.grad_params if p.value._backward_hooks]
        if hooked:
            return f"parameter {hooked[0]!r} has a gradient hook, whose derivative a difference of gradients does not give"
        return None

    def state(self) -> dict[str, Any]:
        return {"relative_step": self.relative_step, "error_estimate": self.error_estimate, "batches": self._batches}

    def load_state(self, state: dict[str, Any]) -> None:
        self.relative_step, self.error_estimate = state["relative_step"], state["error_estimate"]
        self._batches = state["batches"]

    def evaluate(self, batch: Batch, differentiate: bool) -> Evaluation:
        return _Differences(self, batch)

    def step_for(self, evaluation: _Differences, vectors: Sequence[Gradients]) -> float:
        """The relative step, searched for if it is time to."""
        if self.relative_step is None or self._batches % _RECALIBRATE == 0:
            self.relative_step, self.error_estimate = _search(evaluation, vectors)
        self._batches += 1
        return self.relative_step


class _Differences(Evaluation):
    def __init__(self, engine: DifferencesEngine, batch: Batch) -> None:
        self.problem = engine.problem
        self._engine = engine
        self._batch = batch
        self._coupled = self.problem.batch_norm == "batch"
        losses, self._gradients = self._all()
        self.gram = gram_matrix(self._gradients)
        check_gram(self.gram, losses, self._gradients, self.problem.grad_params)

    def _all(self) -> tuple[list[Tensor], list[Gradients]]:
        parameters = [p.value for p in self.problem.grad_params]
        count = len(self._batch.windows)
        if not self._coupled:
            pairs = [self._one(d, parameters) for d in range(count)]
            return [loss for loss, _ in pairs], [gradients for _, gradients in pairs]
        with seeded(*self._batch.seed):
            losses = self.problem.window_losses(self._batch)
            gradients: list[Gradients] = [
                torch.autograd.grad(loss, parameters, retain_graph=d < count - 1, allow_unused=True)
                for d, loss in enumerate(losses)
            ]
        return [loss.detach() for loss in losses], gradients

    def _one(self, d: int, parameters: Sequence[Tensor]) -> tuple[Tensor, Gradients]:
        with seeded(*self._batch.seed, *([] if self._coupled else [d])):
            coupled = self._coupled
            loss = self.problem.window_losses(self._batch)[d] if coupled else self.problem.subbatch_loss(self._batch, d)
            return loss.detach(), torch.autograd.grad(loss, parameters, allow_unused=True)

    def difference(self, d: int, vector: Gradients, step: float) -> Tensor:
        """<H_d v, W_k> for every scaled tensor by a difference of length ``step``, float64 on the CPU."""
        scaled: list[Tensor] = [p.value for p in self.problem.scale_params]
        with _moved([p.value for p in self.problem.grad_params], vector, step):
            _, there = self._one(d, scaled)
        here = self._here(d, scaled)
        products = []
        for weight, far, near in zip(scaled, there, here, strict=True):
            product = torch.zeros((), dtype=torch.float64, device=weight.device)
            for gradient, sign in ((far, 1.0), (near, -1.0)):
                if gradient is not None:
                    product += sign * inner_product(as_real(gradient).double(), as_real(weight.detach()).double())
            products.append(product / step)
        return torch.stack([product.cpu() for product in products])

    def _here(self, d: int, scaled: Sequence[Tensor]) -> Gradients:
        known: dict[Tensor, Tensor | None] = {
            p.value: g for p, g in zip(self.problem.grad_params, self._gradients[d], strict=True)
        }
        missing = [weight for weight in scaled if weight not in known]
        if missing:
            _, found = self._one(d, missing)
            known |= dict(zip(missing, found, strict=True))
        return [known[weight] for weight in scaled]

    def derivatives_along(self, weights: Tensor) -> Tensor:
        vectors = weighted_sums(self._gradients, weights)
        relative = self._engine.step_for(self, vectors)
        total = torch.zeros(len(self.problem.scale_params), dtype=torch.float64, device="cpu")
        for d, vector in enumerate(vectors):
            step = self.absolute_step(vector, relative)
            if step > 0:
                total += self.difference(d, vector, step)
        return total

    def absolute_step(self, vector: Gradients, relative: float) -> float:
        """The factor of a vector that makes a step of this length, relative to that of the weights; 0 for a zero vector."""
        length = _length([g for g in vector if g is not None])
        weights = _length([p.value for p in self.problem.grad_params])
        return relative * max(weights, 1e-3) / length if length > 0 else 0.0


def _length(tensors: Sequence[Tensor]) -> float:
    norms = [torch.linalg.vector_norm(as_real(t.detach()).double()).cpu() for t in tensors]
    return float(torch.linalg.vector_norm(torch.stack(norms))) if norms else 0.0


@contextmanager
def _moved(parameters: Sequence[Tensor], vector: Gradients, step: float) -> Iterator[None]:
    """The parameters moved by ``step`` times a vector; exactly as they were afterwards."""
    moving = [(p, v) for p, v in zip(parameters, vector, strict=True) if v is not None]
    kept = [p.detach().clone() for p, _ in moving]
    try:
        with torch.no_grad():
            for parameter, direction in moving:
                parameter.add_(direction, alpha=step)
        yield
    finally:
        with torch.no_grad():
            for (parameter, _), value in zip(moving, kept, strict=True):
                parameter.copy_(value)


def _search(evaluation: _Differences, vectors: Sequence[Gradients]) -> tuple[float, float]:
    """The relative step at which differences at neighbouring steps agree best, and their relative disagreement."""
    precision = max(torch.finfo(p.value.dtype).eps for p in evaluation.problem.grad_params)
    ladder = [math.sqrt(precision) * _LADDER**k for k in range(-2, 4)]
    d = max(range(len(vectors)), key=lambda d: _length([g for g in vectors[d] if g is not None]))
    found = []
    for relative in ladder:
        step = evaluation.absolute_step(vectors[d], relative)
        if step == 0:
            return math.sqrt(precision), 0.0
        found.append(evaluation.difference(d, vectors[d], step))
    errors = []
    for smaller, larger in itertools.pairwise(found):
        size = float(torch.maximum(smaller.abs().max(), larger.abs().max()))
        errors.append(float((larger - smaller).abs().max()) / size if size > 0 else 0.0)
    best = min(range(len(errors)), key=errors.__getitem__)
    return ladder[best], errors[best]
