"""Estimates of the memory that engines are going to need."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from initopt.model.double_backward import plain_attention
from initopt.model.problem import Batch, Problem
from initopt.model.randomness import seeded
from initopt.model.sharded import own_part

__all__ = ["Need", "bytes_in_words", "estimate", "need_of_whole_weights"]

_GRAPHS = 3.5
"""Peak of an engine that keeps all graphs, in what a forward pass over the same samples saves: 2.1 to 3.5 in
docs/benchmarks.md."""

_ONE_GRAPH = 4.0
"""The same for the graph of one sub-batch and its double backward, at their most."""


class Need:
    """Bytes that engines need beside model and batch, by estimate.

    Args:
        saved: bytes that the forward pass over one sub-batch saves for its backward pass.
        parameters: bytes of a gradient.
        count: D, the number of sub-batches.
        samples: samples in a sub-batch.
    """

    def __init__(self, saved: int, parameters: int, count: int, samples: int) -> None:
        self._saved, self._count, self._samples = saved, count, samples
        self._gradients = 2 * count * parameters  # g_d and v_d

    @property
    def keeping_graphs(self) -> float:
        """The need of the engines ``graph`` and ``groups``."""
        return self._gradients + _GRAPHS * self._count * self._saved

    @property
    def recomputing(self) -> float:
        """The need of the engine ``recompute`` with whole sub-batches."""
        return self._gradients + _ONE_GRAPH * self._saved

    def microbatch(self, budget: float) -> int:
        """The number of samples that ``recompute`` may run at a time, at least one."""
        share = (budget - self._gradients) / (_ONE_GRAPH * self._saved) if self._saved else 1.0
        return max(1, min(self._samples, int(share * self._samples)))


def estimate(problem: Problem, batch: Batch) -> Need:
    """Estimate what a step on a batch needs, by a forward pass over its first sub-batch."""
    seen: dict[int, int] = {}
    # A parameter that a layer saves takes nothing more.
    own = {p.untyped_storage().data_ptr() for p in problem.model.parameters()}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.layout is torch.strided and tensor.untyped_storage().data_ptr() not in own:
            seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
    with plain_attention(), seeded(*batch.seed, 0), hooks:
        loss = problem.subbatch_loss(batch, 0)
    del loss  # alive so far, so that no two tensors had one place
    parameters = sum(p.value.numel() * p.value.element_size() for p in problem.grad_params)
    return Need(sum(seen.values()), parameters, len(batch.windows), len(batch.windows.indices[0]))


def need_of_whole_weights(model: nn.Module, count: int) -> int:
    """Bytes that a model in parts needs on each device to have its whole weights there, and the gradients of sub-batches.

    Args:
        model: in parts on several devices.
        count: D, the number of sub-batches.
    """
    weights = sum((p.numel() - own_part(p).numel()) * p.element_size() for p in model.parameters())
    gradient = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    return weights + 2 * count * gradient  # g_d and v_d


def bytes_in_words(number: float) -> str:
    """Bytes in words.

    >>> bytes_in_words(3.21e8)
    '321 MB'
    """
    return f"{number / 1e9:.1f} GB" if number >= 1e9 else f"{number / 1e6:.0f} MB"
