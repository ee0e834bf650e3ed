"""Processes on this machine that do a call each at a time, and of which any may die."""

from __future__ import annotations

import multiprocessing
import signal
import threading
import traceback
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from queue import Empty, SimpleQueue
from typing import Any

from initopt._support.processes import end_with_parent

__all__ = ["NoWorkersError", "WorkerDiedError", "Workers"]

_MOST_STARTS = 5
"""How many processes in a row may end while they start."""

_PATIENCE = 5.0
"""Seconds that a process that has hung up has to end by itself."""


class WorkerDiedError(RuntimeError):
    """The process of a call has ended before the call has; the message says how."""


class NoWorkersError(RuntimeError):
    """No process gets as far as to take a call."""


class Workers:
    """An executor whose processes are replaced when they die (for want of memory, say): one death fails one call.

    To be used in a ``with`` statement, at the end of which no process is left, whatever they were at.

    Args:
        count: how many processes there are at most.
        begin: what each process calls before it takes calls, with the arguments and its own number from 0 on.
        arguments: of ``begin``.
        daemon: whether processes are daemons, which cannot start processes of their own.
    """

    def __init__(self, count: int, begin: Callable[..., object], *arguments: Any, daemon: bool = True) -> None:
        self._begin, self._arguments, self._daemon = begin, arguments, daemon
        self._calls: SimpleQueue[tuple[Future[Any], Any] | None] = SimpleQueue()
        self._threads = [threading.Thread(target=self._serve, args=(number,), daemon=True) for number in range(count)]
        self._lock = threading.Lock()  # of all below, and of starting and reaping processes
        self._living: set[_Worker] = set()
        self._any_ready, self._unready = False, 0
        self._refusal: NoWorkersError | None = None

    def submit(self, function: Callable[..., Any], /, *arguments: Any) -> Future[Any]:
        """Have the next process that is free call a function.

        Returns:
            The promise of its value; or of a WorkerDiedError, or a RuntimeError with the traceback of what it raised.
        """
        future: Future[Any] = Future()
        self._calls.put((future, (function, arguments)))
        return future

    def __enter__(self) -> Workers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        with self._lock:
            self._refusal = NoWorkersError("the workers have been sent home")
            for worker in self._living:
                worker.process.kill()  # nothing that it has open could be left half written
        with suppress(Empty):
            while call := self._calls.get_nowait():
                call[0].cancel()
        for _ in self._threads:
            self._calls.put(None)
        for thread in self._threads:
            thread.join()

    def _serve(self, number: int) -> None:
        """Have one process at a time do calls, until there are no more."""
        if hasattr(signal, "pthread_sigmask"):  # Ctrl-C goes to all processes, which inherit that it is held back
            resource_tracker.ensure_running()  # it would let interrupts through again as it starts
            signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
        worker: _Worker | None = None
        while call := self._calls.get():
            future, task = call
            if not future.set_running_or_notify_cancel():
                continue
            try:
                worker = worker or self._started(number)
                future.set_result(worker.call(task))
            except WorkerDiedError:
                assert worker is not None
                future.set_exception(WorkerDiedError(self._ended(worker)))
                worker = None
            except Exception as error:
                future.set_exception(error)
        if worker is not None:
            self._ended(worker)

    def _started(self, number: int) -> _Worker:
        """A process that is ready.

        Raises:
            NoWorkersError: if another process is not going to start any better than the last ones.
        """
        while True:
            with self._lock:
                if self._refusal is not None:
                    raise self._refusal
                worker = _Worker(self._begin, (*self._arguments, number), self._daemon)
                self._living.add(worker)
            try:
                worker.call(None)
            except WorkerDiedError:
                self._refuse_to_go_on(self._ended(worker))
            else:
                with self._lock:
                    self._any_ready, self._unready = True, 0
                return worker

    def _refuse_to_go_on(self, how: str) -> None:
        with self._lock:
            self._unready += 1
            why = None
            if not how.startswith("killed") and not self._any_ready:
                why = (
                    f"a worker process ended before it was ready ({how}); what it wrote is above. A script "
                    "that calls initopt.compare(workers=...) needs the line: if __name__ == '__main__':"
                )
            elif self._unready == _MOST_STARTS:
                why = (
                    f"{_MOST_STARTS} worker processes in a row ended before they were ready, the last {how}; "
                    "it may be that memory ran out: try fewer workers. What is done is stored, and the same call goes on"
                )
            if why and self._refusal is None:
                self._refusal = NoWorkersError(why)

    def _ended(self, worker: _Worker) -> str:
        """Have a process end that has hung up; how it did, for the user."""
        wait([worker.process.sentinel], _PATIENCE)
        with self._lock:
            worker.process.kill()
            worker.process.join()
            self._living.discard(worker)
        worker.connection.close()
        code = worker.process.exitcode
        return f"killed by {signal.Signals(-code).name}" if code is not None and code < 0 else f"exit status {code}"


class _Worker:
    """A process, as the one that started it sees it."""

    def __init__(self, begin: Callable[..., object], arguments: tuple[Any, ...], daemon: bool) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(theirs, begin, arguments), daemon=daemon)
        self.process.start()
        theirs.close()  # or its end would not be noticed

    def call(self, task: Any) -> Any:
        try:
            self.connection.send(task)
            value, error = self.connection.recv()
        except (EOFError, OSError):
            raise WorkerDiedError from None
        if error is not None:
            raise RuntimeError(error)
        return value


def _work(connection: Connection, begin: Callable[..., object], arguments: tuple[Any, ...]) -> None:
    """The life of a worker process, which is over when that of the one that started it is, or when that hangs up."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()
    begin(*arguments)
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):
        while True:
            task = connection.recv()
            value, error = None, None
            try:
                value = task and task[0](*task[1])  # the first task is to be ready
            except Exception:
                error = traceback.format_exc()
            connection.send((value, error))
