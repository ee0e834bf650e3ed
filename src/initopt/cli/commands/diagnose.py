"""``initopt diagnose``."""

from __future__ import annotations

from jsonargparse import ArgumentParser

import initopt
from initopt.cli.commands.base import Command, Request
from initopt.cli.optimizer import add_optimizer_options, named_optimizer
from initopt.cli.output import Output, add_output_options
from initopt.cli.own_model import OWN_MODEL, add_common_options, make_problem
from initopt.diagnosis.diagnosis import CONTENTS

__all__ = ["COMMAND"]

_GIVEN = ("num_batches", "num_subbatches", "budget")


def _add_options(parser: ArgumentParser) -> None:
    group = parser.add_argument_group("what to look at")
    group.add_function_arguments(
        initopt.diagnose,
        as_group=False,
        skip={"model", "loader", "loss_fn", "optimizer", "tries", "select", "ignore", "seed", "progress"},
        fail_untyped=False,
    )
    add_optimizer_options(group)
    group.add_argument("--tries", type=str | None, metavar="NAMES", help="remedies to try: orthogonal,lsuv,nio; or none")
    group.add_argument("--select", type=str | None, metavar="CODES", help="rules to ask, or their beginnings: W,A201")
    group.add_argument("--ignore", type=str | None, metavar="CODES", help="rules not to ask, likewise")
    add_common_options(parser)
    add_output_options(parser, "a page, JSON and CSV")


def _listed(given: str | None) -> list[str] | None:
    return None if given is None else [name.strip() for name in given.split(",") if name.strip()]


def _run(request: Request) -> None:
    options = request.options
    output = Output.checked(request, CONTENTS)
    optimizer = named_optimizer(options)
    tries = () if options["tries"] == "none" else _listed(options["tries"])
    model, batches, loss = make_problem(request)
    found = initopt.diagnose(
        model,
        batches,
        loss,
        optimizer=optimizer,
        tries=tries,
        select=_listed(options["select"]),
        ignore=_listed(options["ignore"]),
        seed=options["seed"],
        progress=request.progress,
        **{name: options[name] for name in _GIVEN},
    )
    print(found)
    output.save(found)
    output.write(found.to_dict(), request)


COMMAND = Command(
    usage="initopt diagnose --model PATH [--model.ARG VALUE ...]\n"
    "                        --data PATH [--data.ARG VALUE ...] [options]",
    description="""\
Say what is wrong with the start of a network, in which layer, and what would
cure it, from one pass over a few batches. Remedies are tried on a copy; with
--optimizer and --lr, it is trained for a few steps, too.""",
    examples="""\
examples:
  initopt diagnose --model plain_mlp --model.depth 30 --data digits
  initopt diagnose --model my_net.Net --data my_net.batches --optimizer AdamW --lr 3e-4 --output diagnosis""",
    add_options=_add_options,
    run=_run,
    components=OWN_MODEL,
)
