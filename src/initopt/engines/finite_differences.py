"""Derivatives from gradients alone, by finite differences: for models that have no double backward."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from typing import Any, TypeVar

import torch
from torch import Tensor

from initopt._support._torch_private import hooks_of, is_compiled
from initopt.engines.autograd.scale_derivatives import to_cpu
from initopt.engines.autograd.scaled import ScaledOps
from initopt.engines.base import Engine, Evaluation, Gradients, added, check_gram, gram_matrix
from initopt.engines.gradients import moved, wide_product
from initopt.engines.microbatches import Microbatches
from initopt.model.centring import Means, Output, bent, slopes
from initopt.model.problem import ONE_SAMPLE, Batch, Part, Problem, as_real
from initopt.model.randomness import seeded

__all__ = ["LADDER", "DifferencesEngine", "Differencing", "best_step"]

_T = TypeVar("_T")

LADDER = 4.0
"""Ratio of neighbouring step sizes in the search for the best one."""

RECALIBRATE = 50
"""Batches after which the step size is searched for again: the weights have moved."""


class Differencing(Engine):
    """An engine that takes differences of gradients, at a step that it searches for.

    Attributes:
        relative_step: length of the step over the length of the weights; ``None`` before the first batch.
        error_estimate: estimated relative error of a derivative; ``None`` before the first batch.
    """

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        self.relative_step: float | None = None
        self.error_estimate: float | None = None
        self._batches = 0

    @classmethod
    def refusal(cls, problem: Problem) -> str | None:
        hooked = [p.name for p in problem.grad_params if hooks_of(p.value)]
        if hooked:
            return f"parameter {hooked[0]!r} has a gradient hook, whose derivative a difference of gradients does not give"
        return Microbatches.refusal(problem)

    def distrust(self, why: str) -> None:
        """It takes no second derivative."""

    def state(self) -> dict[str, Any]:
        return {"relative_step": self.relative_step, "error_estimate": self.error_estimate, "batches": self._batches}

    def load_state(self, state: dict[str, Any]) -> None:
        self.relative_step, self.error_estimate = state["relative_step"], state["error_estimate"]
        self._batches = state["batches"]

    def searched_step(self, search: Callable[[], tuple[float, float]]) -> float:
        """The relative step of a batch; the search gives one and its error, and is made if it is time to."""
        if self.relative_step is None or self._batches % RECALIBRATE == 0:
            self.relative_step, self.error_estimate = search()
        self._batches += 1
        return self.relative_step


class DifferencesEngine(Differencing):
    r"""One-sided differences of gradients along the vectors of :math:`d\varphi = \sum_d \langle v_d, dg_d \rangle`.

    With the loss :math:`\ell_d` of a sub-batch and :math:`s_k(W) = \langle \nabla_k \ell_d(W), W_k \rangle`, its
    derivative with respect to the scale of a tensor,

    .. math:: \langle (H_d v_d)_k, W_k \rangle \approx \frac{s_k(W + h v_d) - s_k(W)}{h} - \langle g_{d,k}, v_{d,k} \rangle.

    The first s_k comes without the weight gradients of linear layers (:mod:`initopt.engines.autograd.scaled`), so that a
    difference costs two thirds of a gradient. No operation needs a second derivative: compiled models, fused attention and
    custom kernels will do.

    The step h balances two errors. Truncation grows as h times the curvature of the gradient along v, and rounding as the
    noise of the gradient over h. Neither is known beforehand, so on the first batch (and every 50 thereafter) the
    difference is taken at a ladder of steps, relative to the length of the weights, around the square root of the
    precision. Halfway down, differences at neighbouring steps agree best; that step is used, and their disagreement, as a
    share of the largest derivative, is :attr:`error_estimate`. It is a worst case of the two neighbours, not of the step.

    Where the network has kinks (ReLU), a step crosses some. Differences then include their contribution to the curvature,
    which double backward leaves out: the two disagree by some 10% on a ResNet at batch 64, at any step but the tiniest. And
    a scale on which nothing depends (a bias before a batch norm) has a derivative of pure error, which Adam makes steps of.
    """

    name = "differences"

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        self.microbatches = Microbatches(problem)
        self._replaces = not any(map(is_compiled, problem.model.modules()))

    @property
    def microbatch(self) -> int | None:
        return self.microbatches.size

    def state(self) -> dict[str, Any]:
        return super().state() | self.microbatches.state()

    def load_state(self, state: dict[str, Any]) -> None:
        super().load_state(state)
        self.microbatches.load_state(state)

    def evaluate(self, batch: Batch, differentiate: bool) -> Evaluation:
        return _Differences(self, batch)

    def step_for(self, evaluation: _Differences, vectors: Sequence[Gradients]) -> float:
        """The relative step, searched for if it is time to."""
        return self.searched_step(lambda: _search(evaluation, vectors))

    def ops(self) -> ScaledOps | None:
        """Operations without weight gradients; ``None`` for a compiled model, whose code is not to be traced anew."""
        return ScaledOps(self.problem.scale_params) if self._replaces else None


class _Differences(Evaluation):
    def __init__(self, engine: DifferencesEngine, batch: Batch) -> None:
        self.problem = engine.problem
        self._engine = engine
        self._batch = batch
        self._coupled = self.problem.batch_norm == "batch"
        self._parameters = [p.value for p in self.problem.grad_params]
        if self.problem.centres(batch) and batch.windows.single:
            raise ValueError(f"{ONE_SAMPLE} (finite differences take no mean over other sub-batches)")
        losses, self._gradients = self._all()
        self.gram = gram_matrix(self._gradients)
        check_gram(self.gram, losses, self._gradients, self.problem.grad_params)

    def _all(self) -> tuple[list[Tensor], list[Gradients]]:
        """Losses and gradients of all sub-batches."""
        count = len(self._batch.windows)
        if not self._coupled:
            pairs = [self._one(d, self._parameters) for d in range(count)]
            return [loss for loss, _ in pairs], [gradients for _, gradients in pairs]
        with seeded(*self._batch.seed), self.problem.first_derivatives():
            losses = self.problem.window_losses(self._batch)
            gradients: list[Gradients] = [
                torch.autograd.grad(loss, self._parameters, retain_graph=d + 1 < count, allow_unused=True)
                for d, loss in enumerate(losses)
            ]
        return [loss.detach() for loss in losses], gradients

    def _one(self, d: int, parameters: Sequence[Tensor]) -> tuple[Tensor, Gradients]:
        def of_part(part: Part) -> tuple[Tensor, Gradients]:
            with seeded(*part.seed), self.problem.first_derivatives():
                loss = self._loss(d, part)
                return loss.detach(), torch.autograd.grad(loss, parameters, allow_unused=True)

        return self._of_parts(d, lambda parts: added(map(of_part, parts)))

    def _of_parts(self, d: int, function: Callable[[list[Part]], _T]) -> _T:
        if self._coupled:
            return function([Part(self._batch.windows.indices[d], 1, self._batch.seed)])
        return self._engine.microbatches.run(self._batch, d, function)

    def _loss(self, d: int, part: Part) -> Tensor:
        coupled = self._coupled
        return self.problem.window_losses(self._batch)[d] if coupled else self.problem.part_loss(self._batch, part)

    def difference(self, d: int, vector: Gradients, step: float) -> Tensor:
        """<H_d v, W_k> for every scaled tensor by a difference of length ``step``, float64 on the CPU."""
        scaled = self.problem.scale_params
        far, slopes_there = self._far(d, vector, step)
        near = self._near(d)
        directions = dict(zip(self._parameters, vector, strict=True))
        products = []
        for p, there, slope, here in zip(scaled, far, slopes_there, near, strict=True):
            if slope is None:
                products.append((wide_product(there, p.value) - wide_product(here, p.value)) / step)
            else:
                products.append((slope - wide_product(here, p.value)) / step - wide_product(here, directions.get(p.value)))
        return to_cpu(products)

    def _far(self, d: int, vector: Gradients, step: float) -> tuple[Gradients, list[Tensor | None]]:
        """Where the weights move to: gradients, and in their place s_k of tensors that are used in replaced operations."""
        scaled = self.problem.scale_params

        def of_part(part: Part, incoming: Sequence[Tensor] | None) -> tuple[Tensor, Gradients]:
            ops = self._engine.ops()
            with seeded(*part.seed), self.problem.first_derivatives():
                with nullcontext() if ops is None else ops.replacing():
                    loss = self._loss(d, part) if incoming is None else self._loss_with(d, part, incoming)
                if ops is None:
                    found = torch.autograd.grad(loss, [p.value for p in scaled], allow_unused=True)
                    return loss.detach(), [*found, *[None] * len(scaled)]
                gradients, of_scale = ops.derivatives(loss)
            return loss.detach(), [*gradients, *(of_scale.get(p.value) for p in scaled)]

        def of_parts(parts: list[Part]) -> tuple[Gradients, list[Tensor | None]]:
            incoming: Sequence[Sequence[Tensor] | None] = [None] * len(parts)
            if self.problem.centres(self._batch):
                incoming = self._incoming(d, parts, vector, step)
            with moved(self._parameters, vector, step):
                _, both = added(map(of_part, parts, incoming))
                gradients, along = both[: len(scaled)], both[len(scaled) :]
                each = zip(along, gradients, scaled, strict=True)
                return gradients, [None if slope is None else slope + wide_product(g, p.value) for slope, g, p in each]

        return self._of_parts(d, of_parts)

    def _seen(self, d: int, part: Part) -> tuple[Tensor, list[Output]]:
        """The loss of a part, and the outputs that are centred."""
        if not self._coupled:
            return self.problem.seen(self._batch, part)
        losses, outputs = self.problem.seen_windows(self._batch)
        return losses[d], outputs

    def _loss_with(self, d: int, part: Part, incoming: Sequence[Tensor]) -> Tensor:
        """The loss of a part, with other slopes at the outputs."""
        loss, outputs = self._seen(d, part)
        for output, slope in zip(outputs, incoming, strict=True):
            self.problem.centring.change_slope(output, lambda _, slope=slope: slope)  # type: ignore[misc]
        return loss

    def _incoming(self, d: int, parts: Sequence[Part], vector: Gradients, step: float) -> list[list[Tensor]]:
        """What comes in at the outputs of each part when the weights have moved (:func:`initopt.model.centring.bent`)."""

        def head(part: Part) -> tuple[list[Output], list[Tensor]]:
            with seeded(*part.seed):
                loss, outputs = self._seen(d, part)
                return outputs, slopes(loss, outputs, create_graph=True)

        def outputs_of(part: Part) -> list[Tensor]:
            with seeded(*part.seed):
                return [output.value.detach() for output in self._seen(d, part)[1]]

        with moved(self._parameters, vector, step):
            far = [outputs_of(part) for part in parts]
        # After the move, which writes to the parameters. Of several parts, only one has its graph at a time.
        whole = head(parts[0]) if len(parts) == 1 else None

        def moves() -> Iterator[tuple[list[Output], list[Tensor], list[Tensor]]]:
            for part, there in zip(parts, far, strict=True):
                outputs, found = head(part) if whole is None else whole
                yield outputs, found, [far - output.value.detach() for far, output in zip(there, outputs, strict=True)]

        means = Means.over(moves())
        return [
            bent(*(head(part) if whole is None else whole), there, part.means, means)
            for part, there in zip(parts, far, strict=True)
        ]

    def _near(self, d: int) -> Gradients:
        """Gradients where the weights were, for every scaled tensor."""
        known: dict[Tensor, Tensor | None] = dict(zip(self._parameters, self._gradients[d], strict=True))
        missing = [p.value for p in self.problem.scale_params if p.value not in known]
        if missing:
            known |= dict(zip(missing, self._one(d, missing)[1], strict=True))
        return [known[p.value] for p in self.problem.scale_params]

    def vector_derivatives(self, vectors: Sequence[Gradients]) -> Tensor:
        relative = self._engine.step_for(self, vectors)
        total = torch.zeros(len(self.problem.scale_params), dtype=torch.float64, device="cpu")
        for d, vector in enumerate(vectors):
            step = self.absolute_step(vector, relative)
            if step > 0:
                total += self.difference(d, vector, step)
        return total

    def absolute_step(self, vector: Gradients, relative: float) -> float:
        """The factor of a vector that makes a step of this length, relative to that of the weights; 0 for a zero vector."""
        length = _length([g for g in vector if g is not None])
        return relative * max(_length(self._parameters), 1e-3) / length if length > 0 else 0.0


def _length(tensors: Sequence[Tensor]) -> float:
    norms = [torch.linalg.vector_norm(as_real(t.detach()), dtype=torch.float64) for t in tensors]
    return float(torch.linalg.vector_norm(to_cpu(norms))) if norms else 0.0


def _search(evaluation: _Differences, vectors: Sequence[Gradients]) -> tuple[float, float]:
    """The relative step at which differences at neighbouring steps agree best, and their relative disagreement."""
    precision = max(torch.finfo(p.value.dtype).eps for p in evaluation.problem.grad_params)
    ladder = [math.sqrt(precision) * LADDER**k for k in range(-2, 4)]
    d = max(range(len(vectors)), key=lambda d: _length([g for g in vectors[d] if g is not None]))
    if evaluation.absolute_step(vectors[d], ladder[0]) == 0:
        return math.sqrt(precision), 0.0
    return best_step(
        ladder,
        lambda relative: evaluation.difference(d, vectors[d], evaluation.absolute_step(vectors[d], relative)),
    )


def best_step(ladder: Sequence[float], difference: Callable[[float], Tensor]) -> tuple[float, float]:
    """The step of a ladder at which differences at neighbouring steps agree best, and their relative disagreement."""
    found = [difference(step) for step in ladder]
    errors = []
    for smaller, larger in itertools.pairwise(found):
        size = float(torch.maximum(smaller.abs().max(), larger.abs().max()))
        errors.append(float((larger - smaller).abs().max()) / size if size > 0 else 0.0)
    best = min(range(len(errors)), key=errors.__getitem__)
    return ladder[best], errors[best]
