"""The batches of a race or a search: which ones starts are trained on, and which ones they are judged by."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from initopt._support.errors import LoaderError, NonFiniteError, warn
from initopt.batches.nested import named_tensors
from initopt.model.randomness import Stream, mixed_seed
from initopt.model.ranks import ALONE, Ranks

__all__ = ["MOST_BYTES", "Batches", "first_batches", "read_batches", "refuse_broken"]

MOST_BYTES = 4 * 2**30
"""Memory that batches may take."""

_FEWEST = 4

_INTEGERS = (torch.int8, torch.int16, torch.int32, torch.int64)


@dataclass(frozen=True)
class Batches:
    """Batches in memory.

    Attributes:
        training: for the starts and the training steps.
        held_out: for judging; no start is made from them or trained on them.
    """

    training: list[Any]
    held_out: list[Any]

    def order(self, seed: int) -> Iterator[Any]:
        """The training batches without end, in another order in each pass and for each seed."""
        for number in itertools.count():
            generator = torch.Generator().manual_seed(mixed_seed(seed, Stream.ORDER, number))
            for index in torch.randperm(len(self.training), generator=generator).tolist():
                yield self.training[index]


def first_batches(loader: Iterable[Any], wanted: int, ranks: Ranks = ALONE) -> list[Any]:
    """Read the first batches of a loader, or all that there are; as many on all ranks, each its own.

    Warns:
        InitoptWarning: if not all batches that are asked for fit into :data:`MOST_BYTES`.
    """
    read: list[Any] = []
    size = 0
    for batch in itertools.islice(loader, wanted):
        size += sum(tensor.nbytes for _, tensor in named_tensors(batch))
        if size > MOST_BYTES and len(read) >= _FEWEST:
            warn(
                f"{wanted} batches take more memory than {MOST_BYTES / 2**30:.3g} GB: only {len(read)} are read, and gone "
                "through several times; smaller batches, or fewer steps, would bring more different ones"
            )
            break
        read.append(batch)
    return read[: min(ranks.gather(len(read), "the batches read"))]


def refuse_broken(batches: Batches, losses: Callable[[list[Any]], list[float]]) -> None:
    """Refuse a batch that gives a network no finite loss before any training, so that no start or rate is blamed for it.

    Only batches that look like it are tried: those with values that are not finite, or integers that are all negative, as
    targets are that a loss ignores. Some networks bear both.

    Args:
        batches: of a race or a search.
        losses: of some batches, in training mode, before any training.

    Raises:
        NonFiniteError: saying what is in the batch.
    """
    every = [*batches.training, *batches.held_out]
    suspects = [(batch, what) for batch in every if (what := _suspicion(batch))]
    if not suspects:
        return
    for (_, what), loss in zip(suspects, losses([batch for batch, _ in suspects]), strict=True):
        if not math.isfinite(loss):
            raise NonFiniteError(
                f"the loss of a batch is {loss} before any training: {what}. Leave such batches out, or have the loss mask "
                "what is missing; every start, at every rate, would end there"
            )


def _suspicion(batch: Any) -> str:
    """What may be wrong with a batch; ``""`` if nothing is seen."""
    for name, tensor in named_tensors(batch):
        if tensor.layout != torch.strided:
            continue
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            return f"{name} has values that are not finite ({int((~tensor.isfinite()).sum())} of {tensor.numel()})"
        if tensor.numel() and tensor.dtype in _INTEGERS and bool((tensor < 0).all()):
            return f"all values of {name} are negative, as targets are that a loss ignores"
    return ""


def read_batches(loader: Iterable[Any], steps: int, held_out: int | Iterable[Any], ranks: Ranks = ALONE) -> Batches:
    """Read one pass of a loader, or as much of it as is needed.

    Batches to judge by are spread evenly over what is read: a loader may give one class after the other. They are a quarter
    of the batches at most.

    Args:
        loader: of the training data; is iterated over once.
        steps: training steps of a run.
        held_out: how many batches to judge by, or other batches, of validation data say.
        ranks: that read together, each its own batches.

    Raises:
        LoaderError: if there are too few batches.
        RankError: if ranks have not as many other batches.

    Warns:
        InitoptWarning: if not all batches that are asked for fit into :data:`MOST_BYTES`.
    """
    others = None if isinstance(held_out, int) else list(held_out)
    wanted = steps + (held_out if isinstance(held_out, int) else 0)
    read = first_batches(loader, wanted, ranks)
    if others is not None:
        ranks.same({"held_out": len(others)}, "the number of batches to judge by", "give as many on all ranks")
        if not others or not read:
            which = "held_out" if read else "loader"
            raise LoaderError(f"{which} is empty: iterating over it gave no batch, and at least one is needed")
        return Batches(read, others)
    if len(read) < _FEWEST:
        raise LoaderError(
            f"loader gave {len(read)} batch(es), and a race needs {_FEWEST} or more: some to train on, and others to judge "
            "by. Pass smaller batches, or validation data as held_out="
        )
    assert isinstance(held_out, int)
    count = min(held_out, len(read) // 4)
    if count == 1 < held_out:
        warn(
            f"of {len(read)} batches, one alone judges, and what is better on it may not be on others: pass smaller "
            "batches, or validation data as held_out="
        )
    held = {int((number + 0.5) * len(read) / count) for number in range(count)}
    return Batches(
        [batch for number, batch in enumerate(read) if number not in held], [read[number] for number in sorted(held)]
    )
