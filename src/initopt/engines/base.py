"""The interface of engines: from a batch to a Gram matrix, and from a function of it to derivatives."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from initopt.errors import NonFiniteError, ZeroGradientError
from initopt.parameters import NamedParameter
from initopt.problem import Batch, Problem, as_real

__all__ = ["Engine", "Evaluation", "Gradients", "check_gram", "gram_matrix", "weighted_sums"]

Gradients = Sequence[Tensor | None]
"""Gradient of one sub-batch, a tensor per parameter, ``None`` where the loss does not reach it."""


class Evaluation(ABC):
    """The Gram matrix of a batch, with the way back from it.

    Attributes:
        gram: K, float64 on the CPU, shape ``(D, D)``.
    """

    gram: Tensor

    @abstractmethod
    def scale_derivatives(self, gram_derivative: Tensor) -> Tensor:
        """Derivative of a function of the Gram matrix with respect to every scaled tensor, along that tensor.

        Must be called before the weights change, and once.

        Args:
            gram_derivative: dphi/dK, float64, shape ``(D, D)``; it need not be symmetric.

        Returns:
            <dphi/dW_k, W_k> for every ``problem.scale_params``, float64 on the CPU, shape ``(num_scales,)``; zero where
            phi does not depend on W_k.
        """


class Engine(ABC):
    """A way to get Gram matrices and their derivatives out of a model.

    An engine knows the model and autograd, and nothing of objectives.

    Attributes:
        name: its name.
        reason: why this engine and no other, as a clause.
    """

    name: ClassVar[str]
    reason = "chosen by name"

    def __init__(self, problem: Problem) -> None:
        self.problem = problem

    @classmethod
    @abstractmethod
    def refusal(cls, problem: Problem) -> str | None:
        """Why this engine cannot work on a problem, as the end of a sentence; ``None`` if it can."""

    @abstractmethod
    def evaluate(self, batch: Batch, differentiate: bool) -> Evaluation:
        """Evaluate one batch.

        Args:
            batch: from :meth:`Problem.prepare`.
            differentiate: whether :meth:`Evaluation.scale_derivatives` is going to be called.

        Raises:
            NonFiniteError: if a loss or gradient is infinite or not a number.
            ZeroGradientError: if all gradients are zero.
        """


def _real_rows(gradients: Sequence[Tensor | None]) -> Tensor:
    """The gradients of one parameter in all sub-batches as the rows of a real float64 matrix."""
    some = as_real(next(g for g in gradients if g is not None).detach())
    rows = torch.stack([torch.zeros_like(some) if g is None else as_real(g.detach()) for g in gradients])
    return rows.reshape(len(gradients), -1).double()


def gram_matrix(gradients: Sequence[Gradients]) -> Tensor:
    """K[d, e] = <g_d, g_e>, accumulated in float64.

    Args:
        gradients: those of every sub-batch, of the same parameters in the same order.

    Returns:
        Shape ``(D, D)``, float64, on the CPU.
    """
    total = torch.zeros(len(gradients), len(gradients), dtype=torch.float64)
    by_device: dict[torch.device, Tensor] = {}
    for column in zip(*gradients, strict=True):
        if all(g is None for g in column):
            continue
        rows = _real_rows(column)
        by_device[rows.device] = by_device.get(rows.device, 0) + rows @ rows.T
    return sum((part.cpu() for part in by_device.values()), total)


def weighted_sums(gradients: Sequence[Gradients], gram_derivative: Tensor) -> list[list[Tensor | None]]:
    """v_d = sum_e (dphi/dK[d, e] + dphi/dK[e, d]) g_e for every sub-batch d, a tensor per parameter."""
    weights = gram_derivative + gram_derivative.T
    sums: list[list[Tensor | None]] = [[] for _ in gradients]
    for column in zip(*gradients, strict=True):
        some = next((g for g in column if g is not None), None)
        if some is None:
            rows: Sequence[Tensor | None] = [None] * len(column)
        else:
            dense = [some.new_zeros(some.shape).to_dense() if g is None else g.detach().to_dense() for g in column]
            rows = torch.tensordot(weights.to(dense[0]), torch.stack(dense), 1).unbind()
        for vector, row in zip(sums, rows, strict=True):
            vector.append(row)
    return sums


def check_gram(
    gram: Tensor, losses: Sequence[Tensor], gradients: Sequence[Gradients], parameters: Sequence[NamedParameter]
) -> None:
    """Refuse what has no cosine.

    Raises:
        NonFiniteError: naming the first loss, or else the first parameters, that are infinite or not a number.
        ZeroGradientError: if every gradient is zero.
    """
    for d, loss in enumerate(losses):
        if not torch.isfinite(loss):
            raise NonFiniteError(f"the loss of sub-batch {d} is {loss.item()}")
    if not torch.isfinite(gram).all():
        for d, sub in enumerate(gradients):
            bad = [p.name for p, g in zip(parameters, sub, strict=True) if g is not None and not torch.isfinite(g).all()]
            if bad:
                more = f" and {len(bad) - 3} more" if len(bad) > 3 else ""
                raise NonFiniteError(
                    f"the gradient of sub-batch {d} is not finite for parameter {', '.join(map(repr, bad[:3]))}{more}"
                )
        raise NonFiniteError("the squared norm of the gradient overflows")
    if not gram.diagonal().any():
        raise ZeroGradientError(
            "the gradients of all sub-batches are exactly zero, so GradCosine is undefined; does the loss depend on the "
            "chosen parameters, and is the network alive (dead ReLUs, zero-initialized output)?"
        )
