"""The optimizer that the user names."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import torch

from initopt._support.checks import check_choice, check_number

__all__ = ["add_optimizer_options", "bound_class", "named_optimizer", "needed_optimizer"]


def add_optimizer_options(parser: Any) -> None:
    """Add ``--optimizer``, ``--lr`` and ``--optimizer_options`` to a parser or a group of one."""
    parser.add_argument("--optimizer", type=str | None, help="name of an optimizer in torch.optim, such as AdamW")
    parser.add_argument("--lr", type=float | None, help="its learning rate")
    parser.add_argument(
        "--optimizer_options",
        type=dict[str, Any] | None,
        metavar="OPTIONS",
        help="its other options: --optimizer_options.momentum 0.9, or {momentum: 0.9}",
    )


def named_optimizer(options: Mapping[str, Any]) -> Any:
    """What makes the optimizer that was named, of parameters and perhaps a learning rate; ``None`` if none was.

    Raises:
        ValueError: for a name, a rate or options that cannot be; the message says what can.
    """
    name, lr, others = options["optimizer"], options["lr"], options["optimizer_options"] or {}
    if name is None:
        for option, given in {"--lr": lr, "--optimizer_options": others}.items():
            if given:
                raise ValueError(f"{option} is that of an optimizer: give --optimizer, too, such as AdamW")
        return None
    known = {n: kind for n, kind in vars(torch.optim).items() if _is_optimizer(kind)}
    check_choice("--optimizer", name, known)
    made = dict(others)
    if lr is not None:
        check_number("--lr", lr, above=0, finite=True)
        made["lr"] = lr
    if not made:
        return known[name]
    try:
        known[name]([torch.zeros(1, device="cpu", requires_grad=True)], **made)
    except (TypeError, ValueError) as error:
        raise ValueError(f"--optimizer {name} does not take these options: {error}") from None
    return functools.partial(known[name], **made)


def _is_optimizer(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer)


def bound_class(made: Any) -> Any:
    """The class of an optimizer with its options, out of what jsonargparse makes of one that was named with these.

    Results and checkpoints tell an optimizer by what it shows of itself, which is that of jsonargparse otherwise.

    >>> from functools import partial
    >>> bound_class(partial(lambda kind, *args, **options: None, torch.optim.SGD, lr=0.1)).func.__name__
    'SGD'
    """
    if not isinstance(made, functools.partial):
        return made
    kind = next((value for value in made.args if _is_optimizer(value)), None)
    return made if kind is None else functools.partial(kind, **made.keywords)


def needed_optimizer(options: Mapping[str, Any]) -> Any:
    """What :func:`named_optimizer` returns, for commands that cannot do without.

    Raises:
        ValueError: if none was named, too.
    """
    optimizer = named_optimizer(options)
    if optimizer is None:
        raise ValueError("--optimizer is missing: name one in torch.optim, such as --optimizer SGD --lr 0.1")
    return optimizer
