"""The interface of engines: from a batch to a Gram matrix, and from a function of it to derivatives."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from initopt._support.errors import NonFiniteError, ZeroGradientError, warn
from initopt._support.words import first_few
from initopt.model.parameters import NamedParameter
from initopt.model.problem import Batch, Problem, as_real

__all__ = [
    "BLOCK",
    "WHOLE",
    "Engine",
    "Evaluation",
    "Gradients",
    "GramSum",
    "added",
    "check_entries",
    "check_gram",
    "fits_single",
    "fold_gradients",
    "gram_matrix",
    "joined",
    "weighted_sums",
]

WHOLE = "it runs sub-batches whole, and microbatch is to split them"
"""Why most engines refuse a problem with micro-batches."""

Gradients = Sequence[Tensor | None]
"""Gradient of one sub-batch, a tensor per parameter, ``None`` where the loss does not reach it."""


class Evaluation:
    """The Gram matrix of a batch, with the way back from it.

    Attributes:
        gram: K, float64 on the CPU, shape ``(D, D)``.
    """

    gram: Tensor
    _gradients: Sequence[Gradients] = ()

    def scale_derivatives(self, gram_derivative: Tensor) -> Tensor:
        """Derivative of a function of the Gram matrix with respect to every scaled tensor, along that tensor.

        Must be called before the weights change, and once.

        Args:
            gram_derivative: dphi/dK, float64, shape ``(D, D)``; it need not be symmetric.

        Returns:
            <dphi/dW_k, W_k> for every ``problem.scale_params``, float64 on the CPU, shape ``(num_scales,)``; zero where
            phi does not depend on W_k.

        Raises:
            NonFiniteError: naming the parameters for which the result is not finite.
        """
        weights = gram_derivative + gram_derivative.T
        # dphi/dK goes as 1 / |g|^2 and may be beyond the range of the gradients' own precision; v of length 1 never is.
        squares = ((weights @ self.gram.detach()) * weights).sum(1)
        length = float(squares.max().clamp_min(0.0).sqrt()) or 1.0
        return length * self.derivatives_along(weights / length)

    def derivatives_along(self, weights: Tensor) -> Tensor:
        """<dW_k, W_k> of sum_d <v_d, g_d> with v_d = sum_e weights[d, e] g_e held fixed, for every scaled tensor."""
        return self.vector_derivatives(weighted_sums(self._gradients, weights))

    def vector_derivatives(self, vectors: Sequence[Gradients]) -> Tensor:
        """As :meth:`scale_derivatives`, of sum_d <v_d, g_d> for given vectors: for functions that are not functions of K.

        Must be called before the weights change, and once, instead of :meth:`scale_derivatives`.

        Args:
            vectors: v_d of every sub-batch, held fixed; a tensor per ``problem.grad_params``, in the precision of the
                gradients, or ``None`` for zero.
        """
        raise RuntimeError("the batch was evaluated with differentiate=False")


class Engine(ABC):
    """A way to get Gram matrices and their derivatives out of a model.

    An engine knows the model and autograd, and nothing about objectives.

    Attributes:
        name: its name.
        keeps_graphs: whether it holds the graphs of all sub-batches at once, so that ``recompute`` does with less memory.
        reason: why this engine and no other, as a clause.
    """

    name: ClassVar[str]
    keeps_graphs: ClassVar[bool] = False
    reason = "chosen by name"

    def __init__(self, problem: Problem) -> None:
        self.problem = problem

    @classmethod
    @abstractmethod
    def refusal(cls, problem: Problem) -> str | None:
        """Why this engine cannot work on a problem, as the end of a sentence; ``None`` if it can."""

    @property
    def microbatch(self) -> int | None:
        """The most samples of a sub-batch that are run at a time, as far as is known so far; ``None`` for all of them."""
        return self.problem.microbatch

    def state(self) -> dict[str, Any]:
        """The state that later evaluations depend on besides their batch, as plain values for JSON."""
        return {}

    def load_state(self, state: dict[str, Any]) -> None:  # noqa: B027 - most engines have none
        """Go on from a state: the inverse of :meth:`state`."""

    def distrust(self, why: str) -> None:
        """Take note, before the first batch, that second derivatives cannot be trusted; an engine may do without them."""
        warn(f'initopt: {why}. {self.name!r} takes it as it is; engine="differences" does without')

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


def fold_gradients(loss: Tensor, tensors: Sequence[Tensor], note: Callable[[int, Tensor], None]) -> None:
    """Hand the gradients of a loss to a function, real and one at a time, so that no two are in memory.

    This is not done by ``loss.backward()``, which would run the hooks of others: an optimizer's step, a reduction over
    processes.

    Args:
        loss: with its graph, which is freed.
        tensors: what it is differentiated by.
        note: is given the number of a tensor, and its gradient; not called where the loss does not reach one.
    """

    def fold(number: int, gradient: Tensor) -> Tensor | None:
        note(number, as_real(gradient))
        nothing = gradient.new_zeros(()).expand(gradient.shape)
        return nothing if gradient.layout is torch.strided else None

    with ExitStack() as stack:
        for number, tensor in enumerate(tensors):
            stack.callback(tensor.register_hook(partial(fold, number)).remove)  # type: ignore[no-untyped-call]
        torch.autograd.grad(loss, tensors, allow_unused=True)


BLOCK = 1 << 22
"""Entries of the gradients of one parameter that are multiplied at a time, and copied for it."""

MANY = 16
"""Number of sub-batches above which such a product is taken in single precision, if the gradients have that, and only the
sum of the products in double: the product is costly then, and its rounding error is far below that of the gradients."""


def fits_single(part: Tensor) -> bool:
    """Whether inner products of millions of such entries are far from the bounds of single precision (1.8e19 squared)."""
    return 1e-15 < float(part.abs().max()) < 1e15


class GramSum:
    """A Gram matrix that grows parameter by parameter, in float64.

    Args:
        count: D, the number of sub-batches.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._by_device: dict[torch.device, Tensor] = {}

    def precision(self, dtype: torch.dtype) -> torch.dtype:
        """The precision in which gradients of a given precision are multiplied."""
        return torch.float64 if self.count <= MANY else torch.promote_types(dtype, torch.float32)

    def add(self, products: Tensor) -> None:
        """Add inner products, shape ``(D, D)``."""
        zero = products.new_zeros(products.shape, dtype=torch.float64)
        self._by_device.setdefault(products.device, zero).add_(products)

    def add_rows(self, rows: Tensor | Sequence[Tensor]) -> None:
        """Add the inner products of real vectors, one for each sub-batch: a list, or the rows of a matrix."""
        step = max(BLOCK // self.count, 1)
        for start in range(0, len(rows[0]), step):
            few = slice(start, start + step)
            part = rows[:, few] if isinstance(rows, Tensor) else torch.stack([row[few] for row in rows])
            precision = self.precision(part.dtype)
            if precision != torch.float64 and not fits_single(part):
                precision = torch.float64
            part = part.to(precision)
            self.add(part @ part.T)

    def add_sum(self, other: GramSum) -> None:
        """Add another sum."""
        for products in other._by_device.values():
            self.add(products)

    def sqnorms(self) -> Tensor:
        """The diagonal of the sum, on a device; shape ``(D,)``."""
        first, *others = (part.diagonal() for part in self._by_device.values())
        return sum((part.to(first.device) for part in others), first)

    def matrix(self) -> Tensor:
        """The sum so far, float64 on the CPU, shape ``(D, D)``."""
        zero = torch.zeros(self.count, self.count, dtype=torch.float64, device="cpu")
        return sum((part.cpu() for part in self._by_device.values()), zero)


def gram_matrix(gradients: Sequence[Gradients]) -> Tensor:
    """K[d, e] = <g_d, g_e>, accumulated in float64.

    Args:
        gradients: those of every sub-batch, of the same parameters in the same order.

    Returns:
        Shape ``(D, D)``, float64, on the CPU.
    """
    total = GramSum(len(gradients))
    for column in zip(*gradients, strict=True):
        rows = _real_rows(column)
        if rows is not None:
            total.add_rows(rows)
    return total.matrix()


def _real_rows(gradients: Sequence[Tensor | None]) -> list[Tensor] | None:
    """The gradients of one parameter in all sub-batches as real vectors; ``None`` if there is none at all."""
    rows = [None if g is None else as_real(g.detach()).reshape(-1) for g in gradients]
    some = next((row for row in rows if row is not None), None)
    return None if some is None else [torch.zeros_like(some) if row is None else row for row in rows]


def weighted_sums(gradients: Sequence[Gradients], weights: Tensor) -> list[list[Tensor | None]]:
    """v_d = sum_e weights[d, e] g_e for every sub-batch d, a tensor per parameter."""
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


def added(parts: Iterable[tuple[Tensor, Gradients]]) -> tuple[Tensor, Gradients]:
    """The sum of losses, and that of gradients, one part at a time."""
    total: tuple[Tensor, list[Tensor | None]] | None = None
    for loss, gradients in parts:
        if total is None:
            total = loss, list(gradients)
            continue
        pairs = zip(total[1], gradients, strict=True)
        total = total[0] + loss, [a if b is None else b if a is None else a + b for a, b in pairs]
    assert total is not None
    return total


def joined(gradients: Sequence[Gradients]) -> list[Tensor | None]:
    """The gradients of all sub-batches in one list."""
    return [g for sub in gradients for g in sub]


def check_gram(
    gram: Tensor, losses: Sequence[Tensor], gradients: Sequence[Gradients], parameters: Sequence[NamedParameter]
) -> None:
    """Refuse gradients that have no cosine.

    Raises:
        NonFiniteError: naming the first loss, or else the first parameters, that are infinite or not a number.
        ZeroGradientError: if every gradient is zero.
    """

    def broken(d: int) -> list[str]:
        pairs = zip(parameters, gradients[d], strict=True)
        return [p.name for p, g in pairs if g is not None and not torch.isfinite(g).all()]

    check_entries(gram, losses, broken)


def check_entries(gram: Tensor, losses: Sequence[Tensor], broken: Callable[[int], list[str]]) -> None:
    """As :func:`check_gram`.

    Args:
        gram: the Gram matrix.
        losses: of the sub-batches.
        broken: gives the names of the parameters whose gradient in a sub-batch is not finite.
    """
    for d, finite in enumerate(torch.isfinite(torch.stack(list(losses))).tolist()):
        if not finite:
            value = losses[d].item()
            why = " (a mean over no target is: are all those of this sub-batch ignored?)" if math.isnan(value) else ""
            raise NonFiniteError(f"the loss of sub-batch {d} is {value}{why}")
    if not torch.isfinite(gram).all():
        for d in range(len(losses)):
            bad = broken(d)
            if bad:
                names = first_few(list(map(repr, bad)))
                raise NonFiniteError(f"the gradient of sub-batch {d} is not finite for parameter {names}")
        raise NonFiniteError("the squared norm of the gradient overflows")
    if not gram.diagonal().any():
        raise ZeroGradientError(
            "the gradients of all sub-batches are exactly zero, so GradCosine is undefined; does the loss depend on the "
            "chosen parameters, and is the network alive (dead ReLUs, zero-initialized output)? A contrastive loss needs "
            "more than one sample in a sub-batch: fewer sub-batches"
        )
