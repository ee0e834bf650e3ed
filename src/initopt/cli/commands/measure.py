"""``initopt measure``."""

from __future__ import annotations

import textwrap
from pathlib import Path

from jsonargparse import ArgumentParser

import initopt
from initopt._support.files import check_file, write_file, write_json
from initopt.cli.choices import CHOICES, add_common_options, make_problem
from initopt.cli.commands.base import Command, Request, figures, in_words

__all__ = ["MEASURE"]

_OWN_OPTIONS = {"device", "threads", "seed", "json"}


def _add_options(parser: ArgumentParser, method: str) -> None:
    group = parser.add_argument_group("how to measure")
    group.add_function_arguments(
        initopt.measure, as_group=False, skip={"model", "batches", "loss_fn", "seed", "progress"}, fail_untyped=False
    )
    add_common_options(parser)
    group = parser.add_argument_group("output")
    group.add_argument("--json", type=Path | None, metavar="FILE", help="write the figures into a JSON file, too")


def _run(request: Request) -> None:
    path = request.options["json"]
    if path is not None:
        path = path.expanduser()
        check_file(path, f"--json {path}")
    model, batches, loss = make_problem(request)
    options = {name: value for name, value in request.options.items() if name not in _OWN_OPTIONS}
    found = initopt.measure(model, batches, loss, progress=request.progress, **options)
    print(figures(found))
    print()
    for sentence in in_words(found):
        print(textwrap.fill(sentence, 80))
    if path is not None:
        record = {"initopt": initopt.__version__, "config": request.config} | found.to_dict()
        write_file(path, lambda temporary: write_json(temporary, record))
        print(f"\nFigures in {path}")


MEASURE = Command(
    name="measure",
    summary="measure how well the gradients agree, changing nothing",
    usage="initopt measure --model PATH [--model.ARG VALUE ...]\n"
    "                       --data PATH [--data.ARG VALUE ...] [options]",
    description="""\
Measure a network at its starting point, on its own data, without changing it.

Each batch is split into sub-batches. GradCosine, in [-1, 1], is the mean cosine
similarity of their gradients: near 1, they agree on where the weights should
go; near 0, they pull in unrelated directions (arXiv 2210.05956). Also printed:
gradient norm, gradient variance, and the gradient noise scale, the batch size
at which noise and signal are of one size (arXiv 1812.06162). All are means over
the batches, with standard errors.""",
    examples="""\
examples:
  initopt measure --model my_net.Net --model.depth 20 --data digits
  initopt measure --config measure.yaml --num-batches 20 --json figures.json""",
    choices=CHOICES,
    add_options=_add_options,
    run=_run,
    renamed={"steps": "num_batches"},
)
