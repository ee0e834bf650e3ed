"""The gradient of a whole batch, for methods that do not split batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from initopt._support._torch_messages import missing_derivative
from initopt._support.errors import NonFiniteError, ZeroGradientError
from initopt._support.words import first_few
from initopt.batches.nested import batch_size, to_device
from initopt.batches.subbatches import Windows
from initopt.engines.autograd.scaled import ScaledOps
from initopt.engines.base import Gradients
from initopt.model.double_backward import plain_attention
from initopt.model.parameters import NamedParameter
from initopt.model.problem import Batch, Problem, as_real
from initopt.model.randomness import seeded

__all__ = ["LossGradient", "check_gradients", "explain_missing", "loss_of", "sum_over", "whole_batch"]


def whole_batch(problem: Problem, data: Any, *number: int) -> Batch:
    """A batch on the model's device as one piece.

    Args:
        problem: with the model.
        data: a nest of tensors that share their first dimension.
        number: of the batch; the same number means the same random draws inside the model.
    """
    size = batch_size(data)
    window = torch.arange(size, device="cpu")
    return Batch(to_device(data, problem.device), Windows((window,), size), problem.seed_of(*number))


def loss_of(problem: Problem, batch: Batch) -> Tensor:
    """Mean loss of a whole batch, with its graph.

    Raises:
        NonFiniteError: if it is infinite or not a number.
    """
    with plain_attention(), seeded(*batch.seed):
        loss = problem.subbatch_loss(batch, 0)
    if not torch.isfinite(loss):
        raise NonFiniteError(f"the loss is {loss.item()}")
    return loss


class LossGradient:
    """The gradient of the mean loss of a whole batch, over all ranks, and its derivatives along the weights.

    Attributes:
        gradients: a dense tensor per ``problem.grad_params``, ``None`` where the loss does not reach one.

    Raises:
        NonFiniteError: naming the loss or the parameters whose gradient is infinite or not a number.
        ZeroGradientError: if the whole gradient is zero.
    """

    def __init__(self, problem: Problem, batch: Batch) -> None:
        self._problem = problem
        self._ops = ScaledOps(problem.scale_params)
        with self._ops.replacing():
            loss = loss_of(problem, batch)
            parameters = [p.value for p in problem.grad_params]
            with plain_attention():  # activation checkpointing runs parts of the model again
                self._graph = torch.autograd.grad(loss, parameters, create_graph=True, allow_unused=True)
        self._share = problem.shares(batch)[0]
        own = [None if g is None else g.detach().to_dense() for g in self._graph]
        self.gradients: Gradients = problem.summed(own, self._share, parameters)
        check_gradients(self.gradients, problem.grad_params)

    def along_weights(self, vectors: Gradients) -> Tensor:
        """<dW_k, W_k> of <v, g> with v held fixed, for every scaled tensor. Can be called once.

        Args:
            vectors: v, a tensor per parameter.

        Returns:
            float64, on the CPU, shape ``(num_scales,)``.
        """
        try:
            own = self._ops.along_weights(self._graph, vectors)
        except Exception as error:
            explain_missing(error)
            raise
        ranks = self._problem.ranks
        return ranks.sum(self._share * own, "derivatives") if ranks.union else own


def sum_over(gradients: Gradients, function: Any) -> float:
    """The sum of a function of all entries of a gradient, in float64; a complex entry counts as two real ones."""
    parts = [function(as_real(g.detach()).double()).sum().cpu() for g in gradients if g is not None]
    return float(torch.stack(parts).sum()) if parts else 0.0


def check_gradients(gradients: Gradients, parameters: Sequence[NamedParameter]) -> None:
    """Refuse a gradient that is not finite, naming the parameters, or that is zero altogether."""
    bad = [
        repr(p.name) for p, g in zip(parameters, gradients, strict=True) if g is not None and not torch.isfinite(g).all()
    ]
    if bad:
        raise NonFiniteError(f"the gradient is not finite for parameter {first_few(bad)}")
    if not any(g is not None and g.any() for g in gradients):
        raise ZeroGradientError(
            "the gradient is exactly zero; does the loss depend on the chosen parameters, and is the network alive (dead "
            "ReLUs, zero-initialized output)?"
        )


def explain_missing(error: Exception) -> None:
    """Add to an error about an operation without a second derivative what will do without one."""
    operator = missing_derivative(error)
    if operator is not None:
        error.add_note(f"({operator} has no second derivative, which this method needs; nio can do without)")
