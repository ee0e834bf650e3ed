"""What a command is, and what it is asked to do."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser

from initopt.cli.components import Component
from initopt.gram.measurement import TITLES, Measurement

__all__ = ["Command", "Request", "figures", "in_words", "table"]


@dataclass(frozen=True)
class Request:
    """A command line, understood.

    Attributes:
        components: those that were chosen, by option.
        arguments: the arguments of each component.
        method: name of the method.
        options: every other option.
        progress: whether to show a progress bar; ``None`` where that was left open.
        config: all of it as it would stand in a YAML file.
        given: the names of the options on the command line, not in a file.
    """

    components: Mapping[str, Component]
    arguments: Mapping[str, Mapping[str, Any]]
    method: str
    options: Mapping[str, Any]
    progress: bool | None
    config: Mapping[str, Any] = field(repr=False)
    given: frozenset[str] = frozenset()

    def make(self, option: str) -> Any:
        """The object that a component stands for, or ``None`` if none was chosen."""
        chosen = self.components.get(option)
        return None if chosen is None else chosen.make(self.arguments[option])


@dataclass(frozen=True)
class Command:
    """A subcommand.

    Attributes:
        name: of the command.
        summary: what it does, in a line.
        usage: its form, without the options that can be left out.
        description: what it does.
        examples: command lines, shown at the end of its help.
        choices: what has to be chosen before its options are known, with a help text each.
        add_options: adds the options, given the name of the method.
        run: does it.
        as_batches: whether it takes data as batches; else in three parts.
        recipes: files of options that go by a name, for ``--recipe``; ``None`` where there is no such option.
        renamed: the names of options by their old ones, which go on working, with a warning.
    """

    name: str
    summary: str
    usage: str
    description: str
    examples: str
    choices: Mapping[str, str]
    add_options: Callable[[ArgumentParser, str], None]
    run: Callable[[Request], None]
    as_batches: bool = True
    recipes: Mapping[str, Path] | None = None
    renamed: Mapping[str, str] = field(default_factory=dict)


def figures(measurement: Measurement) -> str:
    """A table of the figures with their standard errors."""
    rows = [[TITLES[name], *_figure(measurement, name)] for name in measurement.measured()]
    return table(["", "mean", "std. error"], rows) + f"\n{_over(measurement)}"


def in_words(measurement: Measurement) -> list[str]:
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


def _figure(measurement: Measurement, name: str) -> list[str]:
    return [_number(getattr(measurement, name), 4), _number(measurement.sem[name], 2)]


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


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns with the first flush left and the others flush right."""
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]
    lines = [
        "  ".join(
            cell.rjust(width) if column else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in [head, *rows]
    ]
    return "\n".join(f"  {line.rstrip()}" for line in lines)
