"""``initopt find-lr``."""

from __future__ import annotations

from jsonargparse import ArgumentParser

import initopt
from initopt.choice.rate_result import CONTENTS
from initopt.cli.commands.base import Command, Request
from initopt.cli.optimizer import add_optimizer_options, needed_optimizer
from initopt.cli.output import Output, add_output_options
from initopt.cli.own_model import OWN_MODEL, add_common_options, make_problem

__all__ = ["COMMAND"]

_GIVEN = ("seeds", "steps", "sweep_steps", "warmup_steps", "min_lr", "max_lr", "precision", "num_batches", "budget")


def _add_options(parser: ArgumentParser) -> None:
    add_optimizer_options(parser.add_argument_group("what to train with; --lr, if given, is tried, too"))
    group = parser.add_argument_group("how to search")
    group.add_function_arguments(
        initopt.find_lr,
        as_group=False,
        skip={"model", "loader", "loss_fn", "optimizer", "step", "seed", "progress", "process_group"},
        fail_untyped=False,
    )
    add_common_options(parser)
    add_output_options(parser, "a picture and JSON")


def _run(request: Request) -> int:
    options = request.options
    output = Output.checked(request, CONTENTS)
    optimizer = needed_optimizer(options)
    model, batches, loss = make_problem(request)
    found = initopt.find_lr(
        model,
        batches,
        optimizer,
        loss,
        seed=options["seed"],
        progress=request.progress,
        **{name: options[name] for name in _GIVEN},
    )
    print(found)
    output.save(found, "Picture and JSON")
    output.write(found.to_dict(), request)
    return 0 if found.suggested is not None else 1


COMMAND = Command(
    usage="initopt find-lr --model PATH [--model.ARG VALUE ...]\n"
    "                       --data PATH [--data.ARG VALUE ...] --optimizer NAME [options]",
    description="""\
Find the learning rates that suit the start of a network, by training it for a
few steps at many of them, with several orders of batches: the best one with an
interval, the largest stable one, and whether a warm-up allows a higher one.
Exit status 1 if there is no rate to suggest.""",
    examples="""\
examples:
  initopt find-lr --model plain_mlp --data digits --optimizer SGD --lr 0.1 --optimizer_options.momentum 0.9
  initopt find-lr --model my_net.Net --data my_net.batches --optimizer AdamW --output rates""",
    add_options=_add_options,
    run=_run,
    components=OWN_MODEL,
)
