"""Exact derivatives from sub-batches that are run apart, each with its own graph."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TypeVar

import torch
from torch import Tensor

from initopt.engines.autograd.scale_derivatives import along_weights
from initopt.engines.autograd.scaled import ScaledOps
from initopt.engines.base import WHOLE, Engine, Evaluation, Gradients, added, check_gram, gram_matrix, joined
from initopt.engines.microbatches import Microbatches
from initopt.model.centring import slopes
from initopt.model.double_backward import plain_attention
from initopt.model.problem import Batch, Part, Problem
from initopt.model.randomness import seeded

__all__ = ["GraphEngine", "Plain", "PlainEngine", "RecomputeEngine", "Recomputed"]

_T = TypeVar("_T")


class _SeparateEngine(Engine):
    @classmethod
    def refusal(cls, problem: Problem) -> str | None:
        if problem.batch_norm == "batch":
            return 'it runs sub-batches apart, and batch_norm="batch" couples them'
        return WHOLE if problem.microbatch is not None else None

    def evaluate(self, batch: Batch, differentiate: bool) -> Evaluation:
        return self._evaluation(batch) if differentiate else _Separate(self.problem, batch, self._microbatches)

    _microbatches: Microbatches | None = None

    @abstractmethod
    def _evaluation(self, batch: Batch) -> Evaluation: ...


class GraphEngine(_SeparateEngine):
    r"""Keep the graphs of all sub-batch gradients for one double backward: the fastest.

    With :math:`v_d` held fixed, :math:`d\varphi = \sum_d \langle v_d, dg_d \rangle`, so that one walk back through the
    graphs of the gradients, with :math:`v_d` coming in, gives all derivatives. Needs the memory of these graphs.
    """

    name = "graph"
    keeps_graphs = True

    def _evaluation(self, batch: Batch) -> Evaluation:
        return _Graph(self.problem, batch)


class RecomputeEngine(_SeparateEngine):
    """Sub-batch gradients first; then each sub-batch once more for its Hessian-vector product.

    Holds the D gradients and at no time more than one graph, so the memory is that of a training step on one sub-batch, or
    on ``problem.microbatch`` samples of it. Where that is too much, it goes on with half as many samples at a time.
    """

    name = "recompute"

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        self._microbatches: Microbatches = Microbatches(problem)

    @classmethod
    def refusal(cls, problem: Problem) -> str | None:
        whole = super().refusal(problem)
        return Microbatches.refusal(problem) if whole in (None, WHOLE) else whole

    @property
    def microbatch(self) -> int | None:
        return self._microbatches.size

    def state(self) -> dict[str, Any]:
        return self._microbatches.state()

    def load_state(self, state: dict[str, Any]) -> None:
        self._microbatches.load_state(state)

    def _evaluation(self, batch: Batch) -> Evaluation:
        return Recomputed(self.problem, batch, self._microbatches)


class PlainEngine(_SeparateEngine):
    """As :class:`RecomputeEngine`, by plain double backward with no operation replaced: the slow truth.

    The other engines are held against it. Try it if one of them is suspected.
    """

    name = "plain"

    def _evaluation(self, batch: Batch) -> Evaluation:
        return Plain(self.problem, batch)


class _Separate(Evaluation):
    """Gradients of every sub-batch, and their Gram matrix."""

    def __init__(self, problem: Problem, batch: Batch, microbatches: Microbatches | None = None) -> None:
        self._problem = problem
        self._batch = batch
        self._microbatches = microbatches
        self._samples = self._centred_samples()
        found = [self._of_parts(d, self._first) for d in range(len(batch.windows))]
        self._gradients = [gradients for _, gradients in found]
        self.gram = gram_matrix(self._gradients)
        check_gram(self.gram, [loss for loss, _ in found], self._gradients, problem.grad_params)

    def _centred_samples(self) -> list[Part] | None:
        """Sub-batches of one sample each, which are centred by the mean of all; ``None`` for larger ones."""
        problem, batch = self._problem, self._batch
        if not problem.centres(batch) or not batch.windows.single:
            return None
        with plain_attention():
            return problem.centred_by_all(batch, [problem.parts(batch, d, None)[0] for d in range(len(batch.windows))])

    def _of_parts(self, d: int, function: Callable[[list[Part]], _T]) -> _T:
        """What a function makes of the parts of sub-batch d: the whole, if there are no micro-batches."""
        if self._samples is not None:
            return function([self._samples[d]])
        if self._microbatches is None:
            return function(self._problem.parts(self._batch, d, None))
        return self._microbatches.run(self._batch, d, function)

    def _gradient(
        self, part: Part, create_graph: bool, backward: AbstractContextManager[None] | None = None
    ) -> tuple[Tensor, Gradients]:
        with plain_attention(), seeded(*part.seed), self._problem.first_derivatives():
            loss = self._problem.part_loss(self._batch, part)
            parameters = [p.value for p in self._problem.grad_params]
            with backward or nullcontext():
                gradients = torch.autograd.grad(loss, parameters, create_graph=create_graph, allow_unused=True)
            return loss.detach(), gradients

    def _first(self, parts: list[Part]) -> tuple[Tensor, Gradients]:
        """Loss and gradient of a sub-batch."""
        return added(self._gradient(part, create_graph=False) for part in parts)

    def _through_means(self, parts: Sequence[Part]) -> Tensor:
        """<dW_k, W_k> through the means that parts were centred by, once these know the derivatives by themselves."""
        total = torch.zeros(len(self._problem.scale_params), dtype=torch.float64, device="cpu")
        for part in parts:
            if part.means is None:
                continue
            with plain_attention(), seeded(*part.seed), self._operations() as derivatives_of:
                loss, outputs = self._problem.seen(self._batch, part)
                found = slopes(loss, outputs, create_graph=True)
            back = [part.means.pulled_back(output, slope) for output, slope in zip(outputs, found, strict=True)]
            total += derivatives_of(found, back)
        return total

    @contextmanager
    def _operations(self) -> Iterator[Callable[[Gradients, Gradients], Tensor]]:
        """Replace operations by cheaper ones within a block, and give what takes derivatives through these."""
        ops = ScaledOps(self._problem.scale_params)
        with ops.replacing():
            yield ops.along_weights


class _Graph(_Separate):
    def __init__(self, problem: Problem, batch: Batch) -> None:
        self._ops = ScaledOps(problem.scale_params)
        super().__init__(problem, batch)

    def _first(self, parts: list[Part]) -> tuple[Tensor, Gradients]:
        (whole,) = parts
        with self._ops.replacing():
            return self._gradient(whole, create_graph=True)

    def vector_derivatives(self, vectors: Sequence[Gradients]) -> Tensor:
        samples = self._samples or []
        total = self._ops.along_weights(joined(self._gradients), joined(vectors), samples[0].means if samples else None)
        return total + self._through_means(samples)


class Recomputed(_Separate):
    """Gradients without their graphs; each sub-batch is run once more for its Hessian-vector product."""

    def vector_derivatives(self, vectors: Sequence[Gradients]) -> Tensor:
        total = torch.zeros(len(self._problem.scale_params), dtype=torch.float64, device="cpu")
        for d, vector in enumerate(vectors):

            def of_parts(parts: list[Part], vector: Gradients = vector) -> Tensor:
                along = [self._along(part, vector) for part in parts]
                return torch.stack(along).sum(0) + (self._through_means(parts) if self._samples is None else 0)

            total += self._of_parts(d, of_parts)
        return total + self._through_means(self._samples or [])

    def _along(self, part: Part, vector: Gradients) -> Tensor:
        ops = ScaledOps(self._problem.scale_params)
        with ops.replacing():
            _, gradients = self._gradient(part, create_graph=True, backward=ops.values_unwanted())
        return ops.along_weights(gradients, vector, part.means)


class Plain(Recomputed):
    """The same with no operation replaced."""

    def _along(self, part: Part, vector: Gradients) -> Tensor:
        _, gradients = self._gradient(part, create_graph=True)
        return along_weights(gradients, vector, self._problem.scale_params, means=part.means)

    @contextmanager
    def _operations(self) -> Iterator[Callable[[Gradients, Gradients], Tensor]]:
        yield lambda gradients, vectors: along_weights(gradients, vectors, self._problem.scale_params)
