"""An engine that goes over to another one when the model turns out to be beyond it, and says so."""

from __future__ import annotations

import re
import warnings

import torch
from torch import Tensor

from initopt.engines.base import Engine, Evaluation
from initopt.engines.differences import DifferencesEngine
from initopt.engines.separate import GraphEngine, RecomputeEngine
from initopt.problem import Batch, Problem

__all__ = ["FallingBackEngine", "missing_derivative"]

_MISSING = (
    re.compile(r"derivative for '?(?P<operator>[\w:.]+)'? is not implemented"),
    re.compile(r"(?P<operator>torch\.compile) with aot_autograd does not currently support double backward"),
    re.compile(r"[Dd]ouble backwards? is not supported for (?P<operator>[\w ]+?)(?: due|\.|$)"),
    re.compile(r"differentiate twice a function that was marked with (?P<operator>@once_differentiable)"),
    re.compile(r"(?P<operator>[\w:]+) does not support (?:double|higher.order) back"),
)


def missing_derivative(error: BaseException) -> str | None:
    """The operator that has no second derivative, if that is what an error says.

    >>> missing_derivative(NotImplementedError("the derivative for '_embedding_bag_backward' is not implemented."))
    '_embedding_bag_backward'
    """
    for pattern in _MISSING:
        match = pattern.search(str(error))
        if match:
            return match["operator"]
    return None


class FallingBackEngine(Engine):
    """Starts with an exact engine and goes over, for good and with a warning, to one that can do with less.

    - From ``graph`` to ``recompute`` when the accelerator's memory runs out.
    - From an exact engine to ``differences`` when an operation has no second derivative.

    Args:
        problem: what to work on.
        exact: the engine to start with.
        allow_differences: whether inexact derivatives will do.
    """

    def __init__(self, problem: Problem, exact: type[Engine], allow_differences: bool) -> None:
        super().__init__(problem)
        self._engine: Engine = exact(problem)
        self._allow_differences = allow_differences
        self.reason = f"exact, and the cheapest for batch_norm={problem.batch_norm!r}"

    @property
    def name(self) -> str:  # type: ignore[override]
        return self._engine.name

    @classmethod
    def refusal(cls, problem: Problem) -> str | None:
        return None

    def evaluate(self, batch: Batch, differentiate: bool) -> Evaluation:
        try:
            inner = self._engine.evaluate(batch, differentiate)
        except (RuntimeError, NotImplementedError) as error:
            self._fall_back(error)
            return self.evaluate(batch, differentiate)
        return _FallingBack(self, inner, batch)

    def _fall_back(self, error: Exception) -> None:
        """Go over to the next engine, or raise the error again."""
        operator = missing_derivative(error)
        if operator is not None and not isinstance(self._engine, DifferencesEngine):
            if not self._allow_differences:
                error.add_note(f'({operator} has no second derivative; engine="auto" or "differences" does without)')
                raise error
            self._engine = DifferencesEngine(self.problem)
            self.reason = f"{operator} has no second derivative"
            message = f"{operator} has no second derivative, so derivatives are taken by finite differences from here on"
        elif isinstance(error, torch.OutOfMemoryError) and isinstance(self._engine, GraphEngine):
            self._engine = RecomputeEngine(self.problem)
            self.reason = "the graphs of all sub-batches did not fit into memory"
            message = f"{self.reason}, so they are recomputed from here on"
        else:
            raise error
        warnings.warn(f"initopt: {message} (engine {self.name!r})", stacklevel=2)


class _FallingBack(Evaluation):
    def __init__(self, engine: FallingBackEngine, inner: Evaluation, batch: Batch) -> None:
        self._engine = engine
        self._inner = inner
        self._batch = batch
        self.gram = inner.gram

    def scale_derivatives(self, gram_derivative: Tensor) -> Tensor:
        try:
            return self._inner.scale_derivatives(gram_derivative)
        except (RuntimeError, NotImplementedError) as error:
            del self._inner  # and its graphs
            self._engine._fall_back(error)
        return self._engine.evaluate(self._batch, differentiate=True).scale_derivatives(gram_derivative)
