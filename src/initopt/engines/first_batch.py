"""A look at the first batch, before derivatives are used: whether they are what they seem."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from initopt._support.errors import LossError, warn
from initopt._support.words import counted, first_few
from initopt.engines.base import fold_gradients
from initopt.engines.gradients import inner_products, subbatch_gradients
from initopt.engines.invariance import fits_memory, in_low_precision, in_precision
from initopt.model.double_backward import plain_attention
from initopt.model.parameters import NamedParameter
from initopt.model.problem import Batch, Part, Problem, as_real, inner_product
from initopt.model.randomness import seeded
from initopt.model.sharded import has_entries

__all__ = ["Unreached", "examine"]

_FEW = 4
"""Samples on which second derivatives are looked at."""

_STEPS = {torch.float64: (1e-6, 1e-3), torch.float32: (1e-3, 1e-2)}
"""Steps of finite differences, relative to the weights, by precision. The second is for models in which some operation
keeps to a lower precision, so that the first tells nothing."""

_AGREED = 1e-3
"""Largest relative difference of a derivative and a finite difference in double precision that means nothing."""

_ROUGHLY_AGREED = 0.02
"""The same in single precision."""


@dataclass(frozen=True)
class Unreached:
    """Parameters whose gradient is exactly zero on the first sub-batch, or that it does not reach.

    Attributes:
        names: of these parameters.
        entries: how many numbers they hold.
        total: how many numbers all parameters hold whose gradients count.
        zeros: names of the tensors, but for biases, that are wholly zero: what lies before them gets no gradient.
    """

    names: tuple[str, ...]
    entries: int
    total: int
    zeros: tuple[str, ...]

    def __str__(self) -> str:
        what = (
            f"{counted(len(self.names), 'tensor')}, {self.entries:,} of {self.total:,} parameters: {first_few(self.names)}"
        )
        return what if not self.zeros else f"{what}; {self.cause}"

    @property
    def cause(self) -> str:
        """The reason, where it lies in tensors that are zero."""
        are = "is" if len(self.zeros) == 1 else "are"
        return (
            f"{first_few(self.zeros)} {are} zero, so nothing before it gets a gradient. The model's own option may change "
            "that (zero_init_last=False in timm, zero_init_residual=False in torchvision)"
        )


def examine(
    problem: Problem, data: Any, second: bool, memory_budget: float | None = None
) -> tuple[str | None, Unreached | None]:
    """Look at a model on the first sub-batch, for the price of half a training step, and of two with second derivatives.

    - Two equal passes give the same loss and the same gradient. Where they do not, something draws at random, or keeps a
      state, out of sight.
    - Every parameter that ``loss.backward()`` would give a gradient is among those that ``torch.autograd.grad`` does: a
      backward pass may accumulate others by itself.
    - A second derivative agrees with a finite difference of gradients. An operation whose backward pass is not
      differentiable may not say so.
    - Layers that take the first dimension for time are not given the samples there.

    All of it happens on copies of the parameters; but of a model in parts, by its own backward pass, on all ranks. What
    cannot be looked at, since the model fails, is left to those who run it next.

    Args:
        problem: with the model in measuring mode.
        data: the first batch, as the user gave it.
        second: whether second derivatives are going to be taken.
        memory_budget: bytes that this may take; by default, what is free.

    Returns:
        The reason why second derivatives cannot be trusted, as a clause (``None`` if they agree, or were not looked at),
        and the parameters that get no gradient (``None`` if all do).

    Raises:
        LossError: if the loss or the targets are visibly wrong.
        RuntimeError: if the backward pass accumulates gradients by itself.

    Warns:
        InitoptWarning: if two passes differ, or the first dimension seems to be time.
    """
    try:
        batch = problem.prepare(data, 0)
        part = _first_part(problem, batch)
        if problem.shards is None:
            accumulated, difference, misread, unreached = _two_passes(problem, batch, part, second)
        else:
            accumulated = []
            difference, misread, unreached = _two_passes_in_parts(problem, batch, second)
    except LossError:  # which says already what is wrong
        raise
    except Exception:  # whatever it is: those who run the model next will meet it where it can be said
        return None, None
    if accumulated:
        raise RuntimeError(
            f"the backward pass of the model accumulates gradients by itself, those of parameter "
            f"{first_few(list(map(repr, accumulated)))}, as reversible and other memory-saving blocks do that call "
            "torch.autograd.backward. torch.autograd.grad does not give these, so they would count as zero. Use the plain "
            "form of the block, or leave its parameters out by grad_params and scale_params"
        )
    if misread is not None:
        warn(f"initopt: {misread}")
    if difference is not None:
        warn(
            f"initopt: two equal passes over the first sub-batch give {difference}: the model or the loss draws at random, "
            "or keeps a state, where initopt does not see it. Figures are noisy by as much"
        )
        return None, unreached
    looks = second and problem.shards is None  # in parts, there is no second derivative
    return _disagreement(problem, batch, part, memory_budget) if looks else None, unreached


def _first_part(problem: Problem, batch: Batch) -> Part:
    """What the model is first run on: the first sub-batch, or all of a batch that is normalized as one."""
    if problem.batch_norm == "batch":
        return Part(torch.arange(batch.windows.batch_size, device="cpu"), 1.0, batch.seed)
    return problem.parts(batch, 0, problem.microbatch)[0]


def _two_passes(
    problem: Problem, batch: Batch, part: Part, scaled: bool
) -> tuple[list[str], str | None, str | None, Unreached | None]:
    """Parameters whose gradients were accumulated; how two passes differ; what is taken for time; what gets no gradient."""
    parameters = _all(problem) if scaled else problem.grad_params
    own = [p.value.grad for p in parameters]
    try:
        with problem.state.stand_ins() as leaves, problem.state.recording():
            with _time_first(problem.model, len(part.indices)) as found:
                first = _pass(problem, batch, part, parameters, leaves)
            second = _pass(problem, batch, part, parameters, leaves)
            accumulated = [
                p.name for p, grad in zip(parameters, own, strict=True)
                if p.value.grad is not grad or (p.value in leaves and leaves[p.value].grad is not None)
            ]  # fmt: skip
    finally:
        for parameter, grad in zip(parameters, own, strict=True):
            parameter.value.grad = grad
    reached = [p for p in parameters if p.value in leaves]
    unreached = _unreached(reached, first[1][:, 1].tolist())
    return accumulated, _difference(first, second, _precision(problem)), found[0] if found else None, unreached


def _two_passes_in_parts(problem: Problem, batch: Batch, scaled: bool) -> tuple[str | None, str | None, Unreached | None]:
    """How two passes differ; what is taken for time; what gets no gradient: the same on all ranks."""
    assert problem.shards is not None
    parameters = _all(problem) if scaled else problem.grad_params
    with problem.state.recording():
        with _time_first(problem.model, len(batch.windows.indices[0])) as found:
            first = _pass_in_parts(problem, batch, parameters)
        second = _pass_in_parts(problem, batch, parameters)
    unreached = _unreached(parameters, first[1][:, 1].tolist())
    return _difference(first, second, _precision(problem)), found[0] if found else None, unreached


def _pass_in_parts(problem: Problem, batch: Batch, parameters: Sequence[NamedParameter]) -> tuple[float, Tensor]:
    """As :func:`_pass`, for the first sub-batch of all ranks."""
    values = [p.value for p in parameters]
    loss, gradients = next(subbatch_gradients(problem, batch, values, problem.microbatch))
    assert problem.shards is not None
    counted = problem.shards.counted(values, gradients)
    ones = [None if g is None else torch.ones_like(g) for g in counted]
    figures = torch.stack([inner_products(counted, ones), inner_products(counted, counted)], 1)
    total = problem.ranks.sum(torch.cat([loss.reshape(1), figures.flatten()]), "the first gradient")
    figures = total[1:].view(-1, 2)
    return float(total[0]), torch.stack([figures[:, 0], figures[:, 1].sqrt()], 1)


def _unreached(parameters: Sequence[NamedParameter], lengths: Sequence[float]) -> Unreached | None:
    silent = [p for p, length in zip(parameters, lengths, strict=True) if length == 0 and p.value.numel()]
    if not silent:
        return None
    zeros = [p.name for p in parameters if not p.is_bias and p not in silent and not has_entries(p.value)]
    return Unreached(
        tuple(p.name for p in silent),
        sum(p.value.numel() for p in silent),
        sum(p.value.numel() for p in parameters),
        tuple(zeros),
    )


def _all(problem: Problem) -> list[NamedParameter]:
    """The parameters that have a gradient or a scale, each once."""
    return list({p.value: p for p in (*problem.grad_params, *problem.scale_params)}.values())


def _pass(
    problem: Problem, batch: Batch, part: Part, parameters: Sequence[NamedParameter], leaves: Mapping[Tensor, Tensor]
) -> tuple[float, Tensor]:
    """The loss, and sum and length of the gradient of each parameter, of which one is in memory at a time."""
    figures: dict[int, Tensor] = {}

    def note(number: int, gradient: Tensor) -> None:
        length = torch.linalg.vector_norm(gradient, dtype=torch.float64)
        figures[number] = torch.stack([gradient.sum(dtype=torch.float64), length]).cpu()

    with seeded(*part.seed):
        loss = problem.part_loss(batch, part)
        values = [leaves[p.value] for p in parameters if p.value in leaves]
        fold_gradients(loss, values, note)
    none = torch.zeros(2, dtype=torch.float64, device="cpu")
    return float(loss.detach()), torch.stack([figures.get(number, none) for number in range(len(values))])


def _precision(problem: Problem) -> float:
    own = max(torch.finfo(p.value.dtype).eps for p in _all(problem))
    return max(own, torch.finfo(torch.bfloat16).eps) if in_low_precision(problem) else own


def _difference(first: tuple[float, Tensor], second: tuple[float, Tensor], precision: float) -> str | None:
    """How two passes differ, in words: kernels that add up in no fixed order differ by rounding."""
    allowed = precision**0.5
    if abs(first[0] - second[0]) > allowed * max(abs(first[0]), abs(second[0])):
        return f"the losses {first[0]:.6g} and {second[0]:.6g}"
    (one, length), (other, _) = first[1].T, second[1].T
    apart = max(float((length - second[1].T[1]).norm()), float((one - other).norm()))
    largest = float(first[1].abs().max())
    return f"gradients whose sums or lengths differ by {apart:.3g}" if apart > 10 * allowed * largest else None


@contextmanager
def _time_first(model: nn.Module, samples: int) -> Iterator[list[str]]:
    """A block in which layers that take the first dimension for time note if that is where the samples are."""
    found: list[str] = []

    def look(module: nn.Module, args: Any) -> None:
        x = args[0] if args else None
        if isinstance(x, Tensor) and x.ndim == 3 and x.shape[0] == samples != x.shape[1] and samples > 1:
            found.append(
                f"{names[module]!r}, a {type(module).__name__} with batch_first=False, takes the first dimension for time, "
                f"and sub-batches of {samples} are made along it. If batches have time first, give them with the samples "
                "first, and transpose them in the loss function; if they have not, the layer mixes samples: make it with "
                "batch_first=True"
            )

    names = {module: name for name, module in model.named_modules() if getattr(module, "batch_first", None) is False}
    with ExitStack() as stack:
        for module in names:
            if isinstance(module, (nn.RNNBase, nn.MultiheadAttention)):
                stack.callback(module.register_forward_pre_hook(look).remove)
        yield found


def _disagreement(problem: Problem, batch: Batch, part: Part, memory_budget: float | None) -> str | None:
    """By how much a second derivative and finite differences of gradients disagree, in words, if they do.

    Of a Hessian H and random directions u, along the scales, and v, a double backward pass has v'Hu, and so have
    differences of v'g along u, and of u'g along v. Where these two do not agree, g is not the gradient of a function: it
    may contain what the model detaches, on purpose, and no difference tells more than that. Where both are zero, the model
    may be a staircase (quantized weights, with gradients as if they were not).
    """
    few = replace(part, indices=part.indices[:_FEW])
    for dtype in (torch.float64,) if in_low_precision(problem) else (torch.float64, torch.float32):
        if not fits_memory(problem, dtype, memory_budget):
            continue
        try:
            with problem.state.stand_ins(dtype) as leaves:
                directions = _Directions(problem, in_precision(batch, dtype), few, leaves)
                return _compared(directions, _STEPS[dtype], _AGREED if dtype == torch.float64 else _ROUGHLY_AGREED)
        except Exception:  # a kernel with the one precision only, or a derivative that is missing, as engines will find
            continue
    return None


def _compared(directions: _Directions, steps: tuple[float, ...], allowed: float) -> str | None:
    exact, size = directions.exact()
    for step in steps:
        along, back = directions.differences(step)
        apart = abs(exact - along)
        if along == back == 0 or not math.isfinite(exact + along + back) or apart <= allowed * max(abs(along), size):
            return None
        if apart > 10 * abs(along - back) and not _near_a_kink(directions, step, along, apart):
            return (
                "the second derivative of the model is not the derivative of its gradients (on the first samples, "
                f"{exact:.4g} in place of {along:.4g}): some operation has a backward pass that cannot be differentiated "
                "and does not say so, a custom autograd.Function, say, or something that follows from the weights is "
                "detached"
            )
    return None


def _near_a_kink(directions: _Directions, step: float, along: float, apart: float) -> bool:
    """Whether a jump of the gradient, as a ReLU has one, is within reach: the difference then depends on its step."""
    shorter, _ = directions.differences(step / 3)
    return abs(shorter - along) > apart / 3


class _Directions:
    """Random directions, and derivatives of gradients along them."""

    def __init__(self, problem: Problem, batch: Batch, part: Part, leaves: Mapping[Tensor, Tensor]) -> None:
        self._problem, self._batch, self._part = problem, batch, part
        self._of_grad = [leaves.get(p.value, p.value) for p in problem.grad_params]
        self._of_scale = [leaves.get(p.value, p.value) for p in problem.scale_params]
        generator = torch.Generator("cpu").manual_seed(0)
        self._factors = torch.randn(len(self._of_scale), generator=generator, device="cpu").tolist()
        self._u = [factor * w.detach() for factor, w in zip(self._factors, self._of_scale, strict=True)]
        self._v = [self._noise(w, generator) for w in self._of_grad]

    @staticmethod
    def _noise(weight: Tensor, generator: torch.Generator) -> Tensor:
        drawn = torch.randn(weight.shape, generator=generator, dtype=weight.dtype, device="cpu").to(weight.device)
        return drawn * (as_real(weight.detach()).double().square().mean().sqrt().to(drawn.real.dtype) or 1.0)

    def exact(self) -> tuple[float, float]:
        """V'Hu by double backward, and the length of the vector of its parts, one for each scale."""
        with plain_attention(), seeded(*self._part.seed):
            loss = self._problem.part_loss(self._batch, self._part)
            gradients = torch.autograd.grad(loss, self._of_grad, create_graph=True, allow_unused=True)
            pairs = [(g, v) for g, v in zip(gradients, self._v, strict=True) if g is not None and g.requires_grad]
            if not pairs:
                return 0.0, 0.0
            product = torch.stack([inner_product(g, v).cpu() for g, v in pairs]).sum()
            found = torch.autograd.grad(product, self._of_scale, allow_unused=True)
        parts = torch.tensor([_inner(h, u) for h, u in zip(found, self._u, strict=True)], dtype=torch.float64, device="cpu")
        return float(parts.sum()), float(parts.norm())

    def differences(self, step: float) -> tuple[float, float]:
        """The same by central differences of v'g along u, and of u'g along v."""
        return self._difference(self._of_scale, self._u, self._of_grad, self._v, step), self._difference(
            self._of_grad, self._v, self._of_scale, self._u, step
        )

    def _difference(
        self, moved: list[Tensor], along: list[Tensor], seen: list[Tensor], with_: list[Tensor], step: float
    ) -> float:
        ends = []
        kept = [weight.detach().clone() for weight in moved]
        for signed in (step, -step):
            with torch.no_grad():
                for weight, value, direction in zip(moved, kept, along, strict=True):
                    weight.copy_(value + signed * direction)
            with plain_attention(), seeded(*self._part.seed):
                loss = self._problem.part_loss(self._batch, self._part)
                gradients = torch.autograd.grad(loss, seen, allow_unused=True)
            ends.append(sum(_inner(g, d) for g, d in zip(gradients, with_, strict=True)))
        with torch.no_grad():
            for weight, value in zip(moved, kept, strict=True):
                weight.copy_(value)
        return (ends[0] - ends[1]) / (2 * step)


def _inner(gradient: Tensor | None, direction: Tensor) -> float:
    return 0.0 if gradient is None else float(inner_product(gradient.detach(), direction))
