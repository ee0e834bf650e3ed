"""Several processes that take one run each, and of which any may die."""

from __future__ import annotations

import multiprocessing
import pickle
import signal
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any, TypeVar

import torch

from initopt._support.processes import end_with_parent
from initopt.comparison.running.run import failed, run_group
from initopt.comparison.running.teams import Done, Report, Team, stored
from initopt.comparison.spec.plan import Plan
from initopt.comparison.storage.job import Group, Job

__all__ = ["Workers", "check_sendable"]

_T = TypeVar("_T")

_MOST_STARTS = 5
"""How many processes in a row may end while they start."""

_PATIENCE = 5.0
"""Seconds that a process has to end by itself."""


def check_sendable(plan: Plan) -> None:
    """Refuse what cannot be sent to another process.

    Raises:
        ValueError: the message says what it is.
    """
    parts: dict[str, Any] = {f"models[{name!r}]": network for name, network in plan.networks.items()}
    parts |= {f"initialization {name!r}": value for name, value in plan.initializations.items()}
    for what, value in (parts | {"data": plan.data, "loss_fn": plan.loss_fn}).items():
        try:
            pickle.dumps(value)
        except Exception as error:  # pickling calls code of all kinds
            raise ValueError(
                f"{what} cannot be sent to other processes ({error}); define it at the top level of a module and bind "
                "arguments with functools.partial, or use workers=1"
            ) from None


class Workers(Team):
    """Processes that do one run each at a time.

    One that dies (for want of memory, say) is replaced, and the run that it was at is tried once more; if that kills its
    process, too, the run is stored as failed, and the others go on.

    Args:
        count: how many.
        plan: of the comparison.
        folder: where runs are stored.
    """

    def __init__(self, count: int, plan: Plan, folder: Path) -> None:
        self._count, self._plan, self._folder = count, plan, folder
        self._deaths: dict[Job, int] = {}
        self._any_ready, self._unready = False, 0

    @property
    def leads(self) -> bool:
        return True

    def agree(self, decide: Callable[[], _T]) -> _T:
        return decide()

    def run(self, groups: Sequence[Group], report: Report) -> None:
        waiting = deque(groups)
        if not waiting:
            return
        with _ended_in_any_case() as workers:
            for _ in range(min(self._count, len(waiting))):
                workers.append(_Worker(self._plan, self._folder))
            while busy := self._hand_out(waiting, workers):
                for connection in wait([worker.connection for worker in busy]):
                    worker = next(worker for worker in busy if worker.connection is connection)
                    done = worker.receive()
                    if worker.is_ready:
                        self._any_ready, self._unready = True, 0
                    if done is not None:
                        report(done)
                    elif worker.is_dead:
                        workers.remove(worker)
                        waiting.extend(self._after_death(worker, report))
                        if waiting:
                            workers.append(_Worker(self._plan, self._folder))

    def _hand_out(self, waiting: deque[Group], workers: Sequence[_Worker]) -> list[_Worker]:
        """Give every idle worker something to do; those that have."""
        for worker in workers:
            if worker.is_ready and not worker.left and waiting:
                worker.send(waiting.popleft())
        return [worker for worker in workers if worker.left or not worker.is_ready]

    def _after_death(self, worker: _Worker, report: Report) -> Iterator[Group]:
        """What is still to be done of what a worker was at."""
        if not worker.is_ready:
            self._unready += 1
            self._refuse_to_go_on(worker)
        if not worker.left:
            return
        job = worker.left[0]
        self._deaths[job] = self._deaths.get(job, 0) + 1
        if self._deaths[job] > 1:
            error = f"the process of the run ended twice ({worker.how_it_ended}); it may be that memory ran out"
            report(stored(self._folder, failed(job, error)))
            worker.left.popleft()
        if worker.left:
            yield tuple(worker.left)

    def _refuse_to_go_on(self, worker: _Worker) -> None:
        """Raise a RuntimeError if another process is not going to start any better than the last ones."""
        if not worker.was_killed and not self._any_ready:
            raise RuntimeError(
                f"a worker process ended before it was ready ({worker.how_it_ended}); what it wrote is above. A script "
                "that calls initopt.compare(workers=...) needs the line: if __name__ == '__main__':"
            )
        if self._unready == _MOST_STARTS:
            raise RuntimeError(
                f"{_MOST_STARTS} worker processes in a row ended before they were ready, the last {worker.how_it_ended}; "
                "it may be that memory ran out: try fewer workers. What is done is stored, and the same call goes on"
            )


@contextmanager
def _ended_in_any_case() -> Iterator[list[_Worker]]:
    workers: list[_Worker] = []
    try:
        yield workers
    finally:
        for worker in workers:
            worker.end()


class _Worker:
    """A process, as the one that started it sees it.

    Attributes:
        connection: to it.
        left: the jobs that it has been given and is not done with, the present one first.
        is_ready: whether it has begun to listen.
        is_dead: whether it is gone.
    """

    def __init__(self, plan: Plan, folder: Path) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.left: deque[Job] = deque()
        self.is_ready, self.is_dead = False, False
        daemon = not plan.hardware.loaders  # a daemon may not start the loaders; either kind is ended by end()
        self._process: SpawnProcess = context.Process(target=_work, args=(theirs, plan, folder), daemon=daemon)
        with _deaf_to_interrupts():  # which it inherits: Ctrl-C goes to all, and the one that started this one ends it
            self._process.start()
        theirs.close()  # or its end would not be noticed

    def send(self, group: Group) -> None:
        """Give it a group of jobs."""
        self.left.extend(group)
        with suppress(BrokenPipeError, ConnectionResetError):  # dead; the next call of receive finds that out
            self.connection.send(group)

    def receive(self) -> Done | None:
        """A job that it has done; ``None`` if it had something else to say, or nothing more."""
        try:
            message: Done | None = self.connection.recv()
        except (EOFError, ConnectionResetError):
            self.is_dead = True
            self.end()
            return None
        if message is None:
            self.is_ready = True
            return None
        self.left.remove(message[0])
        return message

    def end(self) -> None:
        """End the process, if it has not ended."""
        self.connection.close()
        if not self.is_dead:
            self._process.terminate()
        self._process.join(_PATIENCE)
        self._process.kill()
        self._process.join()

    @property
    def was_killed(self) -> bool:
        """Whether a signal has ended it."""
        return (self._process.exitcode or 0) < 0

    @property
    def how_it_ended(self) -> str:
        """For the user."""
        code = self._process.exitcode
        if code is not None and code < 0:
            return f"killed by {signal.Signals(-code).name}"
        return f"exit status {code}"


@contextmanager
def _deaf_to_interrupts() -> Iterator[None]:
    """Hold Ctrl-C back within the block, in this thread and in what it starts."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _work(connection: Connection, plan: Plan, folder: Path) -> None:
    """The life of a worker process, which is over when the one that started it hangs up."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()  # a run whose comparison was killed must not be stored behind the back of the next one
    torch.set_num_threads(plan.hardware.threads)
    fabric = plan.hardware.fabric(plan.recipe.precision)
    fabric.launch()
    splits = plan.load_data().to(fabric.device)
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):
        connection.send(None)
        while True:
            group: Group = connection.recv()
            for record in run_group(fabric, plan, splits, group):
                connection.send(stored(folder, record))
