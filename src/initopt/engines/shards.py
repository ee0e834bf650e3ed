"""Finite differences of gradients of a model that stays in parts on several devices."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from initopt._support.devices import free_memory
from initopt._support.errors import warn
from initopt.engines.base import Evaluation, Gradients, check_entries, gram_matrix
from initopt.engines.finite_differences import LADDER, Differencing, best_step
from initopt.engines.gradients import inner_products, moved, parts_of_all
from initopt.engines.invariance import any_is_low
from initopt.engines.memory import bytes_in_words, need_of_whole_weights
from initopt.model.centring import Means, Output, bent, slopes
from initopt.model.problem import ONE_SAMPLE, Batch, Part, Problem
from initopt.model.randomness import seeded
from initopt.model.ranks import Ranks
from initopt.model.shard_passes import ShardPasses, Slopes, precisions_of
from initopt.model.sharded import has_shards, own_part, tensor_parallel

__all__ = ["ShardsEngine", "why_in_parts"]


class ShardsEngine(Differencing):
    r"""Central differences of gradients, of which each rank has its part.

    The gradient :math:`g_d` of a sub-batch is that of the samples of all ranks, by the backward pass of ``fully_shard``.
    K is a sum over ranks of products of parts. So is, for :math:`d\varphi = \sum_d \langle v_d, dg_d \rangle`,
    with :math:`s_k(W) = \langle \nabla_k \ell_d(W), W_k \rangle` and
    :math:`W_k` held fixed, the derivative with respect to the scale of a tensor,

    .. math:: \langle (H_d v_d)_k, W_k \rangle \approx \frac{s_k(W + h v_d) - s_k(W - h v_d)}{2 h}.

    So no rank ever has more than its part of a weight or of a gradient, but for the moment in which ``fully_shard`` runs a
    block. Slopes are centred by the mean over all ranks, and the difference is that of
    :func:`initopt.model.centring.bent`. Batch norms see the share of their rank.

    The step is searched for as by :class:`initopt.engines.finite_differences.DifferencesEngine`, up to the cube root of the
    precision, which balances the errors of a central difference.

    Args:
        problem: with the ranks, and the model in parts on them.
    """

    name = "differences"

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        assert problem.shards is not None
        self.passes: ShardPasses = problem.shards
        self.reason = self.passes.reason

    @classmethod
    def refusal(cls, problem: Problem) -> str | None:
        if problem.shards is None:
            return "the model is not in parts on several devices"
        if problem.batch_norm == "batch":
            return 'batch_norm="batch" couples sub-batches, over all ranks; use batch_norm="subbatch"'
        return super().refusal(problem)

    @classmethod
    def made_for(cls, problem: Problem) -> ShardsEngine:
        """The engine.

        Raises:
            ValueError: if it cannot work on the problem.
        """
        reason = cls.refusal(problem)
        if reason is not None:
            raise ValueError(f"engine 'differences' cannot be used here: {reason}")
        return cls(problem)

    def evaluate(self, batch: Batch, differentiate: bool) -> Evaluation:
        if differentiate:
            self._refuse_low_precision()
        return _OnShards(self, batch)

    def _refuse_low_precision(self) -> None:
        """Refuse what rounds away the steps that differences are taken at.

        Raises:
            ValueError: saying what to do.
        """
        model = self.problem.model
        if _is_in_low_precision(model):
            way_out = "run nio before parallelize_module" if len(self.passes.peers) > 1 else (
                'apply fully_shard without it, or give engine="exact", which has the whole weights on each device'
            )  # fmt: skip
            raise ValueError(
                "the model is in parts and computes in half precision (by a MixedPrecisionPolicy, autocast or its "
                f"weights), which rounds away the steps that finite differences need. For nio, {way_out}; measure works as "
                "it is"
            )

    def step_for(self, evaluation: _OnShards, longest: int) -> float:
        """The relative step, searched for if it is time to, on the sub-batch whose vector is the longest."""

        def search() -> tuple[float, float]:
            precision = max(torch.finfo(p.value.dtype).eps for p in self.problem.grad_params)
            count = math.ceil(math.log(precision ** (1 / 3 - 1 / 2), LADDER))
            ladder = [math.sqrt(precision) * LADDER**k for k in range(-2, count + 1)]
            return best_step(ladder, lambda step: evaluation.difference(longest, step))

        return self.searched_step(search)


def _is_in_low_precision(model: nn.Module) -> bool:
    """Whether a model computes in less than single precision, by its parameters, its policy or by autocast."""
    own = [p.dtype for p in model.parameters() if p.is_floating_point()]
    return any_is_low([*own, *precisions_of(model)])


_Head = tuple[Sequence[Output], Sequence[Tensor]]
"""Outputs of a part, and their slopes."""

_Averaged = tuple[Sequence[Output], Sequence[Tensor], Sequence[Tensor]]
"""The same, with what is averaged."""


class _OnShards(Evaluation):
    def __init__(self, engine: ShardsEngine, batch: Batch) -> None:
        self.problem = problem = engine.problem
        self._engine, self._passes, self._batch = engine, engine.passes, batch
        self._parameters = [p.value for p in problem.grad_params]
        self._scaled = [p.value for p in problem.scale_params]
        self._centred = problem.centres(batch)
        if self._centred and batch.windows.single and not problem.ranks.union:
            raise ValueError(ONE_SAMPLE)
        self._shares = problem.shares(batch)
        self._parts = parts_of_all(problem, batch, problem.microbatch)
        losses: list[Tensor] = []
        self._gradients: list[Gradients] = []
        for d in range(len(self._parts)):
            loss, gradients = self._gradient(d, self._parameters, self._centring(d) if self._centred else None)
            losses.append(loss)
            self._gradients.append(gradients)
        counted = [self._passes.counted(self._parameters, gradients) for gradients in self._gradients]
        self.gram = problem.ranks.sum(gram_matrix(counted), "the Gram matrix")
        self.losses = problem.ranks.sum(torch.stack(losses), "losses")
        check_entries(self.gram, list(self.losses), self._broken)

    def _broken(self, d: int) -> list[str]:
        """The names of the parameters whose gradient is not finite, on any rank."""
        pairs = zip(self.problem.grad_params, self._gradients[d], strict=True)
        own = [p.name for p, g in pairs if g is not None and not torch.isfinite(g).all()]
        found = {name for names in self.problem.ranks.gather(own, "gradients that are not finite") for name in names}
        return [p.name for p in self.problem.grad_params if p.name in found]

    def _gradient(
        self, d: int, values: Sequence[Tensor], incoming: Sequence[Slopes] | None
    ) -> tuple[Tensor, list[Tensor | None]]:
        return self._passes.gradient(self.problem, self._batch, self._parts[d], self._shares[d], values, incoming)

    def _seen(self, d: int, part: Part, create_graph: bool) -> _Head:
        """The outputs of a part, and their slopes in the loss of all ranks."""
        with seeded(*part.seed):
            loss, outputs = self.problem.seen(self._batch, part)
        return outputs, self._slopes(self._shares[d] * loss, outputs, create_graph)

    def _slopes(self, loss: Tensor, outputs: Sequence[Output], create_graph: bool = False) -> list[Tensor]:
        with self._passes.by_outputs():
            return slopes(loss, outputs, create_graph)

    def _over_all(self, passes: Iterable[_Averaged]) -> Means:
        """The means over all parts and ranks."""
        return self._passes.over_all(Means.over(passes))

    def _centring(self, d: int) -> list[Slopes]:
        """For each part, slopes less their mean over all parts and ranks."""
        parts = self._parts[d]
        # Of one part, the pass of the gradient itself shows the mean.
        known = None if len(parts) == 1 else self._over_all(self._all_slopes(d))

        def centred(loss: Tensor, outputs: Sequence[Output]) -> list[Tensor]:
            found = self._slopes(loss, outputs)
            means = self._over_all([(outputs, found, found)]) if known is None else known
            return [o.layout.centred(p, 1, means.leaves[o.name]) for o, p in zip(outputs, found, strict=True)]

        return [centred] * len(parts)

    def _all_slopes(self, d: int) -> Iterator[_Averaged]:
        for part in self._parts[d]:
            outputs, found = self._seen(d, part, create_graph=False)
            yield outputs, found, found

    def derivatives_along(self, weights: Tensor) -> Tensor:
        squares = ((weights @ self.gram.detach()) * weights).sum(1).clamp_min(0.0)
        return self._along(lambda d: self._weighted_sum(weights[d]), squares.sqrt().tolist())

    def vector_derivatives(self, vectors: Sequence[Gradients]) -> Tensor:
        counted = [self._passes.counted(self._parameters, vector) for vector in vectors]
        squares = torch.stack([inner_products(vector, vector).sum() for vector in counted])
        lengths = self.problem.ranks.sum(squares, "lengths of vectors").sqrt().tolist()
        return self._along(lambda d: vectors[d], lengths)

    def _weighted_sum(self, weights: Tensor) -> Gradients:
        """The sum of the gradients of all sub-batches with these weights."""
        found: list[Tensor | None] = []
        for column in zip(*self._gradients, strict=True):
            total: Tensor | None = None
            for weight, gradient in zip(weights.tolist(), column, strict=True):
                if gradient is not None:
                    total = weight * gradient if total is None else total.add_(gradient, alpha=weight)
            found.append(total)
        return found

    def _along(self, vector_of: Callable[[int], Gradients], lengths: Sequence[float]) -> Tensor:
        """Derivatives along the vectors of all sub-batches, of which one is there at a time."""
        self._vector_of, self._lengths = vector_of, lengths
        weights = self._passes.counted(self._parameters, [own_part(p) for p in self._parameters])
        squares = inner_products(weights, weights).sum()
        self._size = max(float(self.problem.ranks.sum(squares, "the length of the weights").sqrt()), 1e-3)
        total = torch.zeros(len(self._scaled), dtype=torch.float64, device="cpu")
        if max(lengths) == 0:
            return total
        relative = self._engine.step_for(self, max(range(len(lengths)), key=lengths.__getitem__))
        for d, length in enumerate(lengths):
            if length > 0:
                total += self._own_difference(d, relative)
        return self.problem.ranks.sum(total, "derivatives")

    def difference(self, d: int, relative: float) -> Tensor:
        """<H_d v_d, W_k> for every scaled tensor by a step of this length, relative to that of the weights."""
        return self.problem.ranks.sum(self._own_difference(d, relative), "derivatives")

    def _own_difference(self, d: int, relative: float) -> Tensor:
        """What this rank adds to the difference."""
        vector, step = self._vector_of(d), relative * self._size / self._lengths[d]
        weights = self._passes.counted(self._scaled, [own_part(p) for p in self._scaled])
        moving = [own_part(p) for p in self._parameters]
        parts = self._parts[d]
        # One graph at a time is kept: that of the loss where the weights are, as long as it is of one part.
        head = self._seen(d, parts[0], create_graph=True) if self._centred and len(parts) == 1 else None
        here = None if head is None else self._bent_here(head)
        ends = []
        for signed in (step, -step):
            incoming: list[Slopes] | None = None
            if self._centred:
                incoming = self._bent_apart(d, moving, vector, signed) if here is None else [here]
            with moved(moving, vector, signed):
                _, far = self._gradient(d, self._scaled, incoming)
            ends.append(inner_products(far, weights))
        return (ends[0] - ends[1]) / (2 * step)

    def _bent_here(self, head: _Head) -> Slopes:
        """What comes in at the outputs of a sub-batch of one part, within the pass that has moved them."""
        outputs, found = head
        means = self._over_all([(outputs, found, found)])

        def incoming(loss: Tensor, moved_outputs: Sequence[Output]) -> list[Tensor]:
            far = [output.value.detach() for output in moved_outputs]
            shifts = [there - output.value.detach() for there, output in zip(far, outputs, strict=True)]
            return self._bent(outputs, found, far, means, self._over_all([(outputs, found, shifts)]))

        return incoming

    def _bent_apart(self, d: int, moving: Sequence[Tensor], vector: Gradients, step: float) -> list[Slopes]:
        """The same for each of several parts, in passes of their own."""
        with moved(moving, vector, step):
            far = [[o.value.detach() for o in self._seen(d, part, create_graph=False)[0]] for part in self._parts[d]]
        found: list[_Averaged] = []
        shifts: list[_Averaged] = []
        for (outputs, own, _), there in zip(self._all_slopes(d), far, strict=True):
            places = [replace(output, value=output.value.detach()) for output in outputs]
            found.append((places, own, own))
            shifts.append((places, own, [f - o.value for f, o in zip(there, places, strict=True)]))
        means, moves = self._over_all(found), self._over_all(shifts)
        known: list[Slopes] = []
        for part, there in zip(self._parts[d], far, strict=True):
            slopes_there = self._bent(*self._seen(d, part, create_graph=True), there, means, moves)
            known.append(lambda loss, outputs, slopes_there=slopes_there: slopes_there)  # type: ignore[misc]
        return known

    def _bent(
        self, outputs: Sequence[Output], found: Sequence[Tensor], far: Sequence[Tensor], means: Means, moves: Means
    ) -> list[Tensor]:
        with self._passes.by_outputs():
            return [slope.detach() for slope in bent(outputs, found, far, means, moves)]


def why_in_parts(
    model: nn.Module, ranks: Ranks, engine: str, count: int, memory_budget: float | None, differentiates: bool
) -> str | None:
    """Why a model is to stay in parts, as a clause; ``None`` for one that is whole, or is to be.

    Args:
        model: the model.
        ranks: the processes that work on it together.
        engine: the name as given; ``"differences"`` is the one that works in parts, and ``"auto"`` takes it where the whole
            weights and gradients do not fit on the device of some rank.
        count: D, the number of sub-batches.
        memory_budget: bytes that these may take; by default, what is free.
        differentiates: whether derivatives are taken, and not gradients alone.

    Raises:
        ValueError: if it is asked for by name, and cannot be; the message says why.
    """
    if not has_shards(model) or not ranks.union:
        return None
    ranks.same({"engine": engine}, "options", "give the same on all ranks")
    refusal = ShardPasses.refusal(model, ranks)
    if tensor_parallel(model):
        if refusal is not None:
            raise ValueError(f"the model cannot be worked on under tensor parallelism: {refusal}")
        if engine not in ("auto", "differences"):
            raise ValueError(
                f"engine {engine!r} needs whole weights, which a model has nowhere under tensor parallelism; "
                'leave engine="auto", or run initopt before parallelize_module'
            )
        if differentiates and engine == "auto":
            warn(
                "initopt: the model computes in parts, by tensor parallelism, so derivatives are taken by finite "
                "differences (engine 'differences'); before parallelize_module, they are exact"
            )
        return "the model computes in parts, by tensor parallelism"
    if engine not in ("auto", "differences"):
        return None
    if engine == "differences":
        if refusal is not None:
            raise ValueError(f"engine 'differences' cannot be used here: {refusal}")
        return "chosen by name, on the parts of the model"
    if refusal is not None or (differentiates and _is_in_low_precision(model)):
        return None
    device = next(model.parameters()).device
    budget = free_memory(device) if memory_budget is None else memory_budget
    need = need_of_whole_weights(model, count)
    if not any(ranks.gather(budget is not None and need > budget, "memory")):
        return None
    reason = f"the whole weights and gradients, some {bytes_in_words(need)}, exceed the memory of some rank"
    if differentiates:
        warn(
            f"initopt: {reason}, so the model stays in parts, and derivatives are taken by finite differences (engine "
            "'differences'); engine=\"exact\" has whole weights all the same"
        )
    return reason
