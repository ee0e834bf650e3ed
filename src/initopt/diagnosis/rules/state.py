"""S: what a model is, where it is, and what its replicas hold."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

import torch
from torch import Tensor
from torch import distributed as dist
from torch.nn.parameter import is_lazy

from initopt._support._torch_private import BATCH_NORMS
from initopt.diagnosis.recording import real
from initopt.diagnosis.rules.base import Evidence, Finding, Rule, rule
from initopt.diagnosis.weights import Weight
from initopt.model.sharded import is_sharded

__all__ = ["OF_ALL_RANKS", "fingerprints", "unlike"]

_T = TypeVar("_T")

OF_ALL_RANKS = ("S601", "S602")
"""Rules for which processes wait for each other: one that asks alone would wait for ever."""


@rule(
    "S601",
    "replicas that differ",
    "error",
    needs="weights",
    threshold="one entry of one parameter, between processes",
    source="OLMo-core #319 (a replica with completely different parameters); litgpt #269; torchtitan #1777",
)
def replicas(evidence: Evidence, rule: Rule) -> Iterator[Finding]:
    """Every process of a data-parallel training has to start from the same weights.

    Fingerprints of all parameters that are not sharded are gathered from the processes, which all have to call this. A bare
    model is asked only if the rule is selected (``select=["S601"]``), so that one process can look at its own.
    """
    whole = [weight for weight in evidence.parameters if not is_sharded(weight.value)]
    names = unlike([weight.name for weight in whole], _gathered(fingerprints(whole)))
    if names:
        text = f"{len(names)} parameters differ between the processes"
        yield rule.finding(names, text, "draw with the same seed everywhere, or broadcast the weights of process 0")


@rule(
    "S602",
    "shards that are the same",
    "error",
    needs="weights",
    threshold="the shards of a tensor in two processes, bit for bit",
    source="torchtitan #3106 (every rank drew its shard from the same random state)",
)
def same_shards(evidence: Evidence, rule: Rule) -> Iterator[Finding]:
    """A sharded tensor whose shards were drawn from one random state is made of copies.

    Constant shards, as of norms and zero biases, are left out, and so are those without values.
    """
    shards = [w for w in evidence.weights if not w.is_buffer and _in_parts(w.value) and not w.value.is_meta]
    # What is constant, or holds nothing, differs between processes, which all have to tell of the same shards.
    own = [fingerprints([shard])[0] if shard.has_values and not shard.is_constant else None for shard in shards]
    names = []
    for shard, parts in zip(shards, zip(*_gathered(own), strict=True), strict=False):
        known = [part for part in parts if part is not None]
        if len(set(known)) < len(known):
            names.append(shard.name)
    if names:
        text = f"{len(names)} sharded tensors are made of shards that are copies of one another"
        yield rule.finding(names, text, "draw the whole tensor and distribute it, or seed every process with its rank")


def _in_parts(value: Tensor) -> bool:
    return not all(placement.is_replicate() for placement in getattr(value, "placements", ()))


def fingerprints(weights: Sequence[Weight]) -> list[tuple[float, float]]:
    """Two numbers for each tensor that agree if its values do, and almost never otherwise."""
    found = []
    for weight in weights:
        values = real(weight.local).reshape(-1).double()
        places = torch.arange(len(values), device=values.device, dtype=torch.float64)
        found.append((float(values.sum()), float((values * torch.cos(places)).sum())))
    return found


def unlike(names: Sequence[str], found: Sequence[Sequence[tuple[float, float]]]) -> list[str]:
    """The names of those whose fingerprints differ between processes.

    >>> unlike(["a", "b"], [[(1.0, 2.0), (3.0, 4.0)], [(1.0, 2.0), (3.0, 5.0)]])
    ['b']
    """
    return [name for i, name in enumerate(names) if len({repr(row[i]) for row in found}) > 1]


def _gathered(own: list[_T]) -> list[list[_T]]:
    """The lists of all processes; none without others."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() < 2:
        return []
    found: list[list[_T]] = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(found, own)
    return found


@rule(
    "S603",
    "meta tensors left over",
    "error",
    needs="weights",
    threshold="one tensor on the meta device, or of a lazy module",
    source="pytorch #90465, #104187; open_lm #165; fms-extras #38",
)
def meta(evidence: Evidence, rule: Rule) -> Iterator[Finding]:
    """A tensor on the meta device has a shape and no values; to_empty() gives it memory, and something has to fill that."""
    names = [weight.name for weight in evidence.weights if _wants_values(weight)]
    if names:
        text = f"{len(names)} tensors have no values yet, on the meta device or in a lazy module"
        remedy = "call to_empty(device=...) and initialize them, or run a lazy module once"
        yield rule.finding(names, text, remedy)


def _wants_values(weight: Weight) -> bool:
    if is_lazy(weight.value):
        return not weight.is_buffer  # a lazy norm makes its buffers itself
    return weight.value.is_meta and weight.value.numel() > 0


@rule(
    "S604",
    "nothing trains",
    "error",
    needs="weights",
    threshold="no parameter that requires a gradient",
    source="backbones that were frozen, and no head added",
)
def nothing_trains(evidence: Evidence, rule: Rule) -> Iterator[Finding]:
    """A model of which every parameter is frozen has nothing to learn with."""
    parameters = [weight for weight in evidence.weights if not weight.is_buffer]
    if not any(weight.trains for weight in parameters):
        what = f"none of its {len(parameters)} parameters requires a gradient" if parameters else "it has no parameters"
        yield rule.finding([], what, "call requires_grad_(True) on what is to train")


@rule(
    "S605",
    "batch norm with statistics of nothing",
    "warning",
    needs="weights",
    threshold="a norm in evaluation mode within a model in training mode, with the mean 0 and the variance 1 of its making",
    source="frozen batch norms of detection models: torchvision FrozenBatchNorm2d, mmsegmentation",
)
def untouched_norm(evidence: Evidence, rule: Rule) -> Iterator[Finding]:
    """A frozen batch norm that no data ever went through has a mean of 0 and a variance of 1, and so does nothing.

    Norms of a model that is in evaluation mode as a whole are left out: it may be on its way to training mode.
    """
    names = []
    for name, module in evidence.model.named_modules():
        frozen = isinstance(module, BATCH_NORMS) and not module.training and evidence.model.training
        frozen = frozen or type(module).__name__ == "FrozenBatchNorm2d"
        mean, variance = getattr(module, "running_mean", None), getattr(module, "running_var", None)
        if not (frozen and isinstance(mean, Tensor) and isinstance(variance, Tensor)) or mean.is_meta:
            continue
        if not bool(mean.any()) and bool((variance == 1).all()):
            names.append(name)
    if names:
        text = f"{len(names)} batch norms are frozen with statistics that no data ever made"
        yield rule.finding(names, text, "load pretrained statistics, or have them in training mode: module.train()")
