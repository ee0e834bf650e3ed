"""Exact derivatives, one sub-batch at a time: the memory of one sub-batch's graph."""

from __future__ import annotations

import torch
from torch import Tensor

from initopt.engines.base import Engine, Evaluation, Gradients, check_gram, gram_matrix, weighted_sums
from initopt.errors import NonFiniteError
from initopt.modes import math_attention
from initopt.problem import Batch, Problem, inner_product
from initopt.randomness import seeded

__all__ = ["RecomputeEngine", "along_weights", "contract"]


class RecomputeEngine(Engine):
    r"""Sub-batch gradients first; then each sub-batch once more for its Hessian-vector product.

    With :math:`v_d` held fixed, :math:`d\varphi = \sum_d \langle v_d, dg_d \rangle`, and the derivative of
    :math:`\langle v_d, g_d \rangle` is one double backward through the graph of sub-batch d alone. Holds the D gradients,
    and at no time more than one graph.
    """

    name = "recompute"

    @classmethod
    def refusal(cls, problem: Problem) -> str | None:
        if problem.batch_norm == "batch":
            return 'it runs sub-batches apart, and batch_norm="batch" couples them'
        return None

    def evaluate(self, batch: Batch, differentiate: bool) -> Evaluation:
        return _RecomputeEvaluation(self.problem, batch)


class _RecomputeEvaluation(Evaluation):
    def __init__(self, problem: Problem, batch: Batch) -> None:
        self._problem = problem
        self._batch = batch
        losses, self._gradients = [], []
        for d in range(len(batch.windows)):
            loss, gradients = self._gradient(d, create_graph=False)
            losses.append(loss.detach())
            self._gradients.append(gradients)
        self.gram = gram_matrix(self._gradients)
        check_gram(self.gram, losses, self._gradients, problem.grad_params)

    def _gradient(self, d: int, create_graph: bool) -> tuple[Tensor, Gradients]:
        with math_attention(), seeded(*self._batch.seed, d):
            loss = self._problem.subbatch_loss(self._batch, d)
            parameters = [p.value for p in self._problem.grad_params]
            return loss, torch.autograd.grad(loss, parameters, create_graph=create_graph, allow_unused=True)

    def scale_derivatives(self, gram_derivative: Tensor) -> Tensor:
        total = torch.zeros(len(self._problem.scale_params), dtype=torch.float64)
        for d, vector in enumerate(weighted_sums(self._gradients, gram_derivative)):
            _, gradients = self._gradient(d, create_graph=True)
            total += along_weights(contract(vector, gradients), self._problem)
        return total


def contract(vector: Gradients, gradients: Gradients) -> Tensor:
    """<v, g>, a differentiable scalar."""
    terms = [inner_product(v, g) for v, g in zip(vector, gradients, strict=True) if v is not None and g is not None]
    if not terms:
        return torch.zeros(())
    return torch.stack([term.to(terms[0].device) for term in terms]).sum()


def along_weights(scalar: Tensor, problem: Problem) -> Tensor:
    """<d scalar / dW_k, W_k> for every scaled tensor, float64 on the CPU; zero where the scalar does not depend on W_k."""
    weights = [p.value for p in problem.scale_params]
    if not scalar.requires_grad:
        return torch.zeros(len(weights), dtype=torch.float64)
    with math_attention():  # activation checkpointing runs parts of the model again, now
        derivatives = torch.autograd.grad(scalar, weights, allow_unused=True)
    products = [
        torch.zeros((), dtype=torch.float64)
        if derivative is None
        else inner_product(derivative.double() if not derivative.is_complex() else derivative, weight.detach())
        for derivative, weight in zip(derivatives, weights, strict=True)
    ]
    values = torch.stack([product.double().cpu() for product in products])
    if not torch.isfinite(values).all():
        bad = [p.name for p, finite in zip(problem.scale_params, torch.isfinite(values), strict=True) if not finite]
        raise NonFiniteError(
            f"the derivative of the gradients with respect to the scale of {', '.join(map(repr, bad[:3]))} is not finite, "
            "though the gradients are; an operation without a second derivative there (a norm or root at zero, say)?"
        )
    return values
