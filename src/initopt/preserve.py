"""Everything a user's model and process had before, back again afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from initopt.interrupts import shielded, terminable
from initopt.modes import BufferGuard
from initopt.randomness import RandomState

__all__ = ["Originals", "preserved", "put_values", "unwritten"]

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
    with terminable(), torch.inference_mode(False), torch.enable_grad(), _fresh_casts():
        # A stack of its own for each, so that none is left out should another fail.
        restoring = ExitStack()
        restoring.callback(RandomState.now().put_back)
        for parameter in model.parameters():
            restoring.callback(_put_back_flags, parameter, parameter.grad, parameter.requires_grad)
        for module in model.modules():
            restoring.callback(setattr, module, "training", module.training)
        restoring.callback(BufferGuard(model).put_back)
        originals = {p: p.detach().clone() for p in model.parameters() if p.requires_grad}
        succeeded = False
        try:
            yield originals
            succeeded = True
        finally:
            with shielded(), restoring:
                if not succeeded:
                    put_values(originals)


@contextmanager
def unwritten(model: nn.Module) -> Iterator[Callable[[], None]]:
    """Keep a model's state, its parameter values included, however the block ends.

    A copy of all parameters is the memory of a gradient. So the block calls what it is given once the model has run: from
    then on, only parameters that this run wrote to (an embedding with ``max_norm`` does) have a copy.

    Raises:
        RuntimeError: if a parameter is written to later that was not at first, which cannot be undone.
    """
    with preserved(model) as copies:
        versions = {parameter: parameter._version for parameter in copies}
        names = {parameter: name for name, parameter in model.named_parameters()}

        def forget() -> None:
            for parameter in [p for p in copies if p._version == versions[p]]:
                del copies[parameter]

        yield forget
        put_values(copies)
        late = [names[p] for p, version in versions.items() if p not in copies and p._version != version]
        if late:
            raise RuntimeError(
                f"the model's forward pass wrote to parameter {', '.join(map(repr, late[:3]))}, and not yet in its first "
                "run; its value is now another one"
            )


def put_values(values: Mapping[nn.Parameter, Tensor]) -> None:
    """Copy values into parameters."""
    with torch.no_grad():
        for parameter, value in values.items():
            parameter.copy_(value)


def _put_back_flags(parameter: nn.Parameter, gradient: Tensor | None, requires_grad: bool) -> None:
    parameter.grad = gradient
    if parameter.requires_grad != requires_grad:
        parameter.requires_grad_(requires_grad)


@contextmanager
def _fresh_casts() -> Iterator[None]:
    """Autocast without its cache of cast weights, which does not notice that weights are written to."""
    enabled = torch.is_autocast_cache_enabled()
    torch.clear_autocast_cache()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(enabled)
        torch.clear_autocast_cache()
