"""Everything a user's model and process had before, back again afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from initopt.interrupts import shielded, terminable
from initopt.modes import BufferGuard
from initopt.randomness import RandomState

__all__ = ["preserved"]

Originals = dict[nn.Parameter, Tensor]
"""Trainable parameters with a copy of their values."""


@contextmanager
def preserved(model: nn.Module) -> Iterator[Originals]:
    """Keep a model's state: all of it on failure, all but the parameter values on success.

    When the block ends, training modes, buffers, gradients, ``requires_grad`` flags and the random state (torch, NumPy,
    Python) are as before. When it ends by an exception, Ctrl-C or SIGTERM, the parameter values are, too.

    Yields:
        the values of the trainable parameters as they were.
    """
    with terminable(), torch.inference_mode(False), torch.enable_grad():
        randomness = RandomState.now()
        buffers = BufferGuard(model)
        modes = [(module, module.training) for module in model.modules()]
        gradients = [(p, p.grad, p.requires_grad) for p in model.parameters()]
        originals = {p: p.detach().clone() for p in model.parameters() if p.requires_grad}
        succeeded = False
        try:
            yield originals
            succeeded = True
        finally:
            with shielded():
                if not succeeded:
                    with torch.no_grad():
                        for parameter, value in originals.items():
                            parameter.copy_(value)
                buffers.put_back()
                for module, training in modes:
                    module.training = training
                for parameter, gradient, requires_grad in gradients:
                    parameter.grad = gradient
                    parameter.requires_grad_(requires_grad)
                randomness.put_back()
