"""Exact derivatives through one forward pass over the whole batch, where batch norm couples the sub-batches."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from initopt.engines.autograd.scaled import ScaledOps
from initopt.engines.base import WHOLE, Engine, Evaluation, Gradients, check_gram, gram_matrix, joined
from initopt.model.double_backward import plain_attention
from initopt.model.problem import Batch, Problem
from initopt.model.randomness import seeded

__all__ = ["CoupledEngine"]


class CoupledEngine(Engine):
    r"""One graph of the whole batch, a backward pass per sub-batch, and one double backward through all of them.

    The loss of every sub-batch is a window of the same forward pass, so a statistic of the whole batch carries the
    derivative of each to all samples. Holds the graphs of the D backward passes.
    """

    name = "coupled"

    @classmethod
    def refusal(cls, problem: Problem) -> str | None:
        if problem.batch_norm == "subbatch":
            return 'it normalizes with the statistics of the whole batch, and batch_norm is "subbatch"'
        return WHOLE if problem.microbatch is not None else None

    def evaluate(self, batch: Batch, differentiate: bool) -> Evaluation:
        return _CoupledEvaluation(self.problem, batch, differentiate)


class _CoupledEvaluation(Evaluation):
    def __init__(self, problem: Problem, batch: Batch, differentiate: bool) -> None:
        self._problem = problem
        parameters = [p.value for p in problem.grad_params]
        self._ops = ScaledOps(problem.scale_params)
        with plain_attention(), seeded(*batch.seed), problem.first_derivatives(), self._ops.replacing():
            losses = problem.window_losses(batch)
            # The last pass frees the graph, but for one to be differentiated: one with saved-tensor hooks leaks otherwise.
            kept = [differentiate or d + 1 < len(losses) for d in range(len(losses))]
            self._gradients = [
                torch.autograd.grad(loss, parameters, retain_graph=keep, create_graph=differentiate, allow_unused=True)
                for loss, keep in zip(losses, kept, strict=True)
            ]
        self.gram = gram_matrix(self._gradients)
        check_gram(self.gram, [loss.detach() for loss in losses], self._gradients, problem.grad_params)

    def vector_derivatives(self, vectors: Sequence[Gradients]) -> Tensor:
        return self._ops.along_weights(joined(self._gradients), joined(vectors))
