"""Progress on a terminal, and silence elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import rich.progress
from rich.console import Console

__all__ = ["Progress", "Report", "counter", "reporter"]

Progress = bool | None
"""Whether to show a progress bar; ``None`` shows one if standard error is a terminal."""

Report = Callable[[str], None]
"""Is given the figures of every batch that is done, as text."""


@contextmanager
def reporter(progress: Progress, doing: str, total: int | None, done: int = 0) -> Iterator[Report]:
    """A progress bar with the latest figures, for as long as the block lasts.

    Args:
        progress: whether to show it; see :data:`Progress`.
        doing: what is going on, in a word.
        total: how many batches there will be, if known.
        done: how many of them are done already.
    """
    if not _is_wanted(progress):
        yield lambda figures: None
        return
    columns = (
        rich.progress.TextColumn("[progress.description]{task.description}"),
        rich.progress.BarColumn(),
        rich.progress.MofNCompleteColumn(),
        rich.progress.TimeRemainingColumn(),
        rich.progress.TextColumn("{task.fields[figures]}"),
    )
    with rich.progress.Progress(*columns, console=_console(progress), transient=True) as bar:
        task = bar.add_task(doing, total=total, completed=done, figures="")

        def report(figures: str) -> None:
            bar.update(task, advance=1, figures=figures)

        yield report


@contextmanager
def counter(progress: Progress, things: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar that is told how many things are done, and how many there are in all.

    Args:
        progress: whether to show it; see :data:`Progress`.
        things: what is counted.
    """
    if not _is_wanted(progress):
        yield lambda done, total: None
        return
    columns = (
        rich.progress.TextColumn("[progress.description]{task.description}"),
        rich.progress.BarColumn(),
        rich.progress.MofNCompleteColumn(),
        rich.progress.TimeRemainingColumn(),
    )
    with rich.progress.Progress(*columns, console=_console(progress), transient=True) as bar:
        task = bar.add_task(things, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _is_wanted(progress: Progress) -> bool:
    # There is no standard error in a windowed program.
    terminal = sys.stderr is not None and sys.stderr.isatty()
    return terminal if progress is None else progress


def _console(progress: Progress) -> Console:
    return Console(stderr=True, force_terminal=progress)
