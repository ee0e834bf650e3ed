"""Progress on a terminal, and silence elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["Progress", "Report", "counter", "reporter"]

Progress = bool | None
"""Whether to show a progress bar; ``None`` shows one if standard error is a terminal."""

Report = Callable[[str], None]
"""A function that is given the figures of every batch that is done, as text."""


@contextmanager
def reporter(progress: Progress, doing: str, total: int | None, done: int = 0) -> Iterator[Report]:
    """A progress bar with the latest figures, for as long as the block lasts.

    Args:
        progress: whether to show it; see :data:`Progress`.
        doing: what is going on, in a word.
        total: how many batches there will be, if known.
        done: how many of them are done already.
    """
    with _bar(progress, doing, total, done) as update:
        yield lambda figures: update(advance=1, figures=figures)


@contextmanager
def counter(progress: Progress, things: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar that is told how many things are done, and how many there are in all."""
    with _bar(progress, things) as update:
        yield lambda done, total: update(completed=done, total=total)


@contextmanager
def _bar(progress: Progress, doing: str, total: int | None = None, done: int = 0) -> Iterator[Callable[..., None]]:
    """A bar, if one is wanted, and the function that brings it up to date."""
    # There is no standard error in a windowed program.
    terminal = sys.stderr is not None and sys.stderr.isatty()
    if not (terminal if progress is None else progress):
        yield lambda **fields: None
        return
    # Here, since it takes a tenth of the time of ``import initopt``.
    import rich.progress
    from rich.console import Console

    columns = (
        rich.progress.TextColumn("[progress.description]{task.description}"),
        rich.progress.BarColumn(),
        rich.progress.MofNCompleteColumn(),
        rich.progress.TimeRemainingColumn(),
        rich.progress.TextColumn("{task.fields[figures]}"),
    )
    console = Console(stderr=True, force_terminal=progress)
    with rich.progress.Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(doing, total=total, completed=done, figures="")

        def update(**fields: Any) -> None:
            bar.update(task, **fields)

        yield update
