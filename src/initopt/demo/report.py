"""The tables that the demo prints."""

from __future__ import annotations

import math
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from initopt.demo.experiment import Experiment
from initopt.demo.recipe import BATCH_SIZE, DEPTH, LEARNING_RATE, MOMENTUM, WIDTH
from initopt.demo.spread import Spread
from initopt.demo.starts import STARTS
from initopt.demo.verdict import counted, verdict

__all__ = ["introduce", "report", "shown_epochs"]


def introduce(console: Console, seeds: int, epochs: int, nio_steps: int) -> None:
    """Say what is about to be done."""
    console.print(
        f"A plain tanh network ({DEPTH} layers, {WIDTH} wide, no normalization) learns to read digits of 8 x 8 pixels: "
        f"{counted(epochs, 'epoch')} of SGD (batch {BATCH_SIZE}, learning rate {LEARNING_RATE:g}, momentum {MOMENTUM:g}) "
        f"from PyTorch's default weights, from Xavier's, which suit tanh, and from the default weights rescaled by "
        f"{counted(nio_steps, 'step')} of NIO. Same batches in the same order for all three; {counted(seeds, 'seed')}.",
        highlight=False,
    )


def report(console: Console, experiment: Experiment, folder: Path) -> None:
    """Print what came out.

    Args:
        console: where to.
        experiment: what came out.
        folder: where its files are.
    """
    sign = "±" if console.encoding.startswith("utf") else "+-"
    for tabulate in (_accuracies, _gradients, _seconds):
        title, table = tabulate(experiment, sign)
        console.print(f"\n{title}", highlight=False, style="bold")
        console.print(table)
    console.print(verdict(experiment), highlight=False, style="bold")
    console.print(f"Plots, numbers and optimized weights: {folder}", highlight=False, soft_wrap=True)


def shown_epochs(epochs: int) -> list[int]:
    """The epochs that are worth a line: 1, 2, 3, 5, 10, 20, 50, ... and the last.

    >>> shown_epochs(20), shown_epochs(4)
    ([1, 2, 3, 5, 10, 20], [1, 2, 3, 4])
    """
    series = [3, *(digit * 10**power for power in range(len(str(epochs))) for digit in (1, 2, 5))]
    return sorted({epoch for epoch in series if epoch < epochs} | {epochs})


def _over_seeds(experiment: Experiment, sign: str) -> str:
    return f", mean {sign} standard deviation over seeds" if len(experiment.runs) > 1 else ", one seed"


def _table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column(columns[0], no_wrap=True)
    for column in columns[1:]:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def _pair(mean: float, uncertainty: float, sign: str, form: str) -> str:
    return format(mean, form) + ("" if math.isnan(uncertainty) else f" {sign} {uncertainty:{form.lstrip('+')}}")


def _accuracies(experiment: Experiment, sign: str) -> tuple[str, Table]:
    table = _table("after epoch", *STARTS.values(), "NIO - default")
    for epoch in shown_epochs(experiment.epochs):
        cells = [_pair(100 * s.mean, 100 * s.std, sign, ".1f") for s in (experiment.accuracy(x, epoch) for x in STARTS)]
        gain = experiment.gain(epoch)
        table.add_row(str(epoch), *cells, _pair(100 * gain.mean, 100 * gain.std, sign, "+.1f"))
    return f"Test accuracy in %{_over_seeds(experiment, sign)}", table


def _gradients(experiment: Experiment, sign: str) -> tuple[str, Table]:
    several = len(experiment.runs) > 1
    result = experiment.runs[0].result
    table = _table("before training", "default", "after NIO")
    for name, figure, form in (("GradCosine", "grad_cosine", "+.3f"), ("gradient norm", "grad_norm", ".3f")):
        means = experiment.measured(figure)
        errors = [spread.sem for spread in means]
        if not several:  # the batches are all there is to go by
            errors = [found.sem[figure] for found in (result.before, result.after) if found is not None]
        table.add_row(name, *(_pair(m.mean, e, sign, form) for m, e in zip(means, errors, strict=True)))
    over = "seeds" if several else "batches"
    return f"Gradients on held-back training batches, mean {sign} standard error over {over}", table


def _seconds(experiment: Experiment, sign: str) -> tuple[str, Table]:
    table = _table("per seed", "seconds")
    nio = Spread.of([run.result.seconds for run in experiment.runs])
    training = Spread.of([run.curves["nio"].seconds for run in experiment.runs])
    steps, epochs = counted(len(experiment.runs[0].result.history), "step"), counted(experiment.epochs, "epoch")
    table.add_row(f"NIO, {steps}, and measuring before and after", _pair(nio.mean, nio.std, sign, ".2f"))
    table.add_row(f"training, {epochs}, one start", _pair(training.mean, training.std, sign, ".2f"))
    return f"Time{_over_seeds(experiment, sign)}", table
