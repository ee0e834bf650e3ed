"""The entry point of the demo."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from initopt._support.checks import check_integer
from initopt._support.processes import processor_threads
from initopt.demo.experiment import Experiment, run_seed
from initopt.demo.folder import check_folder, save_experiment
from initopt.demo.report import introduce, report
from initopt.demo.starts import STARTS

__all__ = ["run_demo"]


def run_demo(
    out: Path = Path("initopt-demo"),
    seeds: int = 5,
    epochs: int = 20,
    nio_steps: int = 100,
    threads: int | None = None,
) -> None:
    """Train a deep network on handwritten digits from its default start and from NIO's, and compare.

    Args:
        out: folder for the picture, the numbers and the optimized weights; one that an earlier demo wrote is replaced.
        seeds: how many times to do it, each with other weights and another order of the data.
        epochs: passes over the training set.
        nio_steps: steps of NIO.
        threads: processor threads for PyTorch; one by default, since more only slow down layers as small as these.

    Raises:
        ValueError: if a number is not positive.
        FileExistsError: if ``out`` is there and was not written by the demo.
        PermissionError: if ``out`` cannot be written.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:  # doctest: +ELLIPSIS
    ...     run_demo(Path(folder) / "demo", seeds=1, epochs=1, nio_steps=2)
    A plain tanh network ...
    """
    threads = 1 if threads is None else threads
    for name, value in {"seeds": seeds, "epochs": epochs, "nio_steps": nio_steps, "threads": threads}.items():
        check_integer(name, value, 1)
    folder = Path(out)
    check_folder(folder.absolute())
    console = Console()
    introduce(console, seeds, epochs, nio_steps)
    with processor_threads(threads), _bar(seeds * (nio_steps + len(STARTS) * epochs)) as bar:
        task = bar.tasks[0].id
        experiment = Experiment([run_seed(seed, epochs, nio_steps, lambda: bar.advance(task)) for seed in range(seeds)])
    save_experiment(experiment, folder.absolute(), threads)
    report(console, experiment, folder)


@contextmanager
def _bar(total: int) -> Iterator[Progress]:
    """A progress bar that is shown if standard error is a terminal."""
    with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
        bar.add_task("training", total=total)
        yield bar
