"""``initopt measure``."""

from __future__ import annotations

import math
import textwrap
from pathlib import Path

from jsonargparse import ArgumentParser

import initopt
from initopt._support.words import columns
from initopt.cli.commands.base import Command, Request
from initopt.cli.output import Output
from initopt.cli.own_model import OWN_MODEL, add_common_options, make_problem
from initopt.gram.measurement import TITLES, Measurement

__all__ = ["COMMAND"]


def _add_options(parser: ArgumentParser) -> None:
    group = parser.add_argument_group("how to measure")
    group.add_function_arguments(
        initopt.measure, as_group=False, skip={"model", "batches", "loss_fn", "seed", "progress"}, fail_untyped=False
    )
    add_common_options(parser)
    group = parser.add_argument_group("output")
    group.add_argument("--json", type=Path | None, metavar="FILE", help="write the figures into a JSON file, too")


def _run(request: Request) -> None:
    output = Output.checked(request)
    model, batches, loss = make_problem(request)
    options = {name: value for name, value in request.options.items() if name not in {"device", "threads", "seed", "json"}}
    found = initopt.measure(model, batches, loss, progress=request.progress, **options)
    print(_figures(found))
    print()
    for sentence in _in_words(found):
        print(textwrap.fill(sentence, 80))
    output.write(found.to_dict(), request, "Figures")


def _figures(measurement: Measurement) -> str:
    """A table of the figures with their standard errors."""
    rows = [
        [TITLES[name], _number(getattr(measurement, name), 4), _number(measurement.sem[name], 2)]
        for name in measurement.measured()
    ]
    return columns(["", "mean", "std. error"], rows) + f"\n{_over(measurement)}"


def _in_words(measurement: Measurement) -> list[str]:
    """What a measurement says, in sentences, with no more certainty than its standard errors allow."""
    sentences = [_agreement(measurement.grad_cosine, measurement.sem["grad_cosine"])]
    if math.isinf(measurement.noise_scale):
        sentences.append("The noise scale is infinite: these batches show no common direction above the noise.")
    if measurement.num_batches == 1:
        sentences.append("One batch has no standard error: measure more of them before you rely on it.")
    return [*sentences, measurement.advice()]


def _agreement(value: float, error: float) -> str:
    if not math.isnan(error) and abs(value) <= 2 * error:
        return (
            "GradCosine cannot be told from 0 within its error: as far as these batches show, the sub-batches pull the "
            "weights in unrelated directions."
        )
    if value < 0:
        return "GradCosine is negative: a step that helps one sub-batch tends to harm another."
    if value < 0.2:
        return "GradCosine is near 0: the sub-batches pull the weights in nearly unrelated directions."
    if value < 0.7:
        return "The sub-batches agree in part on where the weights should go."
    return "GradCosine is near 1: the sub-batches agree on where the weights should go."


def _number(value: float, digits: int) -> str:
    if math.isnan(value):
        return "-"
    text = f"{value:.{digits}g}"
    return f"{value:.0f}" if "e+" in text and abs(value) < 1e6 else text


def _over(measurement: Measurement) -> str:
    count, subbatches = measurement.gram.shape[:2]
    sizes = sorted({round(size) for size in measurement.small_batch})
    size = str(sizes[0]) if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}"
    batches = "1 batch" if count == 1 else f"{count} batches"
    return f"over {batches}, each in {subbatches} sub-batches of {size} samples"


COMMAND = Command(
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
  initopt measure --config measure.yaml --num_batches 20 --json figures.json""",
    add_options=_add_options,
    run=_run,
    components=OWN_MODEL,
    renamed={"steps": "num_batches"},
)
