"""Weights for a model that was made on the meta device, which has none."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from initopt._support._torch_private import buffers_of, parameters_of, reset_of
from initopt._support.checks import check_integer
from initopt._support.words import first_few
from initopt.model.randomness import seeded
from initopt.model.sharded import is_sharded, part_of
from initopt.model.wrappers import bare
from initopt.schemes.apply import Applied, apply_
from initopt.schemes.base import Scheme
from initopt.schemes.draws import reset_whole

__all__ = ["materialize_"]

Otherwise = Callable[[str, Tensor], object]
"""Fills a tensor in place, given its name."""


def materialize_(
    model: nn.Module,
    scheme: str | Scheme = "default",
    *,
    device: torch.device | str | None = None,
    otherwise: Otherwise | None = None,
    seed: int | None = None,
    **options: Any,
) -> Applied:
    """Give a model on the meta device memory and weights, in place, also one that is sharded over devices.

    For models that are too large to be made in one place: made under ``torch.device("meta")``, sharded
    (``torch.distributed.fsdp.fully_shard``, ``parallelize_module``), and only then given weights. Every module draws its
    own by ``reset_parameters()``, and then the scheme those that it is for. Each tensor is drawn whole on the CPU, the same
    on every rank for any number of them, and each rank keeps its part, so that no rank ever holds the model.

    Args:
        model: the model, all of it on the meta device.
        scheme: as for :func:`initopt.schemes.apply_`: those that draw tensor by tensor.
        device: where to put it; by default the present CUDA device, if there is one, and otherwise the CPU.
        otherwise: a function of (name, tensor) that fills what no module of the model draws by itself, parameters and
            buffers; it writes a whole tensor on the CPU.
        seed: of all that is drawn, which has to be the same on all ranks; follows from torch's random state if not given.
        **options: those of the scheme.

    Returns:
        What the scheme has set, and what it has left as the modules themselves have drawn it.

    Raises:
        ValueError: if the model is not on the meta device; if something in it is filled by no module, and ``otherwise`` is
            not given, or leaves it. The message names it. By then the model has memory, but its values mean nothing.

    >>> import initopt
    >>> with torch.device("meta"):
    ...     model = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 3))
    >>> applied = initopt.schemes.materialize_(model, "kaiming_normal", seed=0)
    >>> applied.set, model[0].weight.device.type
    (('0.weight', '0.bias', '2.weight', '2.bias'), 'cpu')
    """
    model = bare(model)
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    there = [name for name, tensor in tensors.items() if not tensor.is_meta]
    if there:
        raise ValueError(
            f"{first_few(list(map(repr, there)))} is not on the meta device: materialize_ is for a model that has no "
            'values yet, made under torch.device("meta"); initopt.schemes.apply_ is for one that has'
        )
    number = int(torch.randint(2**31, ())) if seed is None else check_integer("seed", seed, 0)
    model.to_empty(device=_default_device() if device is None else device)
    _forget(model)
    with seeded(number):
        for module in reversed(list(model.modules())):
            reset = reset_of(module)
            if reset is not None:
                reset_whole(module, reset, all_of_it=True)
    unset = _unset(model)
    if otherwise is not None:
        for name in unset:
            with seeded(number, list(tensors).index(name)):
                _fill(model, name, otherwise)
        unset = [name for name in _unset(model) if tensors[name].dtype != torch.bool]
    if unset:
        raise ValueError(
            f"{first_few(list(map(repr, unset)))}: no module fills it by reset_parameters(), so it has no values; give "
            "otherwise=, a function of (name, tensor) that does, or give its module a reset_parameters()"
        )
    return apply_(model, scheme, seed=number, **options)


def _default_device() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def _own(model: nn.Module) -> dict[str, Tensor]:
    """All parameters and buffers, or this rank's parts of them, by name."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        whole: Any = tensor
        found[name] = whole.to_local() if is_sharded(whole) else whole.detach()
    return found


@torch.no_grad()
def _forget(model: nn.Module) -> None:
    """Mark everything as unset: numbers as nan, others by a value that nobody has."""
    for tensor in _own(model).values():
        tensor.fill_(_mark(tensor))


def _mark(tensor: Tensor) -> Any:
    if tensor.is_floating_point() or tensor.is_complex():
        return math.nan
    return False if tensor.dtype == torch.bool else torch.iinfo(tensor.dtype).min


def _unset(model: nn.Module) -> list[str]:
    """Names of what is marked; of truth values, of which none can be a mark, all."""

    def marked(tensor: Tensor) -> bool:
        if tensor.is_floating_point() or tensor.is_complex():
            return bool(tensor.isnan().any())
        return tensor.dtype == torch.bool or bool((tensor == _mark(tensor)).any())

    return [name for name, tensor in _own(model).items() if tensor.numel() and marked(tensor)]


def _fill(model: nn.Module, name: str, otherwise: Otherwise) -> None:
    prefix, _, own = name.rpartition(".")
    module = model.get_submodule(prefix)
    tensor: Tensor | None = parameters_of(module).get(own)
    tensor = buffers_of(module)[own] if tensor is None else tensor
    assert tensor is not None
    whole = torch.full(tensor.shape, _mark(tensor), dtype=tensor.dtype, device="cpu")
    with torch.no_grad():
        otherwise(name, whole)
        target: Any = tensor
        (target.to_local() if is_sharded(target) else target).copy_(part_of(tensor, whole))
