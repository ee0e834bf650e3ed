"""``initopt demo``: a comparison of seconds, the recipe ``demo``."""

from __future__ import annotations

import os
import sys
import tempfile
import textwrap
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser

import initopt
from initopt._support.checks import check_integer
from initopt._support.files import Contents, check_replaceable, write_folder
from initopt._support.words import columns, counted
from initopt.cli.commands.base import Command, Request
from initopt.comparison import Comparison
from initopt.comparison.analysis.statistics import estimate
from initopt.comparison.analysis.summary import Summary, over_runs, summarize
from initopt.comparison.report.findings import findings
from initopt.comparison.report.formatting import epoch_name, mean_and_spread, number, outcome_name
from initopt.comparison.storage.store import published
from initopt.recipes import RECIPES
from initopt.runs.result import CONTENTS as RESULT

__all__ = ["COMMAND", "run_demo"]

_CONTENTS = Contents(".initopt-demo", ("results.json", "demo.png"), inner=RESULT)


def run_demo(
    out: Path = Path("initopt-demo"),
    seeds: int = 5,
    epochs: int = 20,
    nio_steps: int = 100,
    threads: int | None = None,
) -> None:
    """Train a deep network on handwritten digits from its default start, Xavier's and NIO's, and compare.

    Args:
        out: folder for the picture and the numbers; one that an earlier demo wrote is replaced.
        seeds: how many times to do it, each with other weights and another order of the data.
        epochs: passes over the training set.
        nio_steps: steps of NIO.
        threads: processor threads for PyTorch; one by default, since more only slow down layers as small as these.

    Raises:
        ValueError: if a number is not positive.
        FileExistsError: if ``out`` is there and was not written by the demo.
        PermissionError: if ``out`` cannot be written.
        RuntimeError: if a run failed.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:  # doctest: +ELLIPSIS
    ...     run_demo(Path(folder) / "demo", seeds=1, epochs=1, nio_steps=2)
    A network of ten tanh layers ...
    """
    threads = 1 if threads is None else threads
    for name, value in {"seeds": seeds, "epochs": epochs, "nio_steps": nio_steps, "threads": threads}.items():
        check_integer(name, value, 1)
    folder = Path(out).absolute()
    check_replaceable(folder, _CONTENTS)
    folder.parent.mkdir(parents=True, exist_ok=True)
    if not os.access(folder.parent, os.W_OK):
        raise PermissionError(f"{folder.parent} is not writable; choose another folder")
    plan = _plan(epochs, nio_steps)
    _introduce(plan, seeds, nio_steps)
    with tempfile.TemporaryDirectory(prefix="initopt-demo-") as place:
        found = initopt.compare(
            **plan, seeds=seeds, out=Path(place) / "out", accelerator="cpu", threads=threads, report=False
        )
    failed = [run.error or "" for run in found.runs if run.status == "failed"]
    if failed or found.problems:
        raise RuntimeError(f"the demo came to no result: {[*found.problems, *failed][0]}")
    summary = summarize(found)
    write_folder(folder, partial(_write, found, summary), _CONTENTS)
    _show(summary)
    _print(f"Picture and numbers: {out}")
    _print("Next, ask about a network of your own: initopt diagnose --help, initopt choose --help")


def _plan(epochs: int, nio_steps: int) -> dict[str, Any]:
    """The recipe ``demo`` as arguments of a comparison."""
    recipe = yaml.safe_load(RECIPES["demo"].read_text(encoding="utf-8"))
    models = {
        name: partial(getattr(initopt.zoo, value["class_path"]), **value["init_args"])
        for name, value in recipe["models"].items()
    }
    for start in recipe["initializations"]:
        if isinstance(start, dict) and start.get("method") == "nio":
            start["options"] = {"steps": nio_steps}
    return {
        "models": models,
        "data": recipe["data"],
        "initializations": recipe["initializations"],
        "recipe": recipe["recipe"] | {"epochs": epochs},
    }


