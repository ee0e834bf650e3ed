"""The engine of a name, or the best one for a problem."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from initopt._support._torch_messages import (
    free_cached_memory,
    is_from_reentrant_checkpoint,
    is_out_of_memory,
    is_written_over,
    missing_derivative,
)
from initopt._support.checks import check_choice
from initopt._support.devices import free_memory
from initopt._support.errors import NonFiniteError, ZeroGradientError, warn
from initopt.engines.base import Engine, Evaluation, Gradients
from initopt.engines.finite_differences import DifferencesEngine
from initopt.engines.memory import Need, bytes_in_words, estimate
from initopt.engines.per_subbatch import GraphEngine, PlainEngine, RecomputeEngine
from initopt.engines.shards import ShardsEngine
from initopt.engines.stacked.engine import GroupsEngine
from initopt.engines.united import UnitedEngine
from initopt.engines.whole_batch import CoupledEngine
from initopt.model.problem import Batch, Problem

__all__ = [
    "ENGINES",
    "FallingBackEngine",
    "Need",
    "check_engine",
    "create_engine",
    "estimate",
]

_ALL: tuple[type[Engine], ...] = (
    GraphEngine,
    RecomputeEngine,
    GroupsEngine,
    CoupledEngine,
    PlainEngine,
    DifferencesEngine,
)

ENGINES: dict[str, type[Engine]] = {engine.name: engine for engine in _ALL}
"""Every engine by name."""

_CHOICES = ("auto", "exact", *ENGINES)


def check_engine(engine: str) -> None:
    """Refuse an unknown name.

    Raises:
        ValueError: the message lists the known names.
    """
    check_choice("engine", engine, _CHOICES)


def create_engine(engine: str, problem: Problem, memory_budget: float | None = None) -> Engine:
    """Make an engine.

    Args:
        engine: a key of :data:`ENGINES`; ``"exact"`` for the cheapest exact one that can work on the problem; ``"auto"``
            for the same, which goes over to ``"differences"`` with a warning if an operation has no second derivative.
        problem: what it is to work on.
        memory_budget: bytes that an engine which is chosen by itself may take beside the model and the batch; by default,
            what is free.

    Raises:
        ValueError: if the name is unknown or the named engine cannot work on the problem; the message says why.
    """
    check_engine(engine)
    if problem.shards is not None:
        return ShardsEngine.made_for(problem)
    if problem.ranks.union:
        return UnitedEngine.named(problem, engine, memory_budget)
    if engine in ENGINES:
        reason = ENGINES[engine].refusal(problem)
        if reason is not None:
            raise ValueError(f'engine {engine!r} cannot be used here: {reason}; engine="auto" chooses one that can')
        return ENGINES[engine](problem)
    return FallingBackEngine(problem, engine == "auto", memory_budget)


_MANY = 8
"""Sub-batches from which on it is cheaper to run them together even with batch norm, which then costs copies: apart, each
costs its overhead (docs/benchmarks.md)."""


class FallingBackEngine(Engine):
    """Starts with the cheapest exact engine that fits into memory, and goes over, for good, to one that can do with less.

    - From ``groups``, for models without batch norm or 8 sub-batches or more, to ``graph`` on a model beyond it; both are
      exact, and with 8 sub-batches or more, where ``graph`` takes longer, there is a warning.
    - From either to ``recompute`` if their graphs are not going to fit into the memory budget, and to parts of sub-batches
      if one graph is not; by an estimate on the first batch (:mod:`initopt.engines.memory`).
    - The same when memory runs out nevertheless, with a warning, and when each pass writes into what the last one saved.
    - From an exact engine to ``differences`` when an operation has no second derivative, or one that is not to be trusted,
      with a warning.

    Args:
        problem: what to work on.
        allow_differences: whether inexact derivatives will do.
        memory_budget: bytes that it may take; by default, what is free.
    """

    def __init__(self, problem: Problem, allow_differences: bool, memory_budget: float | None = None) -> None:
        super().__init__(problem)
        self._allow_differences = allow_differences
        self._memory_budget = memory_budget
        self._budgeted = False
        self._to_warn_of: str | None = None
        self._cached = False
        if problem.microbatch is not None:
            refusal = RecomputeEngine.refusal(problem)
            if refusal is not None:
                raise ValueError(f"microbatch={problem.microbatch} cannot be used here: {refusal}")
            self._engine: Engine = RecomputeEngine(problem)
            self.reason = f"exact, and runs {problem.microbatch} samples at a time"
        elif problem.batch_norm == "batch":
            self._engine = CoupledEngine(problem)
            self.reason = 'exact with batch_norm="batch"'
        else:
            count = problem.subbatches.count
            together = not problem.normalizes or count >= _MANY
            self._engine = GroupsEngine(problem) if together else GraphEngine(problem)
            self.reason = f"exact, and the cheapest for {count} sub-batches"
            self.reason += " with batch norm" if problem.normalizes else " without batch norm"

    @property
    def name(self) -> str:  # type: ignore[override]
        return self._engine.name

    @classmethod
    def refusal(cls, problem: Problem) -> str | None:
        return None

    def evaluate(self, batch: Batch, differentiate: bool) -> Evaluation:
        try:
            if differentiate and not self._budgeted:
                self._keep_to_budget(batch)
            evaluation = _FallingBack(self, self._engine.evaluate(batch, differentiate), batch)
        except Exception as error:
            self._fall_back(error)
        else:
            message, self._to_warn_of = self._to_warn_of, None
            if message is not None:
                warn(message)
            return evaluation
        # Not within the `except`: the error holds on to what the engine had in memory.
        self.free_cached()
        return self.evaluate(batch, differentiate)

    def free_cached(self) -> None:
        """Give back what PyTorch keeps of the device's memory, if memory has just run out."""
        if self._cached:
            free_cached_memory(self.problem.device)
        self._cached = False

    @property
    def microbatch(self) -> int | None:
        return self._engine.microbatch

    def distrust(self, why: str) -> None:
        if not self._allow_differences or DifferencesEngine.refusal(self.problem) is not None:
            super().distrust(why)
            return
        self._engine, self.reason = DifferencesEngine(self.problem), why
        warn(f"initopt: {why}. Derivatives are taken by finite differences from here on (engine {self.name!r})")

    def state(self) -> dict[str, Any]:
        return {"engine": self._engine.name, "reason": self.reason, "inner": self._engine.state()}

    def load_state(self, state: dict[str, Any]) -> None:
        self._budgeted = True
        self._engine = ENGINES[state["engine"]](self.problem)
        self._engine.load_state(state["inner"])
        self.reason = state["reason"]

    def _keep_to_budget(self, batch: Batch) -> None:
        """Go over to an engine that takes less memory if this one is going to take too much."""
        self._budgeted = True
        budget = free_memory(self.problem.device) if self._memory_budget is None else self._memory_budget
        if budget is None or not self._engine.keeps_graphs:
            return
        need = estimate(self.problem, batch)
        if need.keeping_graphs <= budget:
            return
        self.reason = (
            f"the graphs of all sub-batches, some {bytes_in_words(need.keeping_graphs)}, exceed {bytes_in_words(budget)}"
        )
        problem = self.problem
        if need.recomputing > budget and not problem.normalizes:
            problem = replace(problem, subbatches=replace(problem.subbatches, microbatch=need.microbatch(budget)))
            self.reason += f", and one graph does, too, so {problem.microbatch} samples are run at a time"
        self._engine = RecomputeEngine(problem)

    def _fall_back(self, error: Exception, second: bool = False) -> None:
        """Go over to the next engine, or raise the error again.

        Args:
            error: what has happened.
            second: whether in a second derivative. An error there, first derivatives being in order, is about one that is
                missing, whatever its words.
        """
        numerical = isinstance(error, (NonFiniteError, ZeroGradientError))
        if isinstance(self._engine, GroupsEngine) and not numerical and not is_out_of_memory(error):
            # Whatever it was that the model cannot do with all sub-batches at once: if it is the model's own fault, it
            # will fail again, and the warning waits until it has not.
            self._engine = GraphEngine(self.problem)
            why = str(error).partition(chr(10))[0] or type(error).__name__
            self.reason = f"engine 'groups' cannot be used here: {why}"
            if self.problem.subbatches.count >= _MANY:
                self._to_warn_of = (
                    f"initopt: the {self.problem.subbatches.count} sub-batches are run one by one from here on (engine "
                    f"'graph'), which takes the longer the more there are, since they cannot be run at once: {why}. Use "
                    'fewer sub-batches, or engine="graph", which does not try'
                )
            return
        if isinstance(self._engine, GraphEngine) and is_written_over(error):
            # What one pass saved, the next one has written over: with one graph at a time, as in training, none can. Should
            # the model write over what its own pass has saved, it will fail again.
            self._engine = RecomputeEngine(self.problem)
            self.reason = "the model or the loss writes in each pass into what the one before has saved"
            return
        out_of_memory = is_out_of_memory(error)
        operator = missing_derivative(error)
        if operator is None and second and isinstance(error, RuntimeError) and not out_of_memory:
            operator = f"the model (it says: {str(error).partition(chr(10))[0]})"
        if operator is not None and not isinstance(self._engine, DifferencesEngine):
            if not self._allow_differences:
                error.add_note(f'({operator} has no second derivative; engine="auto" or "differences" does without)')
                raise error
            refusal = DifferencesEngine.refusal(self.problem)
            if refusal is not None:
                error.add_note(f"({operator} has no second derivative, and engine 'differences' cannot help: {refusal})")
                raise error
            self._engine = DifferencesEngine(self.problem)
            self.reason = f"{operator} has no second derivative"
            message = f"{operator} has no second derivative, so derivatives are taken by finite differences from here on"
        elif out_of_memory and self._engine.keeps_graphs:
            self._engine = RecomputeEngine(self.problem)
            self.reason = "the graphs of all sub-batches did not fit into memory"
            message = f"{self.reason}, so they are recomputed from here on"
        else:
            if is_from_reentrant_checkpoint(error):
                error.add_note("(reentrant activation checkpointing; use torch.utils.checkpoint(..., use_reentrant=False))")
            raise error
        warn(f"initopt: {message} (engine {self.name!r})")
        self._cached = out_of_memory


class _FallingBack(Evaluation):
    def __init__(self, engine: FallingBackEngine, inner: Evaluation, batch: Batch) -> None:
        self._engine = engine
        self._inner = inner
        self._batch = batch
        self.gram = inner.gram

    def scale_derivatives(self, gram_derivative: Tensor) -> Tensor:
        return self._derivatives(lambda evaluation: evaluation.scale_derivatives(gram_derivative))

    def vector_derivatives(self, vectors: Sequence[Gradients]) -> Tensor:
        return self._derivatives(lambda evaluation: evaluation.vector_derivatives(vectors))

    def _derivatives(self, of: Callable[[Evaluation], Tensor]) -> Tensor:
        try:
            return of(self._inner)
        except Exception as error:
            del self._inner  # and its graphs
            self._engine._fall_back(error, second=True)
        self._engine.free_cached()
        return of(self._engine.evaluate(self._batch, differentiate=True))
