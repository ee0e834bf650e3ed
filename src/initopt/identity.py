"""Whether two runs are the same run, so that one can go on where the other was killed."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor, nn

from initopt.losses import LossFunction
from initopt.methods import Method
from initopt.parameters import trainable_parameters
from initopt.problem import Problem
from initopt.storage import plain
from initopt.trees import named_tensors

__all__ = ["differences", "fingerprint", "identify", "kind"]

_FREE = {"steps", "scale_params", "grad_params", "microbatch", "memory_budget"}
"""Options that may change: a run can be made longer, and take another amount of memory; of the filters, what they select
counts, and not their name."""


def identify(
    method: Method, loss_fn: LossFunction | None, problem: Problem, others: Mapping[str, Any], generators: Iterable[str]
) -> dict[str, Any]:
    """All that the steps depend on but for the batches and the weights, as JSON has it.

    Args:
        method: with its options.
        loss_fn: as the user gave it; it counts by its name.
        problem: with the selected parameters.
        others: further options that have to be the same.
        generators: names of the generators that the loader has.
    """
    options = {field.name: getattr(method, field.name) for field in fields(method) if field.name not in _FREE}
    identity = {
        "method": method.name,
        "options": options | dict(others),
        "loss_fn": _named(loss_fn),
        "generators": sorted(generators),
        "parameters": {p.name: kind(p.value) for p in trainable_parameters(problem.model)},
        "scale_params": [p.name for p in problem.scale_params],
        "grad_params": [p.name for p in problem.grad_params],
        "fixed": {name: fingerprint(value) for name, value in _fixed(problem.model).items()},
    }
    found: dict[str, Any] = plain(identity)
    return found


def differences(was: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """In what two runs differ, a line each; none if they are the same."""
    lines = _changes("{}", {"method": was["method"]}, {"method": now["method"]})
    lines += _changes("{}", was["options"], now["options"])
    lines += _changes("{}", {"loss_fn": was["loss_fn"]}, {"loss_fn": now["loss_fn"]})
    lines += _changes("generators of the {}", {"loader": was["generators"]}, {"loader": now["generators"]})
    lines += _changes("parameter {!r}", was["parameters"], now["parameters"], absent="absent", show=str)
    both = was["parameters"].keys() & now["parameters"].keys()
    for name in ("scale_params", "grad_params"):
        lines += [f"{name} selected {p!r} and does no longer" for p in was[name] if p in both and p not in now[name]]
        lines += [f"{name} selects {p!r} and did not before" for p in now[name] if p in both and p not in was[name]]
    fixed = {**was["fixed"], **now["fixed"]}
    lines += [
        f"{name!r}, a buffer or frozen parameter, has other values"
        for name in fixed
        if was["fixed"].get(name) != now["fixed"].get(name)
    ]
    return lines


def _changes(title: str, was: Mapping[str, Any], now: Mapping[str, Any], absent: Any = None, show: Any = repr) -> list[str]:
    return [
        f"{title.format(name)} was {show(was.get(name, absent))} and is {show(now.get(name, absent))}"
        for name in {**was, **now}
        if was.get(name, absent) != now.get(name, absent)
    ]


def fingerprint(tree: Any) -> str:
    """A hash of the names, shapes, dtypes and values of all tensors of a nest."""
    found = hashlib.blake2b(digest_size=16)
    for name, tensor in named_tensors(tree):
        found.update(f"{name} {kind(tensor)};".encode())
        if not tensor.is_meta:
            found.update(_values(tensor))
    return found.hexdigest()


def _values(tensor: Tensor) -> Any:
    """The bytes of a tensor; none of one of another kind (quantized, say), which counts by its shape."""
    try:
        dense = tensor.detach().cpu().to_dense().resolve_conj().resolve_neg().contiguous()
        return dense.reshape(-1).view(torch.uint8).numpy()
    except (RuntimeError, TypeError):
        return b""


def _fixed(model: nn.Module) -> dict[str, Tensor]:
    frozen = {name: value for name, value in model.named_parameters() if not value.requires_grad}
    return frozen | dict(model.named_buffers())


def kind(tensor: Tensor) -> str:
    """The dtype and shape of a tensor.

    >>> kind(torch.zeros(2, 3))
    'float32 [2, 3]'
    """
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def _named(loss_fn: LossFunction | None) -> Any:
    function: Any = loss_fn
    while isinstance(function, functools.partial):
        function = function.func
    return plain(function)
