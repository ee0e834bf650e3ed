"""An engine that goes over to another one when the model turns out to be beyond it, and says so."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from torch import Tensor

from initopt.engines.base import Engine, Evaluation
from initopt.engines.coupled import CoupledEngine
from initopt.engines.differences import DifferencesEngine
from initopt.engines.groups import GroupsEngine
from initopt.engines.memory import estimate, free_memory
from initopt.engines.microbatches import is_out_of_memory
from initopt.engines.separate import GraphEngine, RecomputeEngine
from initopt.errors import NonFiniteError, ZeroGradientError
from initopt.problem import Batch, Problem
from initopt.where import warn

__all__ = ["FallingBackEngine", "missing_derivative"]

_MISSING = (
    re.compile(r"derivative for '?(?P<operator>[\w:.]+)'? is not implemented"),
    re.compile(r"(?P<operator>torch\.compile) with aot_autograd does not currently support double backward"),
    re.compile(r"[Dd]ouble backwards? (?:on|for|of|through) (?P<operator>[\w:]+) (?:is )?not (?:supported|implemented)"),
    re.compile(r"[Dd]ouble backwards? is not supported for (?P<operator>[\w ]+?)(?: due|\.|$)"),
    re.compile(r"differentiate twice a function that was marked with (?P<operator>@once_differentiable)"),
    re.compile(r"(?P<operator>[\w:]+) does not support (?:double|higher.order) back"),
)


_COMPILED = re.compile(r"backward function was compiled with non-empty donated buffers")
"""What torch says of a compiled part of a model, whose backward pass can be taken only once."""


def missing_derivative(error: BaseException) -> str | None:
    """The operator that has no second derivative, if that is what an error says.

    >>> missing_derivative(NotImplementedError("the derivative for '_embedding_bag_backward' is not implemented."))
    '_embedding_bag_backward'
    """
    if _COMPILED.search(str(error)):
        return "torch.compile"
    for pattern in _MISSING:
        match = pattern.search(str(error))
        if match:
            return match["operator"]
    return None


_MANY = 8
"""Sub-batches from which on it is cheaper to run them together even with batch norm, which then costs copies: apart, each
costs its overhead (docs/benchmarks.md)."""


class FallingBackEngine(Engine):
    """Starts with the cheapest exact engine that fits into memory, and goes over, for good, to one that can do with less.

    - From ``groups``, for models without batch norm or 8 sub-batches or more, to ``graph`` on a model beyond it; both are
      exact.
    - From either to ``recompute`` if their graphs are not going to fit into the memory budget, and to parts of sub-batches
      if one graph is not; by an estimate on the first batch (:mod:`initopt.engines.memory`).
    - The same when memory runs out all the same, with a warning, and when each pass writes into what the last one saved.
    - From an exact engine to ``differences`` when an operation has no second derivative, or one that is not to be trusted,
      with a warning.

    Args:
        problem: what to work on.
        allow_differences: whether inexact derivatives will do.
    """

    def __init__(self, problem: Problem, allow_differences: bool) -> None:
        super().__init__(problem)
        self._allow_differences = allow_differences
        self._budgeted = False
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
            together = not problem.normalizes or problem.num_subbatches >= _MANY
            self._engine = GroupsEngine(problem) if together else GraphEngine(problem)
            self.reason = f"exact, and the cheapest for {problem.num_subbatches} sub-batches"
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
            return _FallingBack(self, self._engine.evaluate(batch, differentiate), batch)
        except Exception as error:
            self._fall_back(error)
        # Not within the `except`: the error holds on to what the engine had in memory.
        return self.evaluate(batch, differentiate)

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
        engines = (CoupledEngine, GroupsEngine, GraphEngine, RecomputeEngine, DifferencesEngine)
        self._budgeted = True
        self._engine = next(engine for engine in engines if engine.name == state["engine"])(self.problem)
        self._engine.load_state(state["inner"])
        self.reason = state["reason"]

    def _keep_to_budget(self, batch: Batch) -> None:
        """Go over to an engine that takes less memory if this one is going to take too much."""
        self._budgeted = True
        given = self.problem.memory_budget
        budget = free_memory(self.problem.device) if given is None else given
        if budget is None or not isinstance(self._engine, (GraphEngine, GroupsEngine)):
            return
        need = estimate(self.problem, batch)
        if need.keeping_graphs <= budget:
            return
        self.reason = f"the graphs of all sub-batches, some {_size(need.keeping_graphs)}, exceed {_size(budget)}"
        problem = self.problem
        if need.recomputing > budget and not problem.normalizes:
            problem = replace(problem, microbatch=need.microbatch(budget))
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
            # will fail again.
            self._engine = GraphEngine(self.problem)
            self.reason = f"engine 'groups' cannot be used here: {str(error).partition(chr(10))[0]}"
            return
        if isinstance(self._engine, GraphEngine) and "modified by an inplace operation" in str(error):
            # What one pass saved, the next one has written over: with one graph at a time, as in training, none can. Should
            # the model write over what its own pass has saved, it will fail again.
            self._engine = RecomputeEngine(self.problem)
            self.reason = "the model or the loss writes in each pass into what the one before has saved"
            return
        operator = missing_derivative(error)
        if operator is None and second and isinstance(error, RuntimeError) and not is_out_of_memory(error):
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
        elif is_out_of_memory(error) and isinstance(self._engine, (GraphEngine, GroupsEngine)):
            self._engine = RecomputeEngine(self.problem)
            self.reason = "the graphs of all sub-batches did not fit into memory"
            message = f"{self.reason}, so they are recomputed from here on"
        else:
            if "incompatible with .grad()" in str(error):
                error.add_note("(reentrant activation checkpointing; use torch.utils.checkpoint(..., use_reentrant=False))")
            raise error
        warn(f"initopt: {message} (engine {self.name!r})")


def _size(number: float) -> str:
    """Bytes in words.

    >>> _size(3.21e8)
    '321 MB'
    """
    return f"{number / 1e9:.1f} GB" if number >= 1e9 else f"{number / 1e6:.0f} MB"


class _FallingBack(Evaluation):
    def __init__(self, engine: FallingBackEngine, inner: Evaluation, batch: Batch) -> None:
        self._engine = engine
        self._inner = inner
        self._batch = batch
        self.gram = inner.gram

    def scale_derivatives(self, gram_derivative: Tensor) -> Tensor:
        try:
            return self._inner.scale_derivatives(gram_derivative)
        except Exception as error:
            del self._inner  # and its graphs
            self._engine._fall_back(error, second=True)
        return self._engine.evaluate(self._batch, differentiate=True).scale_derivatives(gram_derivative)

    def derivatives_along(self, weights: Tensor) -> Tensor:
        return self._inner.derivatives_along(weights)
