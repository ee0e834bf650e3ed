"""Who does the runs: this process, with those that Fabric has launched, or anything that calls functions elsewhere."""

from __future__ import annotations

import pickle
import threading
from collections import deque
from collections.abc import Callable, Generator, Sequence
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from initopt._support.processes import processor_threads
from initopt.comparison.running.run import failed, run_group
from initopt.comparison.running.workers import NoWorkersError, WorkerDiedError
from initopt.comparison.spec.plan import Plan
from initopt.comparison.storage.job import Group
from initopt.comparison.storage.record import RunRecord
from initopt.data import Splits

if TYPE_CHECKING:
    from lightning_fabric import Fabric

__all__ = ["Executor", "agreed", "by_executor", "by_fabric", "check_executor", "check_sendable", "first_call", "prepare"]

_T = TypeVar("_T")


class Executor(Protocol):
    """What calls functions elsewhere: the executors of :mod:`concurrent.futures`, a client of Dask, submitit, Ray.

    One that by itself tries a call again whose process has died says so by an attribute ``max_retries`` above 0, and one
    that has GPUs for each call by an attribute ``num_gpus`` above 0.
    """

    def submit(self, function: Callable[..., Any], /, *arguments: Any) -> Any:
        """Have a function called, now or later; what is returned has a method ``result()`` that waits for its value."""


def check_executor(executor: Any) -> None:
    """Refuse what is not an executor.

    Raises:
        TypeError: the message says what one is.
    """
    if isinstance(executor, type) or not callable(getattr(executor, "submit", None)):
        raise TypeError(
            "executor must be an object with submit(function, *arguments), which returns an object with result(), as "
            "concurrent.futures.ProcessPoolExecutor(2) or initopt.integrations.ray.RayExecutor() are; got "
            f"{executor!r}"
        )


def check_sendable(plan: Plan) -> None:
    """Refuse what cannot be sent to another process of this machine.

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


def by_fabric(fabric: Fabric, plan: Plan, splits: Splits, groups: Sequence[Group]) -> Generator[RunRecord, None, None]:
    """Do runs in this process, which shares each with those that Fabric has launched; the leading one gets the records."""
    for group in groups:
        for record in run_group(fabric, plan, splits, group):
            if fabric.is_global_zero:
                yield record


def agreed(fabric: Fabric, decide: Callable[[], _T]) -> _T:
    """Have the leading process decide something, and tell all others; an exception is raised in all of them."""
    if fabric.world_size == 1:
        return decide()
    decided: tuple[_T | None, Exception | None] = (None, None)
    if fabric.is_global_zero:
        try:
            decided = (decide(), None)
        except Exception as error:
            decided = (None, error)
    value, refusal = fabric.broadcast(decided)
    if refusal is not None:
        raise refusal
    return value  # type: ignore[return-value]


_lock = threading.Lock()
"""Of a run: the generators of random numbers are those of the whole process, so its threads take turns."""

_prepared: dict[str, tuple[Fabric, Splits]] = {}
"""By the key of a comparison: the last one that this process had to do with."""


def prepare(key: str, plan: Plan, worker: int = 0) -> str:
    """Load what the runs of a comparison share, once in each process that does some.

    Args:
        key: what tells this comparison from others.
        plan: of the comparison.
        worker: the number of this process, by which it gets its device.

    Returns:
        The kind of the device that its runs are done on.
    """
    with _lock:
        return _hardware_and_data(key, plan, worker)[0].device.type


def _hardware_and_data(key: str, plan: Plan, worker: int = 0) -> tuple[Fabric, Splits]:
    if key not in _prepared:
        _prepared.clear()
        fabric = plan.hardware.of_worker(worker).fabric(plan.recipe.precision)
        fabric.launch()
        _prepared[key] = fabric, plan.load_data().to(fabric.device)
    return _prepared[key]


def _do_runs(key: str, plan: Plan, group: Group) -> list[RunRecord]:
    """Do runs that share a start, in whatever process this is called."""
    with _lock, processor_threads(plan.hardware.threads):
        fabric, splits = _hardware_and_data(key, plan)
        return list(run_group(fabric, plan, splits, group))


def first_call(executor: Executor, key: str, plan: Plan) -> str:
    """Have an executor do a call that takes no time, and so find out whether it can do any, and on what kind of device.

    Raises:
        TypeError: if it does not return what has a result.
        ValueError: if there is none; the message says why.
    """
    try:
        future = executor.submit(prepare, key, plan)
        if callable(getattr(future, "result", None)):
            kind: str = future.result()
            return kind
    except Exception as error:  # of any kind, its own among them
        raise ValueError(
            f"executor={executor!r} cannot do runs; its first call came to {type(error).__name__}: {error}\nWhat does the "
            "runs needs initopt, networks, data and losses where it can import them, and the hardware that was asked for"
        ) from error
    raise TypeError(f"executor.submit() must return an object with result(); {executor!r} returned {future!r}")


def by_executor(executor: Executor, key: str, plan: Plan, groups: Sequence[Group]) -> Generator[RunRecord, None, None]:
    """Have an executor do runs, a call for each start that some share.

    A call that comes to no result (its process has died, in most cases) is tried once more, each of its runs by itself; one
    that comes to none again is a run that failed.

    Yields:
        the record of each run, as it comes back.

    Raises:
        RuntimeError: if the executor takes no more calls.
    """
    waiting = deque((group, False) for group in groups)
    pending: dict[Group, Any] = {}
    ended: SimpleQueue[tuple[Group, bool, Any]] = SimpleQueue()
    tries_itself = getattr(executor, "max_retries", 0) > 0

    def wait(group: Group, again: bool, future: Any) -> None:
        try:
            ended.put((group, again, future.result()))
        except BaseException as error:
            ended.put((group, again, error))

    try:
        while waiting or pending:
            if waiting:
                group, again = waiting.popleft()
                pending[group] = _submitted(executor, key, plan, group)
                # A result is all that a future needs to have, so each is waited for by a thread.
                threading.Thread(target=wait, args=(group, again, pending[group]), daemon=True).start()
            while pending and not (waiting and ended.empty()):
                group, again, found = ended.get()
                del pending[group]
                if not isinstance(found, BaseException):
                    yield from found
                elif isinstance(found, NoWorkersError) or not isinstance(found, Exception):
                    raise found
                elif len(group) > 1 or not (again or tries_itself):
                    waiting.extend(((job,), True) for job in group)
                else:
                    yield failed(group[0], _why(found))
    finally:
        for future in pending.values():
            if hasattr(future, "cancel"):
                future.cancel()


def _submitted(executor: Executor, key: str, plan: Plan, group: Group) -> Any:
    try:
        return executor.submit(_do_runs, key, plan, group)
    except Exception as error:  # of any kind, its own among them
        raise RuntimeError(
            f"executor={executor!r} takes no more runs ({type(error).__name__}: {error}); what is done is stored, and the "
            "same call with another executor goes on"
        ) from error


def _why(error: Exception) -> str:
    if isinstance(error, WorkerDiedError):
        return f"the process of the run ended twice ({error}); it may be that memory ran out"
    return f"the executor came to no result twice, the last time to {type(error).__name__}: {error}"
