"""Signals that end a run: they break into the work once, and never into the clean-up."""

from __future__ import annotations

import gc
import signal
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, TypeVar

__all__ = ["Terminated", "all_or_nothing", "safe_point", "signals_held", "terminable"]

_T = TypeVar("_T")


class Terminated(SystemExit):
    """SIGTERM arrived; the process exits with status 143, as if the signal had ended it, after everything is put back."""

    def __init__(self) -> None:
        super().__init__(128 + signal.SIGTERM)


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


@contextmanager
def terminable() -> Iterator[None]:
    """Have SIGTERM raise :class:`Terminated` within the block; a handler that the program has installed itself stays.

    For programs of our own, such as the command line: in a user's process, the handlers are the user's.
    """
    if not _in_main_thread() or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return

    def terminate(number: int, frame: FrameType | None) -> None:
        raise Terminated

    signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def all_or_nothing(begin: Callable[[], None], work: Callable[[], _T], settle: Callable[[bool], None]) -> _T:
    """Begin, work, settle; of the signals that arrive meanwhile, one at most is delivered, and only within the work.

    Python calls signal handlers between any two of its operations, so an exception out of one may come in the midst of a
    ``finally``. In the main thread, SIGINT and SIGTERM (if a handler in Python is there for it) therefore wait while
    ``begin`` and ``settle`` run. Within ``work`` the first one goes to its handler at once, which as a rule raises; from
    then on all wait. One that arrives when the work is done, but not yet settled, makes it fail. So either the caller gets
    what ``work`` returned, or an exception after ``settle(False)``.

    Args:
        begin: is called first; what it changes, ``settle`` undoes, also if it fails half way.
        work: what may take long.
        settle: is called with whether the work succeeded, at most twice: with ``True``, and then ``False`` if there was a
            signal all the same.
    """
    gate = _Gate()
    try:
        gate.install()
        begin()
        try:
            gate.open()
            result = work()
        finally:  # an exception in this very line has closed the gate itself
            gate.is_open = False
        settle(True)
        gate.open()
        gate.uninstall()  # the last that can be interrupted: a return cannot
        return result
    except BaseException as error:
        gate.reinstall()
        try:
            if gate.raised is not None:
                _finalize_frames(error)
            settle(False)
        finally:
            gate.uninstall()
        if gate.raised is None:
            gate.open()
        elif gate.raised is not error:  # clean-up of others on its way has failed, broken into as it was
            raise gate.raised from error
        raise


@contextmanager
def signals_held() -> Iterator[None]:
    """A block within work of :func:`all_or_nothing` that is not to be left half done: signals wait for its end."""
    gate = _gates[-1] if _gates and _in_main_thread() else None
    if gate is None or not gate.is_open:
        yield
        return
    gate.is_open = False
    try:
        yield
    finally:
        gate.open()


def _finalize_frames(error: BaseException | None) -> None:
    """Have all that is left over in the frames of an exception, and of those before it, finalized now.

    If a signal breaks into the ``__enter__`` of a context manager that is a generator, nothing calls its ``__exit__``. Its
    ``finally`` runs when the generator is finalized: when the caller lets go of the exception, which is after everything
    has been put back.
    """
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__
    gc.collect()


def safe_point() -> None:
    """Raise again what a signal has raised, should that have been swallowed.

    An exception out of a signal handler that runs while an object is finalized goes nowhere. To be called where the work
    goes on as if nothing had happened.
    """
    if _gates and _in_main_thread() and not _gates[-1].is_open:
        _gates[-1].open()


_gates: list[_Gate] = []
"""Those of the calls that are going on in the main thread, the innermost last."""


class _Gate:
    """A gate that lets signals through to their handlers, or keeps them."""

    def __init__(self) -> None:
        self.is_open = False
        self.raised: BaseException | None = None
        self._handlers: dict[int, Any] = {}
        self._arrived: list[int] = []

    def install(self) -> None:
        if not _in_main_thread():
            return
        _gates.append(self)
        for number in (signal.SIGINT, signal.SIGTERM):
            handler = signal.getsignal(number)
            if callable(handler):
                self._handlers[number] = handler
                signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._arrived.append(number)
        if self.is_open:
            self.open()

    def open(self) -> None:
        """Hand what has arrived to its handlers, with the gate closed if one of them raises."""
        self.is_open = False
        while self._arrived:
            try:
                self._handlers[self._arrived[0]](self._arrived[0], None)
            except BaseException as error:
                self.raised = error
                raise
            self._arrived.pop(0)  # only now: it has raised nothing, so nothing can have been swallowed
        self.is_open = True

    def reinstall(self) -> None:
        """Close, and take the place of the handlers, for certain: a signal may come in between."""
        while True:
            try:
                self.is_open = False
                for number in self._handlers:
                    signal.signal(number, self._handle)
                return
            except BaseException:  # of one more signal; what is raised already is on its way
                continue

    def uninstall(self) -> None:
        if self in _gates:
            _gates.remove(self)
        _set_handlers(list(self._handlers.items()))


def _set_handlers(handlers: list[tuple[int, Any]]) -> None:
    """Set all handlers, also if the first one that is set raises at once."""
    if handlers:
        try:
            signal.signal(*handlers[0])
        finally:
            _set_handlers(handlers[1:])
