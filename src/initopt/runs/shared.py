"""What ranks have to do in step around the steps themselves: begin with the same, and take as many batches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from initopt._support._torch_private import BATCH_NORMS
from initopt._support.files import plain
from initopt.batches.stream import length_of
from initopt.batches.subbatches import Windows
from initopt.engines.first_batch import Unreached, examine
from initopt.engines.shards import why_in_parts
from initopt.methods import Measuring, Method
from initopt.model.checksums import checksums
from initopt.model.parameters import Parameters
from initopt.model.problem import Problem
from initopt.model.ranks import Ranks
from initopt.model.shard_passes import ShardPasses, staying_sharded
from initopt.model.sharded import Shards, tensor_parallel, unsharded, whole_parameters

__all__ = [
    "compare_calls",
    "compare_ranks",
    "compare_weights",
    "examine_all",
    "in_step",
    "refuse_ranks",
    "same_scales",
    "same_weights",
    "weights_at_hand",
    "windows_of_all",
]

_OF_ONE_RANK = ("progress", "callbacks", "memory_budget", "scale_params", "grad_params")
"""Options in which ranks may differ, and filters, of which not the name counts, but what they select."""


_AS_ONE = (
    "all ranks have to begin with the same model: a DistributedDataParallel gives all that of rank 0 when it is made, "
    "so change nothing on one rank alone after that"
)


def compare_ranks(ranks: Ranks, model: nn.Module, parameters: Parameters, options: Mapping[str, Any], batches: Any) -> None:
    """Refuse to begin where ranks differ in options, number of batches, parameters, or the values of these and of buffers.

    Running statistics of batch norms may differ: they are neither used nor changed.

    Raises:
        RankError: naming a rank and what differs.
    """
    if ranks.size == 1:
        return
    compare_calls(ranks, options, batches)
    _compare_shapes(ranks, model)
    selected = {"grad_params": parameters.grad, "scale_params": parameters.scaled}
    names = {f"{kind} {p.name}": True for kind, few in selected.items() for p in few}
    ranks.same(names, "selected parameters", "select the same on all ranks")
    _compare_values(ranks, model)


def compare_calls(ranks: Ranks, options: Mapping[str, Any], batches: Any) -> None:
    """Refuse to begin where ranks differ in options or the number of batches.

    Raises:
        RankError: naming a rank and what differs.
    """
    if ranks.size == 1:
        return
    chosen = {name: plain(value) for name, value in options.items() if name not in _OF_ONE_RANK}
    ranks.same(chosen, "options", "give the same on all ranks")
    more = "have the loader give all ranks as many (a DistributedSampler does)"
    ranks.same({"len(batches)": length_of(batches)}, "the number of batches", more)


@contextmanager
def weights_at_hand(
    model: nn.Module,
    ranks: Ranks,
    how: Measuring,
    loss_fn: Any,
    method: Method | None = None,
    checkpoint: object = None,
) -> Iterator[tuple[Shards | None, ShardPasses | None]]:
    """A block in which a model can be worked on: one that is sharded has whole weights, or is run in parts.

    Args:
        model: the model.
        ranks: the processes that work on it together.
        how: gradients are computed.
        loss_fn: the user's loss.
        method: what is done with them; ``None`` for a measurement.
        checkpoint: where the run is kept, if it is.

    Yields:
        The parts into which what was learned on whole weights is to be written, and the passes of a model in parts.

    Raises:
        ValueError, TypeError: for what cannot be done; the message says what can.
    """
    reason = None
    if method is None or method.works_in_parts:
        reason = why_in_parts(model, ranks, how.engine, how.num_subbatches, how.memory_budget, method is not None)
    if reason is None:
        with unsharded(model) as shards:
            yield shards, None
        return
    if method is not None:
        whole = 'engine="exact" has the whole weights on each device'
        _refuse_in_parts(method, reason, checkpoint, "do it before parallelize_module" if tensor_parallel(model) else whole)
    with staying_sharded(model, ranks, reason, loss_fn) as passes:
        yield None, passes


def _refuse_in_parts(method: Method, reason: str, checkpoint: object, way_out: str) -> None:
    """Refuse what a model in parts is not put through.

    Raises:
        ValueError: saying what can be done.
    """
    if checkpoint is not None:
        raise ValueError(
            f"checkpoint= keeps whole weights, which a model in parts has nowhere ({reason}); leave it out, or {way_out}"
        )
    if method.training is not None:
        raise ValueError(
            "optimizer= has the new weights tried in training steps, which are not taken with a model in parts "
            f"({reason}); leave it out, or {way_out}"
        )
    if method.scheme is not None:
        raise ValueError(
            "scheme= draws weights that fit what follows each layer, which a model in parts does not show "
            f"({reason}); draw them before, by initopt.schemes.apply_, or {way_out}"
        )


def compare_weights(ranks: Ranks, model: nn.Module) -> None:
    """Refuse to begin where ranks differ in parameters, or the values of these and of buffers but running statistics.

    Raises:
        RankError: naming a rank and what differs.
    """
    if ranks.size > 1:
        _compare_shapes(ranks, model)
        _compare_values(ranks, model)


def _compare_shapes(ranks: Ranks, model: nn.Module) -> None:
    ranks.same({name: str(tuple(p.shape)) for name, p in model.named_parameters()}, "parameters", _AS_ONE)


def _compare_values(ranks: Ranks, model: nn.Module) -> None:
    ranks.same(checksums(whole_parameters(model) | _buffers(model)), "weights", _AS_ONE)


def refuse_ranks(ranks: Ranks, method: Method) -> None:
    """Refuse what several processes cannot do together.

    Raises:
        ValueError: saying what can.
    """
    if ranks.union and not method.unites:
        raise ValueError(
            f"{method.name} is not a function of the gradients of sub-batches alone, so that processes cannot do it on "
            'united batches; share="average" has each take its own, and averages the derivatives'
        )
    if ranks.size > 1 and method.training is not None and method.training.max_decrease is not None:
        raise ValueError(
            f"max_decrease is for a process alone, and there are {ranks.size}; leave it out, for the bound on the gradient "
            "norm (max_grad_norm), or run it on one (process_group=None)"
        )


def _buffers(model: nn.Module) -> dict[str, torch.Tensor]:
    return {
        f"{prefix}.{name}" if prefix else name: buffer
        for prefix, module in model.named_modules()
        if not isinstance(module, BATCH_NORMS)
        for name, buffer in module.named_buffers(recurse=False)
    }


def same_weights(ranks: Ranks, model: nn.Module, what: str) -> None:
    """Refuse to end where ranks have come to different weights.

    Raises:
        RankError: naming a rank and tensors.
    """
    if ranks.size > 1:
        ranks.same(checksums(whole_parameters(model)), f"the weights that {what} has left", "they are as before")


def same_scales(ranks: Ranks, scales: Mapping[str, float], what: str) -> None:
    """Refuse to end where ranks have come to different scales, of a model in parts, whose weights cannot be compared.

    Raises:
        RankError: naming a rank and tensors.
    """
    if ranks.size > 1:
        ranks.same(scales, f"the scales that {what} has found", "the weights are as before")


def in_step(ranks: Ranks, batches: Iterable[Any]) -> Iterator[Any]:
    """Batches as long as every rank has one."""
    nothing = object()
    iterator = iter(batches)
    while True:
        batch = next(iterator, nothing)
        if ranks.size == 1 and batch is nothing:
            return
        if ranks.size > 1 and not all(ranks.gather(batch is not nothing, "the next batch")):
            return
        yield batch


def windows_of_all(ranks: Ranks, windows: Windows) -> Windows:
    """The sub-batches of all ranks together."""
    if not ranks.union:
        return windows
    indices: list[list[torch.Tensor]] = [[] for _ in windows.indices]
    start = 0
    for size, parts in ranks.gather((windows.batch_size, windows.indices), "the samples of sub-batches"):
        for own, part in zip(indices, parts, strict=True):
            own.append(part + start)
        start += size
    return Windows(tuple(torch.cat(parts) for parts in indices), start)


def examine_all(
    problem: Problem, data: Any, second: bool, memory_budget: float | None = None
) -> tuple[str | None, Unreached | None]:
    """As :func:`initopt.engines.first_batch.examine`: the first doubt of any rank, and what no rank has a gradient of."""
    doubts, unreached = examine(problem, data, second, memory_budget)
    if problem.ranks.size == 1:
        return doubts, unreached
    found = problem.ranks.gather((doubts, unreached), "the first batch")
    silent = [each for _, each in found]
    fewest = None if None in silent else min((s for s in silent if s is not None), key=lambda s: s.entries)
    return next((doubt for doubt, _ in found if doubt is not None), None), fewest
