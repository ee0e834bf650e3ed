"""Exact derivatives from one forward pass over all sub-batches, at a cost that does not grow with their number."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from initopt._support.errors import LossError
from initopt.batches.nested import take
from initopt.batches.subbatches import Windows
from initopt.engines.autograd.scale_derivatives import to_cpu
from initopt.engines.autograd.scaled import ScaledOps, replacing
from initopt.engines.base import (
    WHOLE,
    Engine,
    Evaluation,
    Gradients,
    check_entries,
    check_gram,
    fold_gradients,
    gram_matrix,
)
from initopt.engines.stacked.gram_only import GramMode
from initopt.engines.stacked.operations import Grouping, NotCoveredError
from initopt.model.double_backward import plain_attention
from initopt.model.problem import Batch, Problem
from initopt.model.randomness import seeded

__all__ = ["GroupsEngine"]

_CHECKED = 8
"""Sub-batches that the check of a model runs apart, at most."""


class GroupsEngine(Engine):
    """Run all sub-batches at once, and take the weight gradients of each (see :mod:`initopt.engines.stacked.operations`).

    For sub-batches of few samples, down to one: the model runs once on the whole batch, however many there are. Needs the
    memory of the whole batch's graph and of D gradients; to measure only, no gradient at all
    (:mod:`initopt.engines.stacked.gram_only`): the memory of a training step and D x D numbers.

    It works on models that treat samples apart and use their parameters in operations that it knows: linear layers,
    convolutions, norms, embeddings, sums and products. The first batch is checked against sub-batches run apart, at the
    cost of a training step or less.

    Raises:
        NotCoveredError: on a model beyond it; the message names the parameter and the operation, or says that the check
            failed.
    """

    name = "groups"
    keeps_graphs = True

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        self._checked: set[bool] = set()  # for whole gradients, for centred ones

    @classmethod
    def refusal(cls, problem: Problem) -> str | None:
        if problem.batch_norm == "batch":
            return 'it normalizes each sub-batch by its own statistics, and batch_norm is "batch"'
        return WHOLE if problem.microbatch is not None else None

    def evaluate(self, batch: Batch, differentiate: bool) -> Evaluation:
        if len({len(window) for window in batch.windows.indices}) > 1:
            raise NotCoveredError(f"the sub-batches of split={self.problem.subbatches.split!r} have different sizes")
        evaluation = _Groups(self.problem, batch) if differentiate else _GramOnly(self.problem, batch)
        if self.problem.centres(batch) not in self._checked:
            self._check(evaluation.gram, batch)
        return evaluation

    def _check(self, gram: Tensor, batch: Batch) -> None:
        """Compare squared norms, the diagonal of K, with those of sub-batches run apart.

        Other entries would take two gradients at a time, where a norm does not even take one.
        """
        count = len(batch.windows)
        parameters = [p.value for p in self.problem.grad_params]
        tolerance = max(torch.finfo(parameter.dtype).eps for parameter in parameters) ** (1 / 3)
        apart = []
        chosen = sorted({round(i * (count - 1) / (_CHECKED - 1)) for i in range(_CHECKED)})
        subbatches = [self.problem.parts(batch, d, None)[0] for d in range(count)]
        if batch.windows.single:
            subbatches = self.problem.centred_by_all(batch, subbatches)
        for d in chosen:
            with seeded(*batch.seed, d), self.problem.first_derivatives():
                apart.append(_gradient_sqnorm(self.problem.part_loss(batch, subbatches[d]), parameters))
        together = gram.detach().diagonal()[chosen].tolist()
        largest = max(apart)
        difference = max(abs(t - a) for t, a in zip(together, apart, strict=True)) / largest if largest > 0 else math.inf
        if not difference <= tolerance:
            raise NotCoveredError(
                f"the gradients of sub-batches run together and apart differ by {difference:.1e}: does the model mix "
                "samples, or draw random numbers?"
            )
        self._checked.add(self.problem.centres(batch))


def _gradient_sqnorm(loss: Tensor, parameters: Sequence[nn.Parameter]) -> float:
    """Squared norm of a gradient of which only the part of one parameter is in memory at a time."""
    found: list[Tensor] = []
    fold_gradients(loss, parameters, lambda _, g: found.append(torch.linalg.vector_norm(g, dtype=torch.float64).square()))
    return float(to_cpu(found).sum()) if found else 0.0


class _GramOnly(Evaluation):
    def __init__(self, problem: Problem, batch: Batch) -> None:
        joined = _joined(batch)
        mode = GramMode(problem.grad_params, len(batch.windows), joined.windows.batch_size)
        with seeded(*batch.seed), problem.first_derivatives(), replacing(mode):
            losses = _losses(problem, joined)
            self.gram = mode.gram(torch.stack(losses).sum())
        check_entries(self.gram, [loss.detach() for loss in losses], mode.broken)


class _Groups(Evaluation):
    def __init__(self, problem: Problem, batch: Batch) -> None:
        self._problem = problem
        count = len(batch.windows)
        known = {p.value for p in problem.grad_params}
        parameters = [*problem.grad_params, *(p for p in problem.scale_params if p.value not in known)]
        joined = _joined(batch)
        mode = Grouping(parameters, count, joined.windows.batch_size)
        self._ops = ScaledOps(problem.scale_params, mode)
        with plain_attention(), seeded(*batch.seed), problem.first_derivatives(), self._ops.replacing():
            losses = _losses(problem, joined)
            leaves = [mode.leaves[p.value] for p in problem.grad_params]
            total = torch.stack(losses).sum()
            self._stacked = torch.autograd.grad(total, leaves, create_graph=True, allow_unused=True)
        gradients = [[None if g is None else g.detach()[d] for g in self._stacked] for d in range(count)]
        self.gram = gram_matrix(gradients)
        check_gram(self.gram, [loss.detach() for loss in losses], gradients, problem.grad_params)

    def derivatives_along(self, weights: Tensor) -> Tensor:
        vectors = [None if g is None else torch.tensordot(weights.to(g), g.detach(), 1) for g in self._stacked]
        return self._ops.along_weights(self._stacked, vectors)

    def vector_derivatives(self, vectors: Sequence[Gradients]) -> Tensor:
        stacked: list[Tensor | None] = []
        for column, gradient in zip(zip(*vectors, strict=True), self._stacked, strict=True):
            if gradient is None or all(vector is None for vector in column):
                stacked.append(None)
                continue
            zero = gradient.new_zeros(gradient.shape[1:])
            stacked.append(torch.stack([zero if vector is None else vector for vector in column]))
        return self._ops.along_weights(self._stacked, stacked)


def _losses(problem: Problem, joined: Batch) -> list[Tensor]:
    try:
        return problem.window_losses(joined, apart=True)
    except LossError as error:
        raise NotCoveredError("the loss function gives no loss for every sample") from error


def _joined(batch: Batch) -> Batch:
    """The sub-batches one after the other, as a batch whose windows lie side by side."""
    indices = torch.cat(batch.windows.indices)
    size = len(batch.windows.indices[0])
    windows = tuple(torch.arange(d * size, (d + 1) * size, device="cpu") for d in range(len(batch.windows)))
    data = take(batch.data, indices, batch.windows.batch_size)
    return replace(batch, data=data, windows=Windows(windows, len(indices)))