def _introduce(plan: dict[str, Any], seeds: int, nio_steps: int) -> None:
    recipe = plan["recipe"]
    momentum = recipe["optimizer_options"]["momentum"]
    _say(
        f"A network of {next(iter(plan['models']))} without normalization learns to read digits of 8 x 8 pixels: "
        f"{counted(recipe['epochs'], 'epoch')} of SGD (batch {recipe['batch_size']}, learning rate {recipe['lr']:g}, "
        f"momentum {momentum:g}) from PyTorch's default weights, from Xavier's, which suit tanh, and from the default "
        f"weights rescaled by {counted(nio_steps, 'step')} of NIO. Same batches in the same order for all three; "
        f"{counted(seeds, 'seed')}."
    )


def _write(found: Comparison, summary: Summary, into: Path) -> None:
    (into / _CONTENTS.marker).write_text("`initopt demo` wrote this folder and replaces it when it is run again.\n")
    (into / "results.json").write_text(published(found, scales=True), encoding="utf-8")
    from initopt.comparison.report.axes import FigureContext, styles
    from initopt.comparison.report.figures import CurveFigures

    (network,) = summary.networks
    drawn = FigureContext(network, network.entries, styles(found.initializations, summary.reference), "demo")
    curves = CurveFigures(drawn).together()
    assert curves is not None
    (into / "demo.png").write_bytes(curves.images[0].png)


def _show(summary: Summary) -> None:
    """Print a table, and the words of the report."""
    (network,) = summary.networks
    outcome, first = network.outcome, network.first_epoch
    head = ["initialization", *([f"after {epoch_name(first)}"] if first else []), "in the end", *_FIGURES]
    rows = [
        [
            entry.name,
            *([mean_and_spread(estimate(list(entry.first.values())), outcome)] if first else []),
            mean_and_spread(estimate(list(entry.final.values())), outcome),
            *(mean_and_spread(entry.measured("after", figure)) for figure in _FIGURES.values()),
        ]
        for entry in network.entries
    ]
    spread = "Mean ± standard deviation over seeds. " if len(summary.comparison.seeds) > 1 else ""
    _say(f"\n{outcome_name(outcome).capitalize()}, and the gradients before the first step of training:\n")
    _print(columns(head, rows) + "\n")
    _say(f"{spread}GradCosine and gradient norm are those of batches that NIO does not see.")
    for paragraph in findings(summary):
        _say(paragraph)
    cost = network.entries[-1]
    seconds = mean_and_spread(over_runs(run.initialization_seconds for run in cost.runs.values()))
    steps = over_runs(run.initialization_steps for run in cost.runs.values()).mean
    _say(f"{cost.name} took {seconds} s, the time of {number(steps, 2)} steps of this training.")


_FIGURES = {"GradCosine": "grad_cosine", "gradient norm": "grad_norm"}


def _say(text: str) -> None:
    """Print words, in lines that fit on a narrow screen."""
    _print("\n".join(textwrap.fill(line, 80, break_on_hyphens=False) for line in text.split("\n")))


def _print(text: str) -> None:
    """Print text, in ASCII where standard output takes no more."""
    try:
        text.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        text = text.replace("±", "+-").encode("ascii", "replace").decode("ascii")
    print(text)


def _add_options(parser: ArgumentParser) -> None:
    group = parser.add_argument_group("options")
    group.add_function_arguments(run_demo, as_group=False, fail_untyped=False)


def _run(request: Request) -> None:
    run_demo(**request.options)


COMMAND = Command(
    usage="initopt demo [options]",
    description="""\
Train a deep network on handwritten digits from its default start, Xavier's and
NIO's, and compare. Nothing is downloaded.""",
    examples="""\
example:
  initopt demo --seeds 3 --out my-demo""",
    add_options=_add_options,
    run=_run,
)
