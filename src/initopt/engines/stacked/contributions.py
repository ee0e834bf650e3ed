r"""Entries of the Gram matrix from the inputs and output gradients of layers, without the gradients themselves.

With the gradient :math:`G_d` of a weight in each of D groups of samples, what counts is
:math:`\langle G_d, G_e \rangle`, D x D numbers. For a linear layer :math:`G_d = \sum_t \bar y_{dt} x_{dt}^\top`, over the
positions t of a group, and there are two ways to them that never hold D gradients:

- some rows of all :math:`G_d` at a time, and the sum over the rows of their products;
- :math:`\sum_{tu} \langle x_{dt}, x_{eu} \rangle \langle \bar y_{dt}, \bar y_{eu} \rangle`, cheaper where positions are few
  (I. Goodfellow, *Efficient Per-Example Gradient Computations*, arXiv 1510.01799, has its diagonal).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from initopt.engines.autograd.operations import Matrix, Operation
from initopt.engines.base import GramSum, fits_single

__all__ = ["EmbeddingUse", "LinearUse", "Use", "add_uses"]

_ROWS = 1 << 24
"""Entries of the gradients of one weight in all groups that are made at a time."""


class Use(ABC):
    """One use of a weight in a forward pass, with all that its gradient in every group depends on."""

    @abstractmethod
    def rows(self, groups: int, rows: slice) -> Tensor:
        """Some rows of the weight's gradient in every group, shape ``(groups, rows, ...)``."""

    def num_rows(self, weight: Tensor) -> int:
        """The number of rows, from the first on, that may differ from zero."""
        return len(weight)

    def alone(self, groups: int) -> Use:
        """The same, up to the order of rows, for a weight that has no other use."""
        return self

    def add_to(self, total: GramSum) -> bool:
        """Add the inner products between groups to a sum in a cheaper way, if there is one. Returns whether there is."""
        return False


@dataclass(frozen=True)
class LinearUse(Use):
    """A weight in a linear operation with input x, whose output has the gradient dy."""

    operation: Operation
    x: Tensor
    weight: Tensor
    dy: Tensor

    def rows(self, groups: int, rows: slice) -> Tensor:
        return self.operation.weight_gradient_rows(self.x, self.weight, self.dy, groups, rows)

    def add_to(self, total: GramSum) -> bool:
        if not isinstance(self.operation, Matrix):
            return False
        x, dy = self.operation.factors(self.x, self.dy, total.count)
        positions, features = x.shape[0] * x.shape[1], x.shape[2] * dy.shape[2]
        if positions**2 * (x.shape[2] + dy.shape[2]) >= (positions + total.count**2) * features:
            return False
        precision = total.precision(x.dtype)
        if precision != torch.float64 and not (fits_single(x) and fits_single(dy)):
            return False
        flat_x, flat_dy = x.flatten(0, 1).to(precision), dy.flatten(0, 1).to(precision)
        products = (flat_x @ flat_x.T).mul_(flat_dy @ flat_dy.T)
        total.add(products.view(len(x), x.shape[1], len(x), x.shape[1]).sum((1, 3), dtype=torch.float64))
        return True


@dataclass(frozen=True)
class EmbeddingUse(Use):
    """A table from which rows were taken: those at ``index``; dy, their gradients, has one dimension more."""

    index: Tensor
    dy: Tensor
    ignored: int | None

    def rows(self, groups: int, rows: slice) -> Tensor:
        index, dy = self.index.reshape(groups, -1), self.dy.reshape(groups, -1, self.dy.shape[-1])
        counts = (index >= rows.start) & (index < rows.stop)
        if self.ignored is not None:
            counts &= index != self.ignored
        group, position = counts.nonzero(as_tuple=True)
        width = rows.stop - rows.start
        found = dy.new_zeros(groups * width, dy.shape[-1])
        found.index_add_(0, group * width + index[group, position] - rows.start, dy[group, position])
        return found.view(groups, width, -1)

    def num_rows(self, weight: Tensor) -> int:
        return min(len(weight), int(self.index.max()) + 1) if self.index.numel() else 0

    def alone(self, groups: int) -> Use:
        """With the rows that were never taken left out."""
        values, index = torch.unique(self.index, return_inverse=True)
        ignored = None if self.ignored is None else (values == self.ignored).nonzero().flatten().tolist()
        return EmbeddingUse(index, self.dy, ignored[0] if ignored else None)


def add_uses(total: GramSum, weight: Tensor, uses: Sequence[Use], other: Tensor | None) -> None:
    """Add the inner products, between groups, of the gradients of one weight.

    Args:
        total: what they are added to.
        weight: the weight.
        uses: all its uses but those that ``other`` is from.
        other: a part of its gradient in every group that is at hand, shape ``(groups, *weight.shape)``.
    """
    if len(uses) == 1 and other is None:
        use = uses[0].alone(total.count)
        if use.add_to(total):
            return
        uses = [use]
    count = len(weight) if other is not None else max(use.num_rows(weight) for use in uses)
    step = max(_ROWS // (total.count * weight[0].numel()), 1)
    if any(isinstance(use, LinearUse) and not use.operation.has_rows() for use in uses):
        step = count
    for start in range(0, count, step):
        rows = slice(start, min(start + step, count))
        parts = [use.rows(total.count, rows) for use in uses]
        block = sum(parts[1:], parts[0]) if other is None else sum(parts, other[:, rows])
        total.add_rows(block.flatten(1))
