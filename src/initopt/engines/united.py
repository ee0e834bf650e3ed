"""Exact derivatives where each sub-batch has a share of its samples on every rank."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from initopt._support._torch_messages import free_cached_memory, is_out_of_memory
from initopt._support.devices import free_memory
from initopt._support.errors import warn
from initopt.engines.autograd.scaled import ScaledOps
from initopt.engines.base import Engine, Evaluation, Gradients, check_gram, gram_matrix
from initopt.engines.memory import estimate
from initopt.engines.microbatches import Microbatches
from initopt.engines.per_subbatch import Plain, Recomputed
from initopt.model.centring import Means
from initopt.model.double_backward import plain_attention
from initopt.model.problem import Batch, Part, Problem

__all__ = ["UnitedEngine"]

_T = TypeVar("_T")

_KINDS = ("graph", "recompute", "plain")


class UnitedEngine(Engine):
    r"""Sub-batches whose samples lie on several ranks, as one process would have them.

    With the share :math:`s_{rd}` of the samples of sub-batch d on rank r, its gradient is
    :math:`g_d = \sum_r s_{rd} g_{rd}`: one reduction of D gradients, after which all ranks have the same Gram matrix and
    the same :math:`v_d`. The Hessian-vector products of :math:`s_{rd} v_d` are those of each rank by itself, and one
    reduction of a number for each scale ends the step. Slopes are centred by the mean over all ranks, which takes a
    reduction of a number for each channel on the way there, and one on the way back. Batch norms see the share of their
    rank.

    Args:
        problem: with the ranks.
        engine: ``"graph"`` keeps the graphs of the gradients, ``"recompute"`` runs each sub-batch again, ``"plain"`` does
            so by plain double backward. ``"auto"`` and ``"exact"`` begin with ``"graph"``, unless some rank lacks memory.
        memory_budget: bytes that it may take; by default, what is free.
    """

    def __init__(self, problem: Problem, engine: str = "auto", memory_budget: float | None = None) -> None:
        super().__init__(problem)
        self._chosen = engine in ("auto", "exact")
        self._memory_budget = memory_budget
        self._microbatches = Microbatches(problem)
        self._budgeted = False
        self._kind = engine
        if self._chosen:
            self._kind = "graph" if problem.microbatch is None else "recompute"
        self.reason = f"exact over {problem.ranks.size} ranks" if self._chosen else "chosen by name"

    @property
    def name(self) -> str:  # type: ignore[override]
        return self._kind

    @property
    def keeps_graphs(self) -> bool:  # type: ignore[override]
        return self._kind == "graph"

    @classmethod
    def refusal(cls, problem: Problem) -> str | None:
        """Why sub-batches cannot be united."""
        if problem.batch_norm == "batch":
            return 'batch_norm="batch" couples sub-batches, over all ranks; use batch_norm="subbatch", or share="average"'
        return Microbatches.refusal(problem)

    @classmethod
    def named(cls, problem: Problem, engine: str, memory_budget: float | None) -> UnitedEngine:
        """The engine for a name.

        Raises:
            ValueError: if there is none of this name for several ranks, or it cannot work on the problem.
        """
        reason = cls.refusal(problem)
        if reason is None and engine not in ("auto", "exact", *_KINDS):
            reason = f'of several ranks it is "graph", "recompute" or "plain"; share="average" takes engine={engine!r}'
        if reason is None and engine in ("graph", "plain") and problem.microbatch is not None:
            reason = 'it runs sub-batches whole, and microbatch is to split them; engine="recompute" can'
        if reason is not None:
            raise ValueError(f"engine {engine!r} cannot be used here: {reason}")
        return cls(problem, engine, memory_budget)

    @property
    def microbatch(self) -> int | None:
        return self._microbatches.size

    def state(self) -> dict[str, Any]:
        return {"engine": self.name, "reason": self.reason, "inner": self._microbatches.state()}

    def load_state(self, state: dict[str, Any]) -> None:
        self._budgeted = True
        self._kind = state["engine"]
        self.reason = state["reason"]
        self._microbatches.load_state(state["inner"])

    def distrust(self, why: str) -> None:
        warn(f'initopt: {why}. {self.name!r} takes it as it is; share="average" with engine="differences" does without')

    def evaluate(self, batch: Batch, differentiate: bool) -> Evaluation:
        if differentiate and not self._budgeted:
            self._keep_to_budget(batch)
        kind = _United if self._kind != "plain" else _UnitedPlain
        found = kind(self.problem, batch, self._microbatches, keep=differentiate and self.keeps_graphs)
        if self._succeeded(self.problem.ranks.attempt(found.run, "the gradients of sub-batches")[1]):
            found.unite()
            return found
        del found  # and its graphs
        free_cached_memory(self.problem.device)
        return self.evaluate(batch, differentiate)

    def _keep_to_budget(self, batch: Batch) -> None:
        """Go over to the engine that takes less memory if this one is going to take too much, on any rank."""
        self._budgeted = True
        if not self._chosen or not self.keeps_graphs:
            return
        problem = self.problem
        budget = free_memory(problem.device) if self._memory_budget is None else self._memory_budget
        # The graphs of D sub-batches, and one more gradient of each: that of the rank itself, and that of all.
        short = budget is not None and estimate(problem, batch).keeping_graphs > budget
        if any(problem.ranks.gather(short, "memory")):
            self._kind = "recompute"
            self.reason = "the graphs of all sub-batches exceed the memory of some rank"

    def _succeeded(self, errors: Sequence[BaseException | None]) -> bool:
        """Whether all went well; if not for lack of memory, it is to be tried with less, and anything else is raised.

        All ranks raise an error, those that were well what they hear of another one, so that nobody is left waiting.
        """
        failed = [error for error in errors if error is not None]
        if not failed:
            return True
        if self.keeps_graphs and self._chosen and all(map(_is_out_of_memory, failed)):
            self._kind = "recompute"
            self.reason = "the graphs of all sub-batches did not fit into the memory of some rank"
            warn(f"initopt: {self.reason}, so they are recomputed from here on (engine {self.name!r})")
            return False
        own = errors[self.problem.ranks.number]
        raise failed[0] if own is None else own


class _United(Recomputed):
    """The evaluation: what each rank does by itself in :meth:`run`, which may fail, and the rest in :meth:`unite`."""

    def __init__(self, problem: Problem, batch: Batch, microbatches: Microbatches, keep: bool) -> None:
        self._problem, self._batch, self._microbatches = problem, batch, microbatches
        self._samples = None
        self._keep = keep
        self._shares = problem.shares(batch)
        self._means = _means_of_all(problem, batch, self._shares, microbatches) if problem.centres(batch) else None
        self._graphs: list[tuple[ScaledOps, Gradients]] = []
        self._found: list[tuple[Tensor, Gradients]] = []

    def run(self) -> None:
        """Losses and gradients of the shares of this rank."""
        self._graphs.clear()
        self._found = [self._of_parts(d, self._first) for d in range(len(self._batch.windows))]

    def unite(self) -> None:
        """Losses and gradients of the sub-batches, and their Gram matrix."""
        problem = self._problem
        like = [p.value for p in problem.grad_params]
        own = torch.stack([loss.double().cpu() * share for (loss, _), share in zip(self._found, self._shares, strict=True)])
        losses = problem.ranks.sum(own, "losses")
        gradients: list[Gradients] = []
        for d, share in enumerate(self._shares):
            gradients.append(problem.summed(self._found[d][1], share, like))
            self._found[d] = (losses[d], ())  # so that no more than one gradient is there twice
        # The gradients are the same on all ranks, bit by bit, if the reduction is as good as that; the matrix is for sure.
        self.gram = problem.ranks.broadcast(gram_matrix(gradients), "the Gram matrix")
        check_gram(self.gram, list(losses), gradients, problem.grad_params)
        self._gradients = gradients

    def _of_parts(self, d: int, function: Callable[[list[Part]], _T]) -> _T:
        assert self._microbatches is not None
        return self._microbatches.run(self._batch, d, function, None if self._means is None else self._means[d])

    def _first(self, parts: list[Part]) -> tuple[Tensor, Gradients]:
        if not self._keep or len(parts) > 1:
            return super()._first(parts)
        ops = ScaledOps(self._problem.scale_params)
        with ops.replacing():
            loss, gradients = self._gradient(parts[0], create_graph=True)
        self._graphs.append((ops, gradients))
        return loss, gradients

    def vector_derivatives(self, vectors: Sequence[Gradients]) -> Tensor:
        ranks, count = self._problem.ranks, len(self._problem.scale_params)
        own = torch.zeros(count, dtype=torch.float64, device="cpu")
        for d, share in enumerate(self._shares):
            vector: Gradients = [None if v is None else share * v for v in vectors[d]]
            own += self._kept_along(d, vector) if self._graphs else self._of_parts(d, self._through(vector))
        if self._means is None:
            return ranks.sum(own, "derivatives")
        both = ranks.sum(torch.cat([own, _packed(self._means, self._shares)]), "derivatives")
        _unpack(self._means, self._shares, both[count:])
        through = torch.zeros(count, dtype=torch.float64, device="cpu")
        for d in range(len(self._shares)):
            through += self._of_parts(d, self._through_means)
        return both[:count] + ranks.sum(through, "derivatives through means")

    def _through(self, vector: Gradients) -> Callable[[list[Part]], Tensor]:
        return lambda parts: torch.stack([self._along(part, vector) for part in parts]).sum(0)

    def _kept_along(self, d: int, vector: Gradients) -> Tensor:
        ops, gradients = self._graphs[d]
        along = ops.along_weights(gradients, vector, None if self._means is None else self._means[d])
        self._graphs[d] = (ops, ())  # and its graph
        return along


class _UnitedPlain(_United, Plain):
    """The same by plain double backward."""


def _is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, Exception) and is_out_of_memory(error)


def _means_of_all(problem: Problem, batch: Batch, shares: Sequence[float], microbatches: Microbatches) -> list[Means]:
    """For each sub-batch, the mean slopes over all ranks, as leaves that are on the scale of this rank's own slopes.

    A rank has the mean loss of its share s of the samples, whose slopes are 1 / s of what they are in the loss of all.
    """

    def own(parts: list[Part]) -> Means:
        with plain_attention():
            return Means.over(problem.slopes_of(batch, part) for part in parts)

    means = [microbatches.run(batch, d, own, Means()) for d in range(len(batch.windows))]
    places = [(found, share, name) for found, share in zip(means, shares, strict=True) for name in found.leaves]
    sums = [_flat(share * found.counts[name] * found.leaves[name]) for found, share, name in places]
    counts = torch.tensor([found.counts[name] for found, _, name in places], dtype=torch.float64, device="cpu")
    total = problem.ranks.sum(torch.cat([counts, *sums]), "mean slopes")
    pieces = torch.split(total[len(counts) :], [len(part) for part in sums])
    for (found, share, name), count, piece in zip(places, total[: len(counts)].tolist(), pieces, strict=True):
        leaf = found.leaves[name]
        found.counts[name] = int(count)
        found.leaves[name] = (piece / (share * max(count, 1))).to(leaf).view_as(leaf).detach().requires_grad_()
    return means


def _packed(means: Sequence[Means], shares: Sequence[float]) -> Tensor:
    """The derivatives with respect to the mean slopes over all ranks, as far as this rank knows them."""
    return torch.cat([
        _flat(found.derivatives.get(name, torch.zeros_like(leaf)) / share)
        for found, share in zip(means, shares, strict=True)
        for name, leaf in found.leaves.items()
    ])  # fmt: skip


def _unpack(means: Sequence[Means], shares: Sequence[float], total: Tensor) -> None:
    """Have the means know these derivatives, as they are with respect to the slopes of this rank."""
    start = 0
    for found, share in zip(means, shares, strict=True):
        for name, leaf in found.leaves.items():
            piece = total[start : start + leaf.numel()]
            found.derivatives[name] = (share * piece).to(leaf).view_as(leaf)
            start += leaf.numel()


def _flat(tensor: Tensor) -> Tensor:
    return tensor.detach().double().cpu().flatten()
