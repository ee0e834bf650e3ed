"""Neural Initialization Optimization (arXiv 2210.05956)."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from initopt import functional, objectives
from initopt.checks import check_number
from initopt.engines import Engine
from initopt.engines.invariance import scale_invariant
from initopt.errors import NonFiniteError
from initopt.methods.base import Method, MethodRun
from initopt.methods.scales_run import ScalesRun
from initopt.parameters import ParameterFilter
from initopt.preserve import Originals
from initopt.problem import Batch, BatchNorm, Problem, Split
from initopt.records import StepRecord
from initopt.rescale import Kind, check_rescaling
from initopt.where import warn

__all__ = ["NIO"]


@dataclass(frozen=True)
class NIO(Method):
    """Learn one scale per parameter tensor by maximizing GradCosine under a bound on the gradient norm.

    In each step, if the mean gradient norm of the sub-batches exceeds ``max_grad_norm``, the scales move so as to lower
    it; otherwise so as to lower the objective (algorithm 1 of arXiv 2210.05956). The options are those of
    :func:`initopt.nio`; their defaults come from a study (``docs/defaults.md``).

    >>> NIO(steps=50, objective="cosine").steps
    50
    """

    name: ClassVar[str] = "nio"

    steps: int = 100
    num_subbatches: int = 4
    overlap: float = 0.2
    split: Split = "cyclic"
    batch_norm: BatchNorm = "subbatch"
    objective: str | objectives.Objective = "cosine+lognorm"
    norm_weight: float = 0.3
    max_grad_norm: float = 5.0
    lr: float = 0.03
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    scale_grad_clip: float = 1.0
    min_scale: float = 0.01
    min_bias_scale: float = 0.0
    scale_params: ParameterFilter | None = None
    scale_biases: bool = False
    scale_invariant: bool = False
    grad_params: ParameterFilter | None = None
    scheme: str | None = None
    engine: str = "auto"
    train_mode: bool = False
    microbatch: int | None = None
    memory_budget: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        objectives.get(self.objective)
        check_number("norm_weight", self.norm_weight, minimum=0, finite=True)
        check_number("max_grad_norm", self.max_grad_norm, above=0)
        check_rescaling(self.lr, self.betas, self.eps, self.scale_grad_clip, self.min_scale, self.min_bias_scale)

    def start(self, problem: Problem, engine: Engine, originals: Originals) -> MethodRun:
        return _NIORun(self, problem, engine, originals)


class _NIORun(ScalesRun):
    def __init__(self, method: NIO, problem: Problem, engine: Engine, originals: Originals) -> None:
        super().__init__(method, problem, originals)
        self._engine = engine
        self._max_grad_norm = method.max_grad_norm
        self._scale_biases, self._scale_invariant = method.scale_biases, method.scale_invariant
        self._objective = objectives.get(method.objective, method.norm_weight)

    def step(self, number: int, batches: Iterator[Any]) -> list[StepRecord]:
        data = next(batches)
        start = time.perf_counter()
        batch = self._problem.prepare(data, number)
        evaluation = self._engine.evaluate(batch, differentiate=True)
        gram = evaluation.gram.requires_grad_()
        norm = functional.grad_norm(gram)
        constrained = bool(norm > self._max_grad_norm)
        kind: Kind = "constraint" if constrained else "objective"
        minimized = {"objective": self._objective_of(gram), "constraint": norm}
        if not torch.isfinite(minimized[kind]):
            raise NonFiniteError(f"the {kind} to be minimized is {minimized[kind].item()}")
        (gram_derivative,) = torch.autograd.grad(minimized[kind], gram)
        derivatives = evaluation.scale_derivatives(gram_derivative)
        if number == 0:
            self._hold(batch)  # after the engine has found out what fits into memory
        self.descend(derivatives, kind)
        gram = gram.detach()
        record = StepRecord(
            step=number,
            grad_cosine=float(functional.grad_cosine(gram)),
            grad_norm=float(norm.detach()),
            grad_variance=float(functional.grad_variance(gram)),
            objective=float(minimized["objective"].detach()),
            constrained=constrained,
            seconds=time.perf_counter() - start,
        )
        return [record]

    def _hold(self, batch: Batch) -> None:
        """Decide which tensors keep their scale."""
        parameters = self._problem.scale_params
        biases = [parameter.is_bias and not self._scale_biases for parameter in parameters]
        invariant = (
            [False] * len(parameters)
            if self._scale_invariant
            else scale_invariant(self._problem, batch, self._engine.microbatch)
        )
        self._scales.held = torch.tensor(biases, device="cpu") | torch.tensor(invariant, device="cpu")
        if not self._scales.active.any():
            warn(
                f"initopt: nothing to scale: of {len(parameters)} tensors, {sum(biases)} are biases (scale_biases=True "
                f"scales them) and {sum(invariant)} do not change the loss by their scale (scale_invariant=True); the "
                "others are zero"
            )

    def _objective_of(self, gram: Tensor) -> Tensor:
        value: Any = self._objective(gram)
        if not isinstance(value, Tensor):
            found = f"{type(value).__name__}"
        elif value.ndim > 0:
            found = f"a tensor of shape {tuple(value.shape)}"
        elif not value.requires_grad:
            found = "a tensor without a graph"
        else:
            return value
        raise TypeError(
            "the objective must return a scalar tensor, computed from the Gram matrix by differentiable operations; it "
            f"returned {found}"
        )
