"""Sub-batches that are run in parts, and in smaller ones when memory runs out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

import torch

from initopt._support._torch_messages import free_cached_memory, is_out_of_memory
from initopt._support.errors import warn
from initopt.model.centring import Means
from initopt.model.problem import Batch, Part, Problem
from initopt.model.randomness import seeded

__all__ = ["Microbatches"]

_T = TypeVar("_T")


class Microbatches:
    """The number of samples of a sub-batch that an engine runs at a time: all, until told otherwise.

    The loss of a sub-batch has to be the mean of its samples' losses, so that it is the sum of its parts. That is checked
    on the first batch, part by part against its halves, before the first result: a loss with class weights or ignored
    targets is not such a mean.

    Args:
        problem: whose sub-batches are run.
    """

    def __init__(self, problem: Problem) -> None:
        self.size = problem.microbatch
        self._problem = problem
        self._checked = False

    @staticmethod
    def refusal(problem: Problem) -> str | None:
        """Why parts are impossible where the problem asks for them, as the end of a sentence."""
        if problem.microbatch is None:
            return None
        if problem.batch_norm == "batch":
            return 'microbatch runs samples apart, and batch_norm="batch" couples them'
        return _coupled(problem)

    def state(self) -> dict[str, Any]:
        """The state as plain values, for JSON."""
        return {"microbatch": self.size}

    def load_state(self, state: dict[str, Any]) -> None:
        """The inverse of :meth:`state`."""
        self.size = state["microbatch"]

    def run(self, batch: Batch, d: int, function: Callable[[list[Part]], _T], means: Means | None = None) -> _T:
        """Call a function with the parts of sub-batch d, with parts half as large each time that memory runs out.

        Args:
            batch: of which it is a sub-batch.
            d: its number.
            function: is given the parts, which are centred by what they have in common.
            means: what to centre by, if that is known.
        """
        while True:
            try:
                parts = self._problem.parts(batch, d, self.size)
                if len(parts) > 1 and not self._checked:
                    self._check(batch)
                if means is not None:
                    return function([replace(part, means=means) for part in parts])
                return function(self._problem.centred_by_all(batch, parts) if len(parts) > 1 else parts)
            except RuntimeError as error:
                self._halve_for(error, len(batch.windows.indices[d]))
            # Not within the `except`: the error holds on to what was in memory.
            free_cached_memory(self._problem.device)

    def _halve_for(self, error: RuntimeError, samples: int) -> None:
        """Halve the size, or raise the error again."""
        present = samples if self.size is None else min(self.size, samples)
        if not is_out_of_memory(error) or present == 1:
            raise error
        why = _coupled(self._problem)
        if why is not None or self._problem.batch_norm == "batch":
            error.add_note(f"({why or 'samples are coupled'}, so they cannot be run in parts; use smaller batches)")
            raise error
        self.size = (present + 1) // 2
        samples_word = "sample" if self.size == 1 else "samples"
        warn(f"initopt: out of memory with {present} samples at a time; going on with {self.size} {samples_word} at a time")

    def _check(self, batch: Batch) -> None:
        """Refuse a loss that is not a mean over samples."""
        assert self.size is not None
        size = max(self.size, 2)
        precisions = [torch.finfo(p.value.dtype).eps for p in self._problem.grad_params]
        # Where the model draws noise, parts differ by that.
        for d in range(len(batch.windows)) if not self._problem.model.training else ():
            for part in self._problem.parts(batch, d, size):
                if len(part.indices) < 2:
                    continue
                whole, *halves = (self._value(batch, piece) for piece in (part.indices, *part.indices.tensor_split(2)))
                first, second = (len(piece) / len(part.indices) for piece in part.indices.tensor_split(2))
                expected = first * halves[0] + second * halves[1]
                if abs(whole - expected) > max(precisions) ** 0.5 * max(abs(whole), abs(expected)):
                    raise ValueError(
                        f"microbatch={self.size} needs a loss that is a mean over samples, but that of {len(part.indices)} "
                        f"samples is {whole:.6g}, and the mean of its halves {expected:.6g}: are there class weights or "
                        "ignored targets, or does the model mix samples? Use smaller batches in its place"
                    )
        self._checked = True

    def _value(self, batch: Batch, indices: torch.Tensor) -> float:
        with seeded(*batch.seed):
            return float(self._problem.part_loss(replace(batch, centred=False), Part(indices, 1, batch.seed)).detach())


def _coupled(problem: Problem) -> str | None:
    return "batch norm couples the samples of a sub-batch" if problem.normalizes else None
