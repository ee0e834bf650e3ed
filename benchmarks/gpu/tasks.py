"""Tasks that processes take one at a time, and that are begun only if they will be done in time.

A process that dies, or whose device is in an error from which it does not come back, costs its own task, and no other.
"""

from __future__ import annotations

import multiprocessing
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import Any

from initopt._support.processes import end_with_parent

__all__ = ["Plan", "Result", "Task", "Tell", "run_tasks"]

Result = dict[str, Any]
Tell = Callable[[float], None]
"""Is told which share of its work a task has done."""

MARGIN = 1.15
"""How much longer than reckoned a task may take, and still be begun."""

PATIENCE = 3.0
"""How many times as long as reckoned a task may take, beside as many others as there are workers, before it is ended."""

SHORTEST = 60.0
"""Seconds that a task may take in any case."""

GRACE = 3.0
"""Seconds after the deadline in which tasks may still end."""


@dataclass(frozen=True)
class Task:
    """Something to do.

    Attributes:
        name: under which its result is stored.
        function: at the top level of a module; takes ``arguments`` and ``tell``, and returns what JSON can hold.
        arguments: of the function.
        alone: seconds that it is reckoned to take with the machine to itself.
        share: seconds of the whole machine that it is reckoned to take up, where tasks share it.
    """

    name: str
    function: Callable[..., Result]
    arguments: Mapping[str, Any] = field(default_factory=dict)
    alone: float = 1.0
    share: float = 0.0


Plan = Callable[[Mapping[str, Result]], Sequence[Task]]
"""The tasks that can be done by now, given the results that there are, the most worthwhile first; may name those done."""


def run_tasks(plan: Plan, results: dict[str, Result], keep: Callable[[], None], workers: int, deadline: float) -> list[str]:
    """Do what a plan has and the results have not.

    Args:
        plan: is asked anew after every result.
        results: by name; those of a task that failed are ``{"failed": why}``.
        keep: stores the results; called after every one of them.
        workers: how many processes.
        deadline: of ``time.monotonic()``.

    Returns:
        The names of what was not begun, or not done in time.
    """
    crew: list[_Worker] = []
    try:
        while True:
            ready = [task for task in plan(results) if task.name not in results]
            busy = [worker for worker in crew if worker.task is not None]
            waiting = [task for task in ready if all(worker.task.name != task.name for worker in busy)]  # type: ignore[union-attr]
            for task in waiting:
                if len(busy) < workers and _fits(task, busy, deadline):
                    idle = next((worker for worker in crew if worker.task is None), None)
                    if idle is None:
                        idle = _Worker()
                        crew.append(idle)
                    idle.begin(task)
                    busy.append(idle)
            if not busy or time.monotonic() > deadline + GRACE:
                return [task.name for task in ready]
            wait([worker.connection for worker in busy], timeout=min(0.5, max(0.05, deadline + GRACE - time.monotonic())))
            for worker in busy:
                found = worker.look(workers)
                if found is not None:
                    name, result = found
                    results[name] = result
                    keep()
                    print(f"  {name}: {_told(result)}", flush=True)
                if worker.gone:
                    crew.remove(worker)
    finally:
        for worker in crew:
            worker.end()


def _fits(task: Task, busy: Sequence[_Worker], deadline: float) -> bool:
    """Whether a task, and all that run beside it, will be done in time."""
    taken = sum(worker.left for worker in busy)
    return time.monotonic() + MARGIN * max(task.alone, taken + task.share) <= deadline


def _told(result: Result) -> str:
    if "failed" in result:
        return f"failed: {result['failed'].splitlines()[0]}"
    return f"{result['wall_seconds']:.1f} s"


class _Worker:
    """A process, as the one that started it sees it.

    Attributes:
        connection: to it.
        task: that it is at, if any.
        gone: whether it has ended, or been ended.
    """

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs,))
        self._process.start()
        theirs.close()  # or its end would not be noticed
        self.task: Task | None = None
        self.gone = False
        self._begun = self._progress = 0.0

    @property
    def left(self) -> float:
        """Seconds of the whole machine that its task will still take up."""
        return 0.0 if self.task is None else self.task.share * (1 - self._progress)

    def begin(self, task: Task) -> None:
        """Give it something to do."""
        self.task, self._begun, self._progress = task, time.monotonic(), 0.0
        with suppress(BrokenPipeError):  # dead; look() finds that out
            self.connection.send((task.function, dict(task.arguments)))

    def look(self, workers: int) -> tuple[str, Result] | None:
        """The result of its task, if it is done, or has failed.

        Args:
            workers: how many share the machine.
        """
        assert self.task is not None
        task, result = self.task, None
        try:
            while result is None and self.connection.poll():
                kind, value = self.connection.recv()
                if kind == "progress":
                    self._progress = value
                else:
                    result = value
        except (EOFError, ConnectionResetError):
            self.end()
            result = {"failed": f"its process ended with {self._process.exitcode}"}
        seconds = time.monotonic() - self._begun
        reckoned = max(task.alone, workers * task.share)
        if result is None and seconds > max(SHORTEST, PATIENCE * reckoned):
            self.end()
            result = {"failed": f"ended after {seconds:.0f} s, since {reckoned:.0f} s were reckoned"}
        if result is None:
            return None
        if "failed" in result:  # its device may be in an error that stays
            self.end()
        self.task = None
        return task.name, {**result, "wall_seconds": seconds}

    def end(self) -> None:
        """End the process."""
        self.gone = True
        self.connection.close()
        if self._process.is_alive():
            self._process.kill()
        self._process.join()


def _serve(connection: Connection) -> None:
    end_with_parent()
    while True:
        try:
            function, arguments = connection.recv()
        except EOFError:
            return
        try:
            result = function(tell=lambda share: connection.send(("progress", share)), **arguments)
        except Exception as error:
            result = {"failed": f"{type(error).__name__}: {error}\n\n{traceback.format_exc()}"}
        connection.send(("result", result))
