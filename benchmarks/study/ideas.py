"""NIO by plain double backward, with changes that the library does not have: what the study measures beside its options."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, repeat
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from initopt import functional
from initopt.batches.subbatches import SubBatches, Windows
from initopt.engines.invariance import scale_invariant
from initopt.gram.objectives import get
from initopt.methods.scale_optimizer import Kind, ScaleAdam
from initopt.model.double_backward import plain_attention
from initopt.model.losses import as_loss
from initopt.model.parameters import Parameters
from initopt.model.problem import Problem

__all__ = ["Idea", "loss_of", "losses_of", "nio_with"]

Batch = tuple[Tensor, Tensor]

_BOUND, _CENTRED_BOUND, _NORM_WEIGHT = 5.0, 7.0, 0.3  # of the defaults


def loss_of(model: nn.Module, batch: Batch) -> Tensor:
    """Mean cross-entropy over samples, and positions of a text."""
    inputs, targets = batch
    return F.cross_entropy(model(inputs).flatten(0, -2), targets.flatten())


def losses_of(model: nn.Module, batch: Batch) -> Tensor:
    """Cross-entropy of each sample; of a text, the mean over its positions."""
    inputs, targets = batch
    each = F.cross_entropy(model(inputs).flatten(0, -2), targets.flatten(), reduction="none")
    return each.view(len(inputs), -1).mean(1)


@dataclass(frozen=True)
class Idea:
    """What is changed of NIO on whole gradients with the defaults that it had.

    Attributes:
        logarithms: Adam moves the logarithms of the scales.
        averaged: the scales in the end are the means over the second half of the steps.
        per_channel: a scale for every output channel (row) of a weight.
        preconditioned: GradCosine is that of gradients divided by their root mean square over the sub-batches, for each
            ``"entry"`` as in Adam's first step, or for each ``"tensor"``. The norm is that of the plain gradients.
        batches: for each step; their derivatives are averaged.
        excess: GradCosine is that of Gram matrices without what shared samples give: the noise that two windows have in
            common, by the estimate of its variance on the same batch, is taken off their inner product.
        centred: gradients are centred by the mean slope of the sub-batch, as the defaults have it now, or of the batch.
    """

    logarithms: bool = False
    averaged: bool = False
    per_channel: bool = False
    preconditioned: Literal["entry", "tensor"] | None = None
    batches: int = 1
    centred: Literal["subbatch", "batch"] | None = None
    excess: bool = False


def nio_with(
    model: nn.Module, batches: Iterable[Batch], loss_fn: Any = None, *, idea: Idea, steps: int = 100, lr: float = 0.03
) -> None:
    """Scale a model in place; an initialization of :func:`initopt.compare`.

    Args:
        model: without dropout.
        batches: can be iterated over again, and are if they are fewer than the steps take.
        loss_fn: not used; the loss is :func:`loss_of`.
        idea: what is changed.
        steps: as in :func:`initopt.nio`.
        lr: as in :func:`initopt.nio`.
    """
    source = chain.from_iterable(repeat(batches))
    problem = Problem(model, as_loss(loss_of), Parameters.of(model), SubBatches(overlap=0.2), seed=0)
    model.train()
    run: _Run | None = None
    for number in range(steps):
        taken = [next(source) for _ in range(idea.batches)]
        if run is None:
            run = _Run(model, idea, lr, _scaled(problem, taken[0]), problem.prepare(taken[0], 0).windows)
        with plain_attention():
            run.step(
                number, [[(b[0][window], b[1][window]) for window in problem.prepare(b, 0).windows.indices] for b in taken]
            )
    assert run is not None
    run.finish()


def _scaled(problem: Problem, batch: Batch) -> list[str]:
    """Names of the tensors that the defaults scale."""
    invariant = scale_invariant(problem, problem.prepare(batch, 0))
    pairs = zip(problem.scale_params, invariant, strict=True)
    return [p.name for p, held in pairs if not held and not p.is_bias and bool(p.value.any())]


class _Run:
    def __init__(self, model: nn.Module, idea: Idea, lr: float, scaled: Sequence[str], windows: Windows) -> None:
        self._model, self._idea, self._windows = model, idea, windows
        self._originals = {name: value.detach().clone() for name, value in model.named_parameters()}
        self._shapes = {name: _shape(self._originals[name], idea.per_channel) for name in scaled}
        count = sum(shape.numel() for shape in self._shapes.values())
        self._values = torch.ones(count, dtype=torch.float64)
        self._history: list[Tensor] = []
        self._optimizer = ScaleAdam(count, lr, (0.9, 0.999), 1e-8, 1.0)
        self._objective = get("cosine+lognorm", _NORM_WEIGHT)

    def step(self, number: int, batches: Sequence[Sequence[Batch]]) -> None:
        """One step, on one batch or more, each given as its sub-batches."""
        scales = self._values.float().requires_grad_()
        weights = self._weights(scales)
        whole = self._idea.centred is not None and self._exceeds(weights, batches[0][number % len(batches[0])])
        grams = [self._grams(weights, subbatches, centred=not whole) for subbatches in batches]
        norm = torch.stack([functional.grad_norm(plain) for plain, _ in grams]).mean()
        exceeded = whole if self._idea.centred is not None else bool(norm > _BOUND)
        kind: Kind = "constraint" if exceeded else "objective"
        wanted = norm if kind == "constraint" else torch.stack([self._objective_of(*pair) for pair in grams]).mean()
        along = torch.autograd.grad(wanted, scales)[0].double() * self._values
        if self._idea.logarithms:
            ones = torch.ones_like(self._values)
            moved = self._values * (self._optimizer.step(ones, along, kind) - ones).exp()
        else:
            moved = self._optimizer.step(self._values, along, kind)
        self._values = moved.clamp_min(0.01)
        self._history.append(self._values)

    def _weights(self, scales: Tensor) -> dict[str, Tensor]:
        """All parameters; with a graph to the scales."""
        pieces = scales.split([shape.numel() for shape in self._shapes.values()])
        scaled = {name: piece.view(self._shapes[name]) for name, piece in zip(self._shapes, pieces, strict=True)}
        return {
            name: value * scaled[name] if name in scaled else value.clone().requires_grad_()
            for name, value in self._originals.items()
        }

    def _slopes(self, weights: dict[str, Tensor], subbatches: Sequence[Batch]) -> list[tuple[Tensor, Tensor]]:
        """Logits, a row for each sample and position, and the loss's derivatives with respect to them."""
        found = []
        for inputs, targets in subbatches:
            logits = functional_call(self._model, weights, (inputs,)).flatten(0, -2)
            loss = nn.functional.cross_entropy(logits, targets.flatten())
            found.append((logits, torch.autograd.grad(loss, logits, create_graph=True)[0]))
        return found

    def _exceeds(self, weights: dict[str, Tensor], subbatch: Batch) -> bool:
        """Whether the whole gradient of a sub-batch exceeds the bound."""
        ((logits, slope),) = self._slopes(weights, [subbatch])
        gradients = torch.autograd.grad(logits, list(weights.values()), slope)
        return bool(sum(g.double().square().sum() for g in gradients) > _CENTRED_BOUND**2)

    def _grams(
        self, weights: dict[str, Tensor], subbatches: Sequence[Batch], centred: bool = True
    ) -> tuple[Tensor, Tensor]:
        """Gram matrices of the gradients, and of those that GradCosine is of."""
        both = self._slopes(weights, subbatches)
        if self._idea.centred is not None and centred:
            mean = torch.cat([slope for _, slope in both]).mean(0)
            of_batch = self._idea.centred == "batch"
            both = [(logits, slope - (mean if of_batch else slope.mean(0))) for logits, slope in both]
        found = [torch.autograd.grad(o, list(weights.values()), slope, create_graph=True) for o, slope in both]
        plain = shown = torch.zeros(())
        for column in zip(*found, strict=True):
            rows = torch.stack([g.flatten() for g in column])
            gram = rows @ rows.T
            plain = plain + gram
            if self._idea.preconditioned is not None:
                squares = rows.detach().square().mean(0)
                if self._idea.preconditioned == "tensor":
                    squares = squares.sum()
                seen = rows / (squares.sqrt() + 1e-8)
                gram = seen @ seen.T
            shown = shown + gram
        return plain, shown

    def _objective_of(self, plain: Tensor, shown: Tensor) -> Tensor:
        both = self._objective(plain)
        if self._idea.excess:
            shown = self._without_shared_noise(shown)
        elif self._idea.preconditioned is None:
            return both
        return both + functional.grad_cosine(plain) - functional.grad_cosine(shown)

    def _without_shared_noise(self, gram: Tensor) -> Tensor:
        """Gram matrices whose entries off the diagonal have the expected value that they have without overlap."""
        windows = self._windows
        weights = windows.weights().to(gram)
        shared = weights @ weights.T  # of windows of n and m samples that share s: s / (n m)
        shared = shared - shared.diagonal().diag()
        return gram - functional.noise_trace(gram, windows.small_batch, windows.big_batch) * shared

    def finish(self) -> None:
        """Write the scaled weights into the model."""
        if self._idea.averaged:
            late = self._history[len(self._history) // 2 :]
            self._values = torch.stack(late).mean(0)
        weights = self._weights(self._values.float())
        with torch.no_grad():
            for name, parameter in self._model.named_parameters():
                parameter.copy_(weights[name])


def _shape(weight: Tensor, per_channel: bool) -> torch.Size:
    if per_channel and weight.ndim > 1:
        return torch.Size([len(weight), *[1] * (weight.ndim - 1)])
    return torch.Size([1] * weight.ndim)
