"""Functions that make an optimizer, and the learning rates of an optimizer."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from initopt._support.errors import warn
from initopt.model.sharded import part_behind

__all__ = ["OptimizerFactory", "Rates", "check_optimizer", "make_optimizer", "needs_closure", "places_of", "takes_rate"]

OptimizerFactory = Callable[..., torch.optim.Optimizer] | torch.optim.Optimizer
"""A function of parameters, or of parameters and a learning rate, such as ``functools.partial(torch.optim.AdamW,
lr=3e-4)``; or an optimizer of the model."""

_HINT = "pass functools.partial(torch.optim.AdamW, lr=3e-4), say, or the optimizer of the model"


def check_optimizer(optimizer: OptimizerFactory | None, with_rate: bool = False) -> None:
    """Refuse what does not make an optimizer of parameters alone, or of parameters and a learning rate.

    Args:
        optimizer: what was given.
        with_rate: whether it will be called with a learning rate wherever it takes one, so that it need not have its own.

    Raises:
        TypeError: the message says what does.

    Warns:
        InitoptWarning: if a schedule has changed the rate of one that is given as such.
    """
    if optimizer is None:
        return
    if isinstance(optimizer, torch.optim.Optimizer):
        _look_for_schedule(optimizer)
        return
    if not callable(optimizer):
        raise TypeError(
            f"optimizer must be a function that makes one of parameters; got {type(optimizer).__name__}; {_HINT}"
        )
    if with_rate and takes_rate(optimizer):
        return
    try:
        inspect.signature(optimizer).bind(())
    except TypeError as error:
        raise TypeError(f"optimizer cannot be called with the parameters alone ({error}); {_HINT}") from None
    except ValueError:  # has no signature
        pass


def _look_for_schedule(optimizer: torch.optim.Optimizer) -> None:
    """Warn where a schedule begins below the rate that it is a schedule of."""
    for group in optimizer.param_groups:
        now = float(group.get("lr", 0.0))
        base = float(group.get("initial_lr", now))
        if now > 0 and not math.isclose(now, base, rel_tol=1e-6):
            warn(
                f"a schedule has the optimizer's learning rate at {now:g} now, and {base:g} is its base; {now:g} is taken "
                "as yours. For another one, pass functools.partial of the optimizer's class with it"
            )
            return


def needs_closure(optimizer: torch.optim.Optimizer) -> bool:
    """Whether a step of an optimizer evaluates the loss itself, several times, as that of LBFGS does."""
    step = inspect.signature(type(optimizer).step).parameters.get("closure")
    return step is not None and step.default is inspect.Parameter.empty


def takes_rate(optimizer: OptimizerFactory) -> bool:
    """Whether a function can be called with parameters and a learning rate, as ``lr`` or as its second argument.

    >>> from functools import partial
    >>> takes_rate(partial(torch.optim.SGD, lr=0.1)), takes_rate(lambda parameters: torch.optim.SGD(parameters, 0.1))
    (True, False)
    """
    return not isinstance(optimizer, torch.optim.Optimizer) and _rate_argument(optimizer) is not None


def _rate_argument(optimizer: Callable[..., Any]) -> str | None:
    """``"lr"`` if it takes that by name, ``""`` if its second argument is required, and ``None`` if it takes no rate."""
    try:
        signature = inspect.signature(optimizer)
    except ValueError:
        return None
    if "lr" in signature.parameters and _fits(signature, lr=0.1):
        return "lr"
    return "" if not _fits(signature) and _fits(signature, 0.1) else None


def _fits(signature: inspect.Signature, *more: Any, **named: Any) -> bool:
    try:
        signature.bind((), *more, **named)
    except TypeError:
        return False
    return True


def make_optimizer(
    optimizer: OptimizerFactory,
    parameters: Sequence[Tensor],
    places: Mapping[int, int] | None = None,
    lr: float | None = None,
) -> torch.optim.Optimizer:
    """An optimizer of other parameters.

    Args:
        optimizer: what makes it, or one whose class and settings it has.
        parameters: for which it is made.
        places: the parameters that stand for those of the given optimizer, by the id of the latter; for one that is given
            as such. By default, the parameters are its own.
        lr: the learning rate of its first group, in the place of the one that ``optimizer`` gives by itself. A function
            that takes a rate is called with it; else the rates of all groups are multiplied by one number.

    Raises:
        TypeError: if what was made is not an optimizer.
        ValueError: if the optimizer has none of the parameters, or of those that it is made for.
    """
    if isinstance(optimizer, torch.optim.Optimizer):
        made = _like(optimizer, parameters, places_of(parameters) if places is None else places)
    else:
        argument = None if lr is None else _rate_argument(optimizer)
        if lr is None or argument is None:
            made = optimizer(parameters)
        else:
            made = optimizer(parameters, lr=lr) if argument else optimizer(parameters, lr)
    if not isinstance(made, torch.optim.Optimizer):
        raise TypeError(f"optimizer made {type(made).__name__}, which is not a torch.optim.Optimizer")
    known = set(map(id, parameters))
    if not any(id(p) in known for group in made.param_groups for p in group["params"]):
        raise ValueError(
            "optimizer makes one that has none of the parameters that it is given; make it of its first argument, since "
            "these may be those of a copy"
        )
    for group in made.param_groups:
        if isinstance(group.get("lr"), Tensor):  # the user's own, which a change of the rate would write to
            group["lr"] = group["lr"].clone()
    if lr is not None:
        rates = Rates(made)
        if rates.first != lr:
            rates.scale(lr / rates.first)
    return made


def places_of(parameters: Iterable[Tensor]) -> dict[int, int]:
    """The place of each parameter by its id, for :func:`make_optimizer`.

    One that is whole for a while has also the id of that in parts which it stands for, since an optimizer has those.
    """
    return {id(each): place for place, p in enumerate(parameters) for each in (p, part_behind(p))}


def _like(
    optimizer: torch.optim.Optimizer, parameters: Sequence[Tensor], places: Mapping[int, int]
) -> torch.optim.Optimizer:
    groups: list[dict[str, Any]] = []
    for group in optimizer.param_groups:
        inner = [parameters[places[id(p)]] for p in group["params"] if id(p) in places]
        if inner:
            groups.append({name: value for name, value in group.items() if name != "params"} | {"params": inner})
    if not groups:
        raise ValueError("the optimizer has none of the model's trainable parameters; was it made for another model?")
    return type(optimizer)(groups, **_accepted(type(optimizer), optimizer.defaults))


def _accepted(kind: type, defaults: dict[str, Any]) -> dict[str, Any]:
    known = inspect.signature(kind).parameters
    return {name: value for name, value in defaults.items() if name in known}


class Rates:
    """The learning rates of the groups of an optimizer, as they are now, all to be multiplied by the same number.

    Args:
        optimizer: whose they are.

    >>> optimizer = torch.optim.SGD([{"params": [torch.zeros(1)]}, {"params": [torch.ones(1)], "lr": 0.5}], lr=0.1)
    >>> rates = Rates(optimizer)
    >>> rates.scale(2.0)
    >>> rates.first, [group["lr"] for group in optimizer.param_groups]
    (0.1, [0.2, 1.0])
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._optimizer = optimizer
        self._own = [float(group["lr"]) for group in optimizer.param_groups]

    @property
    def first(self) -> float:
        """The rate of the first group, which stands for all."""
        return self._own[0]

    def scale(self, factor: float) -> None:
        """Set each rate to its first value times a factor."""
        for group, own in zip(self._optimizer.param_groups, self._own, strict=True):
            if isinstance(group["lr"], Tensor):  # which a captured graph reads
                group["lr"].fill_(own * factor)
            else:
                group["lr"] = own * factor
