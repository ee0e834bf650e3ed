"""Whether one layer for queries, keys and values has them one after another, each head by head: found by running it.

The names and shapes of ``reshape(B, N, 3, heads, size)`` and ``reshape(B, N, heads, 3, size)`` are the same. What tells
them apart is what a part of the outputs does. If all keys are 0, all scores are equal: queries do not matter, and values
do. If one head alone has keys, and no values, queries do not matter either.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from initopt._support.errors import in_short
from initopt.batches.nested import batch_size, named_tensors, take
from initopt.model.parameters import KINDS, is_bias
from initopt.model.preserve import put_values, weights_as
from initopt.model.randomness import seeded
from initopt.schemes.attention import Attention, Projection
from initopt.schemes.base import Subject

__all__ = ["misread"]

_SAMPLES = 8
"""Of the batch, that are tried at first: a module runs some ten times."""

_LEAST = 1e-6
"""Of the size of an output, the least change that counts as one."""

_SMALL = 1e-3
"""Of the change that queries make, what counts as none: rounding leaves less, and scores that are not equal more."""


def misread(subject: Subject, attentions: Iterable[Attention]) -> dict[str, str]:
    """Which fused projections are not ordered as they were taken to be, or could not be tried, and why, by module.

    The model runs once on a few samples. Where it calls such a module, this runs some ten times more on the same inputs,
    with random weights, some of them 0.

    Args:
        subject: the model, with a batch.
        attentions: as they were made out; only those with one layer for queries, keys and values are tried.
    """
    modules = dict(subject.model.named_modules())
    fused = {modules[each.name]: each for each in attentions if each.is_fused}
    # The order in nn.MultiheadAttention is known, and it may be run without its forward method.
    fused = {module: each for module, each in fused.items() if not isinstance(module, nn.MultiheadAttention)}
    if not fused:
        return {}
    reasons: dict[str, str] = {}
    unseen = "its forward method does not run on the batch, so that the order of its fused projection could not be tried"
    for count in (_SAMPLES, None):  # a few are enough, unless the model is made for batches of one size
        try:
            _first(subject, count).run(torch.no_grad(), _trying(subject, fused, reasons))
            break
        except Exception as error:  # whatever a model or a loss raises
            unseen = f"the order of its fused projection could not be tried on the batch: {in_short(error)}"
    found = {each.name: reasons.get(each.name, unseen) for each in fused.values()}
    return {name: reason for name, reason in found.items() if reason}


def _first(subject: Subject, count: int | None) -> Subject:
    """The same with the first samples of the batch; all of them for ``None``."""
    size = batch_size(subject.batch)
    if count is None or count >= size:
        return subject
    return replace(subject, batch=take(subject.batch, torch.arange(count), size))


@contextmanager
def _trying(subject: Subject, fused: dict[nn.Module, Attention], reasons: dict[str, str]) -> Iterator[None]:
    """A block in which each of these modules is tried where it first runs."""

    def look(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        name = fused[module].name
        if name in reasons:
            return
        try:
            reasons[name] = _Trial(subject, module, fused[module], (args, kwargs)).outcome()
        except Exception as error:  # of a module that does not bear to run again, or a copy of its inputs
            reasons[name] = f"the order of its fused projection could not be tried: {in_short(error)}"

    with ExitStack() as stack:
        for module in fused:
            stack.callback(module.register_forward_pre_hook(look, with_kwargs=True).remove)
        yield


class _Trial:
    """Runs of one attention with random weights, on inputs as in the model."""

    def __init__(self, subject: Subject, module: nn.Module, attention: Attention, inputs: tuple[Any, Any]) -> None:
        self._module, self._attention, self._inputs, self._seed = module, attention, inputs, subject.seed
        generator = subject.generator()
        self._weight = attention.query.weight
        self._drawn, self._other = (_random(self._weight, attention.query.inputs, generator) for _ in range(2))
        self._counted: list[int] = []
        output = attention.output
        self._around = {output.weight: _random(output.weight, output.inputs, generator)}  # its own may be 0, and hide all
        for name, parameter in module.named_parameters():
            own = name.rpartition(".")[2]
            if is_bias(name) or KINDS["positions"](name, parameter, module) or "rel_" in own:
                self._around[parameter] = torch.zeros_like(parameter)  # what is added to keys of 0
            elif parameter.shape[:2] == (attention.heads,) * 2 and parameter.numel() == attention.heads**2:
                # Of scores or weights of all heads, as in CaiT.
                mixing = torch.eye(attention.heads).reshape(parameter.shape)
                self._around.setdefault(parameter, mixing.to(parameter))

    def outcome(self) -> str:
        """Why the order is not the one that is assumed; empty if it is."""
        query, key, value = (self._attention.query, self._attention.key, self._attention.value)
        with weights_as(self._around | {self._weight: self._drawn}):
            flat = self._run([key])
            moved = _changes(flat, self._run([key], [value]))
            # Scores may be among the outputs; those are not what values become.
            self._counted = [i for i, change in enumerate(moved) if change > _LEAST * _size(flat[i])]
            if not self._counted:
                return self._not("where the keys are 0, values do not matter, as in attention without softmax")
            whole = self._run()
            matter = self._change(whole, self._run(other=[query]))
            if not matter > _LEAST * max(_size(whole[i]) for i in self._counted):
                return (
                    "the order of its fused projection could not be tried: its output does not depend on what should be "
                    "queries, as with one token alone"
                )
            if self._change(flat, self._run([key], [query])) > _SMALL * matter:
                return self._not("queries matter where the keys are 0")
            for number in sorted({0, self._attention.key_heads - 1}):
                others = self._but(key, number)
                if self._matter([*others, self._head(value, number)], [query], matter):
                    return self._not(f"scores of head {number} matter for the values of others")
                if self._attention.key_heads < self._attention.heads and self._matter(
                    others, self._but(query, number), matter
                ):
                    return self._not(f"queries of others belong to the keys of head {number}")
        return ""

    @staticmethod
    def _not(seen: str) -> str:
        return f"its fused projection is not ordered as queries, keys, values: as it runs, {seen}"

    def _head(self, whole: Projection, number: int) -> Projection:
        """The part of queries, keys or values that belongs to one head of keys."""
        size = whole.outputs // self._attention.key_heads
        return replace(whole, start=whole.start + number * size, stop=whole.start + (number + 1) * size)

    def _but(self, whole: Projection, number: int) -> list[Projection]:
        """The parts that belong to the others."""
        return [self._head(whole, each) for each in range(self._attention.key_heads) if each != number]

    def _matter(self, zero: list[Projection], other: list[Projection], matter: float) -> bool:
        """Whether, with some outputs 0, others change anything."""
        return self._change(self._run(zero), self._run(zero, other)) > _SMALL * matter

    def _change(self, left: list[Tensor], right: list[Tensor]) -> float:
        changes = _changes(left, right)
        return max(changes[i] for i in self._counted)

    def _run(self, zero: Collection[Projection] = (), other: Collection[Projection] = ()) -> list[Tensor]:
        """The floating-point outputs, with some rows of the fused weight 0, and others drawn anew."""
        weight = self._drawn.clone()
        for part in other:
            part.rows(weight).copy_(part.rows(self._other))
        for part in zero:
            part.rows(weight).zero_()
        put_values({self._weight: weight})
        # Copies, since a cache of keys grows with each run. Without its hooks, which have seen the inputs already.
        args, kwargs = copy.deepcopy(self._inputs)
        with seeded(self._seed):
            result = self._module.forward(*args, **kwargs)
        return [tensor.double() for _, tensor in named_tensors(result) if tensor.is_floating_point()]


def _random(like: nn.Parameter, inputs: int, generator: torch.Generator) -> Tensor:
    return torch.randn(like.shape, generator=generator).div(inputs**0.5).to(like)


def _changes(left: list[Tensor], right: list[Tensor]) -> list[float]:
    """The largest difference in each of the outputs; rows that are masked as a whole may be nan in both."""
    return [_size(a - b) for a, b in zip(left, right, strict=True)]


def _size(tensor: Tensor) -> float:
    return float(tensor.nan_to_num().abs().max()) if tensor.numel() else 0.0
