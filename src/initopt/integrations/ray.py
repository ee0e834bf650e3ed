"""The runs of a comparison on the machines of a Ray cluster."""

from __future__ import annotations

import os
import pickle
import signal
import threading
from collections.abc import Callable
from typing import Any

from initopt._support.checks import check_integer, check_number
from initopt._support.errors import warn

__all__ = ["RayExecutor"]


class RayExecutor:
    """An executor for :func:`initopt.compare` that has Ray do each run somewhere in a cluster.

    A run is a task: Ray starts it where the processors and GPUs are free that it asks for, and once more where its process
    or its machine has died. Records come back to the process that compares, and nothing is written elsewhere, so the
    machines need no file system in common; but each needs initopt, and the code of networks, data and losses.

    If Ray is not at work in this process yet, it is started, and ended again by :meth:`shutdown` or at the end of a
    ``with`` statement.

    Args:
        address: of the cluster, as ``ray.init`` has it: ``"auto"`` for the one that this machine belongs to, or ``"local"``
            for a new one of this machine alone. By default the one that the environment variable ``RAY_ADDRESS`` names, or
            that runs on this machine, or else a new one.
        num_cpus: processors of each run; fit ``threads`` of :func:`initopt.compare` to it.
        num_gpus: GPUs of each run; a fraction lets several runs share one. Ray believes what a machine was declared to
            have, and does not look. With 0, a run sees no CUDA device.
        max_retries: how many times Ray tries a run again whose process has died.

    Raises:
        ValueError, TypeError: for arguments that cannot work; the message says what is allowed.
        ImportError: if Ray is not installed: ``pip install 'initopt[ray]'``.
        ConnectionError: if no cluster answers at the address.

    Warns:
        UserWarning: if no machine of the cluster has what a run asks for, so that the runs wait for one that has.

    Example::

        with RayExecutor(num_cpus=2, num_gpus=0.5) as executor:
            initopt.compare(models, "cifar10", ["default", "nio"], executor=executor, accelerator="cuda", out="out")
    """

    def __init__(
        self, address: str | None = None, *, num_cpus: float = 1, num_gpus: float = 0, max_retries: int = 1
    ) -> None:
        check_number("num_cpus", num_cpus, minimum=0, finite=True)
        check_number("num_gpus", num_gpus, minimum=0, finite=True)
        self.num_gpus, self.max_retries = num_gpus, check_integer("max_retries", max_retries, 0)
        try:
            import ray
        except ImportError as error:
            raise ImportError(f"RayExecutor needs Ray: pip install 'initopt[ray]' ({error})") from error
        self._ray = ray
        self._is_ours = not ray.is_initialized()
        if self._is_ours:
            handler = signal.getsignal(signal.SIGTERM)
            try:
                ray.init(address=address, log_to_driver=False)
            except ConnectionError as error:
                raise ConnectionError(f"no Ray cluster answers at address={address!r}: {error}") from error
            finally:
                if handler is not None and threading.current_thread() is threading.main_thread():
                    signal.signal(signal.SIGTERM, handler)  # Ray puts one there that exits with another status
        elif address is not None:
            raise ValueError(
                f"Ray is at work in this process already; leave out address={address!r}, or call ray.shutdown()"
            )
        self._options = {"num_cpus": num_cpus, "num_gpus": num_gpus, "max_retries": self.max_retries}
        self._task = ray.remote(**self._options)(_call)
        self._sent: dict[int, tuple[Any, Any]] = {}
        self._warn_if_too_large()

    def submit(self, function: Callable[..., Any], /, *arguments: Any) -> _Future:
        """Have a function called somewhere in the cluster.

        Raises:
            RuntimeError: after :meth:`shutdown`.
        """
        _refuse_ended(self._ray)
        sent = map(self._reference, range(len(arguments)), arguments)
        return _Future(self._ray, self._task.remote(self.num_gpus > 0, function, *sent))

    def _reference(self, place: int, argument: Any) -> Any:
        """Where the cluster has an argument: one that was there in the last call, too, is sent only once."""
        if place not in self._sent or self._sent[place][0] is not argument:
            # As bytes, since arrays that Ray has unpacked itself cannot be written to.
            self._sent[place] = argument, self._ray.put(self._ray.cloudpickle.dumps(argument))
        return self._sent[place][1]

    def _warn_if_too_large(self) -> None:
        have = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        cpus, gpus = self._options["num_cpus"], self._options["num_gpus"]
        if not any(node.get("CPU", 0) >= cpus and node.get("GPU", 0) >= gpus for node in have):
            there = "; ".join(f"{node.get('CPU', 0):g} CPUs, {node.get('GPU', 0):g} GPUs" for node in have)
            warn(
                f"no machine of the Ray cluster has num_cpus={cpus:g} and num_gpus={gpus:g} (they have {there}): the runs "
                "wait until one joins that has"
            )

    def shutdown(self) -> None:
        """End Ray in this process, if it was started for this executor."""
        self._sent.clear()
        if self._is_ours and self._ray.is_initialized():
            self._ray.shutdown()

    def __repr__(self) -> str:
        return f"RayExecutor({', '.join(f'{name}={value:g}' for name, value in self._options.items())})"

    def __enter__(self) -> RayExecutor:
        return self

    def __exit__(self, *exception: object) -> None:
        self.shutdown()


class _Future:
    """The promise of a value."""

    def __init__(self, ray: Any, reference: Any) -> None:
        self._ray, self._reference = ray, reference

    def result(self) -> Any:
        _refuse_ended(self._ray)
        try:
            return self._ray.get(self._reference)
        except self._ray.exceptions.RayTaskError as error:
            raise error.cause from error

    def cancel(self) -> None:
        _refuse_ended(self._ray)
        self._ray.cancel(self._reference, force=True)


def _refuse_ended(ray: Any) -> None:
    """Refuse what would have Ray start a cluster of its own accord."""
    if not ray.is_initialized():
        raise RuntimeError("Ray has been shut down in this process; make another RayExecutor")


def _call(has_gpus: bool, function: Callable[..., Any], *arguments: bytes) -> Any:
    if not has_gpus:
        # Ray itself no longer hides those that a task did not ask for (ray-project/ray issue 54868).
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    return function(*map(pickle.loads, arguments))
