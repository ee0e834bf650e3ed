"""``initopt choose``."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from jsonargparse import ArgumentParser
from torch import nn

import initopt
from initopt.choice.choice import CONTENTS
from initopt.cli.commands.base import Command, Request
from initopt.cli.optimizer import add_optimizer_options, needed_optimizer
from initopt.cli.output import Output, add_output_options
from initopt.cli.own_model import OWN_MODEL, add_common_options, make_problem

__all__ = ["COMMAND"]

_CHANGES = 10
"""The exit status if another start, or another rate, is clearly better."""

_GIVEN = ("steps", "seeds", "more_seeds", "clip_grad_norm", "held_out", "budget", "workers")


def _add_options(parser: ArgumentParser) -> None:
    add_optimizer_options(parser.add_argument_group("what to train with"))
    group = parser.add_argument_group("what to try")
    group.add_argument(
        "--starts",
        type=str | None,
        metavar="NAMES",
        help="starts beside the network's own: names of schemes and methods, with a plus between what works one after the "
        "other, as in orthogonal,lsuv,nio,lsuv+nio; by default, those that fit the network",
    )
    group.add_argument(
        "--lrs",
        type=str | float | list[float] | None,
        metavar="RATES",
        help="learning rates to try beside --lr: a list, or around, for a third and three times of it",
    )
    group.add_argument("--held_out", type=int, default=10, help="batches to judge by; a quarter of all at most")
    group.add_function_arguments(
        initopt.choose,
        as_group=False,
        skip={
            *("make_model", "loader", "optimizer", "loss_fn", "starts", "lrs", "step", "held_out", "seed", "progress"),
            "process_group",
        },
        fail_untyped=False,
    )
    add_common_options(parser)
    add_output_options(parser, "a page, a picture, JSON and CSV")


def _starts(given: str | None) -> list[Any] | None:
    """What ``--starts`` says: names, and lists of names where there is a plus.

    >>> _starts("orthogonal, lsuv+nio")
    ['orthogonal', ['lsuv', 'nio']]
    """
    if given is None:
        return None
    parts = [[name.strip() for name in start.split("+") if name.strip()] for start in given.split(",") if start.strip()]
    return [part[0] if len(part) == 1 else part for part in parts]


def _on_device(make: Callable[[], nn.Module], device: torch.device) -> nn.Module:
    return make().to(device)


def _run(request: Request) -> int:
    options = request.options
    output = Output.checked(request, CONTENTS)
    optimizer = needed_optimizer(options)
    if options["lr"] is None and "lr" not in (options["optimizer_options"] or {}):
        raise ValueError("--lr is missing: the learning rate that you train at; others to try go into --lrs")
    model, batches, loss = make_problem(request)
    device = next(model.parameters()).device

    lrs = options["lrs"]
    found = initopt.choose(
        functools.partial(_on_device, request.components["model"].maker(request.arguments["model"]), device),
        batches,
        optimizer,
        loss,
        starts=_starts(options["starts"]),
        lrs=[lrs] if isinstance(lrs, (int, float)) else lrs,
        seed=options["seed"],
        progress=request.progress,
        **{name: options[name] for name in _GIVEN},
    )
    print(found)
    output.save(found)
    output.write(found.to_dict(), request)
    if not found.trains:
        return 1
    return _CHANGES if found.changes else 0


COMMAND = Command(
    usage="initopt choose --model PATH [--model.ARG VALUE ...]\n"
    "                      --data PATH [--data.ARG VALUE ...] --optimizer NAME --lr X [options]",
    description="""\
Find out by short trainings which start is best for a network, and at which
learning rate: side by side, on the same batches, judged on others. The network
is left alone where none is clearly better.

The exit status is 0 if the network's own start at its own rate is to be kept,
10 if another one is clearly better, and 1 if nothing trains.""",
    examples="""\
examples:
  initopt choose --model plain_mlp --model.depth 20 --data digits --optimizer SGD --lr 0.03 --optimizer_options.momentum 0.9
  initopt choose --model my_net.Net --data my_net.batches --optimizer AdamW --lr 3e-4 --lrs around --json choice.json
  initopt choose --model my_net.Net --data my_net.batches --optimizer AdamW --lr 3e-4 --starts orthogonal,lsuv+nio""",
    add_options=_add_options,
    run=_run,
    components=OWN_MODEL,
)
