"""The effects of a first step, seen on copies of the parameters."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from initopt.diagnosis.recording import root_mean_square
from initopt.engines.invariance import in_precision
from initopt.model.double_backward import plain_attention
from initopt.model.problem import Batch, Part, Problem
from initopt.model.randomness import seeded
from initopt.training.optimizers import OptimizerFactory, make_optimizer, places_of

__all__ = ["few_samples", "first_updates", "woken"]


def first_updates(problem: Problem, optimizer: OptimizerFactory, gradients: Sequence[Tensor | None]) -> dict[str, float]:
    """Root mean square of the first update of every parameter that has a gradient, by name.

    An update that is rounded away beside the weights has the size that it has beside zeros; only what the optimizer does
    not have, or has at a rate of zero, has none.
    """
    found = _updates_of(problem, optimizer, [p.value.detach() for p in problem.grad_params], gradients)
    if all(found.values()):
        return found
    rounded = [None if found.get(p.name) else slope for p, slope in zip(problem.grad_params, gradients, strict=True)]
    return found | _updates_of(problem, optimizer, [torch.zeros_like(p.value) for p in problem.grad_params], rounded)


def _updates_of(
    problem: Problem, optimizer: OptimizerFactory, values: Sequence[Tensor], gradients: Sequence[Tensor | None]
) -> dict[str, float]:
    copies = [nn.Parameter(value.clone()) for value in values]
    places = places_of(p.value for p in problem.grad_params)
    made = make_optimizer(optimizer, copies, places)
    for copy, gradient in zip(copies, gradients, strict=True):
        copy.grad = None if gradient is None else gradient.to_dense().to(copy.dtype)
    made.step()
    changed = zip(problem.grad_params, copies, values, strict=True)
    with torch.no_grad():
        return {p.name: root_mean_square(copy - value) for p, copy, value in changed if copy.grad is not None}


_MOVE = 1e-3
"""Size of a step, as that of Adam: zeros have no scale that it could be relative to."""

_STEPS, _FEW, _MANY = 3, 4, 8


def woken(problem: Problem, batch: Batch, gradients: Sequence[Tensor | None]) -> set[str]:
    """The parameters that get a gradient once those have moved that get one now.

    A branch that ends in a zero passes no gradient on, but trains: its end moves in the first step, and the rest in the
    next. What gets none after three steps has nothing that would move, as behind two zeros in a row.
    """
    part, batch = few_samples(batch), in_precision(batch, torch.float32)
    found: set[str] = set()
    slopes: Sequence[Tensor | None] = gradients
    with problem.state.stand_ins(torch.float32) as leaves:
        values = [leaves.get(p.value, p.value) for p in problem.grad_params]
        if any(value is p.value for value, p in zip(values, problem.grad_params, strict=True)):
            return {p.name for p in problem.grad_params}  # a parameter of a class of its own has no copy to move
        for _ in range(_STEPS):
            before = len(found)
            with torch.no_grad():
                for value, slope in zip(values, slopes, strict=True):
                    if slope is not None:
                        value.sub_(_MOVE * slope.to_dense().sign().to(value.dtype))
            with seeded(*part.seed), plain_attention():
                loss = problem.part_loss(batch, part)
                slopes = torch.autograd.grad(loss, values, allow_unused=True)
            found |= _moving(problem, slopes)
            if len(found) == before:
                break
    return found


def few_samples(batch: Batch) -> Part:
    """The first samples of a batch, a sixteenth of it: enough to tell whether a gradient comes at all."""
    count = min(max(batch.windows.batch_size // 16, _FEW), _MANY)
    return Part(batch.windows.indices[0][:count], 1.0, (*batch.seed, 0))


def _moving(problem: Problem, slopes: Iterable[Tensor | None]) -> set[str]:
    pairs = zip(problem.grad_params, slopes, strict=True)
    return {p.name for p, slope in pairs if slope is not None and bool(slope.to_dense().any())}
