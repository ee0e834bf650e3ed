"""A pool of processes of which any may die."""

import multiprocessing
import os
import signal
import time

import pytest

from initopt.comparison.running.workers import WorkerDiedError, Workers

pytestmark = [pytest.mark.processes, pytest.mark.usefixtures("workers_are_forked")]

NUMBER = None


def begin(what, number):
    global NUMBER
    NUMBER = what, number


def number():
    time.sleep(0.2)  # so that the other one is there in time
    return NUMBER, os.getpid()


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def fail():
    raise ValueError("what I did")


def test_what_they_do():
    with Workers(2, begin, "started") as workers:
        found = [future.result() for future in [workers.submit(number) for _ in range(8)]]
        assert {what for what, _ in found} <= {("started", 0), ("started", 1)}
        with pytest.raises(RuntimeError, match="(?s)def fail|in fail.*ValueError: what I did"):
            workers.submit(fail).result()
        with pytest.raises((AttributeError, TypeError), match="pickle"):
            workers.submit(lambda: 3).result()
        assert workers.submit(divmod, 7, 2).result() == (3, 1)
    assert multiprocessing.active_children() == []


def test_a_death_fails_one_call_and_no_other():
    with Workers(1, begin, "started") as workers:
        _, first = workers.submit(number).result()
        dead, alive = workers.submit(die), workers.submit(number)
        with pytest.raises(WorkerDiedError, match="^killed by SIGKILL$"):
            dead.result()
        what, second = alive.result()
        assert (what, second != first) == (("started", 0), True)


def test_none_is_left_in_the_midst_of_a_call():
    begun = time.monotonic()
    with Workers(2, begin, "started") as workers:
        busy = [workers.submit(time.sleep, 600) for _ in range(2)]
        left = workers.submit(number)
        while not all(future.running() for future in busy):
            time.sleep(0.01)
        time.sleep(1)
    assert multiprocessing.active_children() == []
    assert left.cancelled()
    assert all(isinstance(future.exception(), (WorkerDiedError, RuntimeError)) for future in busy)
    assert time.monotonic() - begun < 300
