"""The entry point that compares initializations."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from torch import nn

from initopt._support.checks import accepting, check_integer
from initopt._support.errors import warn
from initopt._support.processes import processor_threads
from initopt._support.progress import Progress, counter
from initopt.comparison.result import Comparison, load_comparison
from initopt.comparison.spec.hardware import Hardware
from initopt.comparison.spec.initialization import Function, Initialization
from initopt.comparison.spec.network import Network
from initopt.comparison.spec.plan import Plan
from initopt.comparison.spec.recipe import Recipe
from initopt.data import Splits
from initopt.methods import Method
from initopt.model.losses import LossFunction

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from initopt.comparison.running.executors import Executor

__all__ = ["compare"]


@accepting()
def compare(
    models: Mapping[str, Callable[[], nn.Module] | Network],
    data: Any,
    initializations: Iterable[str | Method | Function | Sequence[Any] | Mapping[str, Any] | Initialization],
    *,
    out: str | os.PathLike[str],
    recipe: Recipe | Mapping[str, Any] | None = None,
    seeds: int | Iterable[int] = 5,
    selection_seeds: int | Iterable[int] = 2,
    loss_fn: LossFunction | None = None,
    accelerator: str = "auto",
    devices: int | str | list[int] = 1,
    strategy: str = "auto",
    threads: int = 1,
    workers: int = 1,
    executor: Executor | None = None,
    loaders: int = 0,
    retry_failed: bool = False,
    report: bool = True,
    progress: Progress = None,
) -> Comparison:
    """Train networks from several initializations, by one recipe, and compare.

    Every network is trained from every initialization with every seed. All initializations of a seed begin with the same
    draw of weights and see the same batches in the same order. Where the recipe has several learning rates, one is chosen
    for each network and initialization: the best on the validation split, as a mean over ``selection_seeds``; the test
    split is for the final runs only.

    Each run is stored as soon as it is done, whole or not at all. The same call again goes on where the last one was ended,
    and with the same hardware ends in the same results. A run whose loss is no longer finite, or ends far above its start,
    is a result: it diverged. A run that raises an exception is stored as failed, and the others go on.

    Args:
        models: by name, a class or function that returns a new model, its arguments bound by ``functools.partial``; or a
            :class:`initopt.comparison.Network`, for changes to the recipe.
        data: ``"digits"``, or an object with the data sets ``train``, ``validation`` and ``test``
            (:class:`initopt.data.Splits`, say), or a function that returns one.
        initializations: each of them a name (``"default"`` is the model's own start; a scheme in ``initopt.schemes.NAMES``;
            a method in :func:`initopt.methods.method_names`, those of other packages among them); a method with its
            options, such as ``NIO(steps=50)``; a function ``(model, batches, loss_fn) -> None`` that changes a model in
            place; a list of these, which work one after the other; or a dict of the arguments of
            :class:`initopt.comparison.Initialization`.
        out: folder for the runs and the report.
        recipe: how to train, as a :class:`initopt.comparison.Recipe` or a dict of its fields.
        seeds: how many, or which ones.
        selection_seeds: how many or which ones choose learning rates; a number counts from 1000.
        loss_fn: as for :func:`initopt.measure`.
        accelerator: ``"cpu"``, ``"cuda"``, ``"mps"`` or ``"auto"``.
        devices: how many of them share a run, or which ones.
        strategy: how they share it, as Lightning Fabric has it.
        threads: processor threads of each process. One by default: the last digits depend on it, and with ``workers`` the
            processor is busy all the same.
        workers: how many processes do one run each at a time; the results do not depend on it, but for times. Of several
            GPUs, all or those that ``devices`` lists, they take one each in turn.
        executor: does the runs in the place of this process: anything with ``submit(function, *arguments)`` that returns
            something with ``result()``, such as those of :mod:`concurrent.futures` or
            :class:`initopt.integrations.ray.RayExecutor`. Only this process writes to ``out``.
        loaders: how many more processes each run has that read, decode and augment its samples, where these are not in
            memory already; the results do not depend on it, but for times. By default none, so the one that trains does it.
        retry_failed: do runs again that failed before.
        report: write the report at the end.
        progress: whether to show a progress bar; by default, if standard error is a terminal.

    Returns:
        All runs, as :func:`initopt.comparison.load_comparison` reads them.

    Raises:
        ValueError, TypeError: for arguments that cannot work, before any work; the message says what is allowed.
        MismatchError: if the folder holds another comparison; the message says in what it differs.
        FileExistsError, PermissionError, BlockingIOError: if the folder is not ours, cannot be written, or is in use.
        ImportError: if ``report``, several devices or another precision than ``"32-true"`` need packages that are not
            installed; the message says which: ``pip install 'initopt[compare]'``.
        RuntimeError: if no worker can be started, or the executor takes no more calls; the same call goes on.

    Warns:
        InitoptWarning: if a run could not be stored or read; the others are done.

    >>> import functools, tempfile, initopt
    >>> small = functools.partial(initopt.zoo.plain_mlp, depth=2, width=8)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     found = initopt.compare(
    ...         {"mlp": small}, "digits", ["default", "nio"], recipe={"epochs": 1}, seeds=2, out=folder, report=False
    ...     )
    >>> [(run.initialization, run.seed, run.status) for run in found.runs]
    [('default', 0, 'done'), ('default', 1, 'done'), ('nio', 0, 'done'), ('nio', 1, 'done')]
    """
    if report:
        from initopt.comparison.report.report import refuse_without_packages

        refuse_without_packages()
    from initopt.comparison.running.executors import check_executor, check_sendable

    check_integer("threads", threads, 1)
    hardware = Hardware(accelerator, devices, strategy, threads, check_integer("loaders", loaders, 0))
    plan = Plan.create(
        models,
        data,
        initializations,
        loss_fn=loss_fn,
        recipe=recipe,
        seeds=seeds,
        selection_seeds=selection_seeds,
        hardware=hardware,
    )
    folder = Path(out).expanduser().absolute()
    check_integer("workers", workers, 1)
    if executor is not None:
        check_executor(executor)
        if workers > 1:
            raise ValueError(f"an executor has workers of its own: leave out either workers={workers} or the executor")
        if not hardware.is_single:
            raise ValueError(f"an executor does each run on one device; with devices={devices!r}, leave it out")
        problems = _with_executor(executor, plan, folder, retry_failed, progress)
        leads = True
    elif workers > 1:
        listed = isinstance(devices, list) and strategy == "auto"
        if not (hardware.is_single or listed):
            raise ValueError(
                f"workers={workers} do one run each, on one device; with devices={devices!r}, use workers=1, or list "
                "those that they are to take in turn, devices=[0, 1]"
            )
        check_sendable(plan)
        problems = _with_workers(workers, plan, folder, retry_failed, progress)
        leads = True
    else:
        fabric = hardware.fabric(plan.recipe.precision)
        _check_sharing(plan, fabric.world_size)
        leads = fabric.is_global_zero
        splits = plan.load_data()
        with processor_threads(hardware.threads):
            # Bound, since Fabric looks into arguments that it is given, and takes no frozen dataclasses.
            problems = fabric.launch(partial(_with_fabric, plan, splits, folder, retry_failed, progress))
    if report and leads:
        from initopt.comparison.report.report import write_report

        write_report(folder)
    found = load_comparison(folder)
    found = replace(found, problems=tuple(dict.fromkeys([*problems, *found.problems])))
    if found.problems:
        warn(f"not all of the comparison in {folder} is there:\n  " + "\n  ".join(found.problems))
    return found


def _check_sharing(plan: Plan, processes: int) -> None:
    for network in plan.networks:
        size = plan.recipe_of(network, next(iter(plan.initializations))).batch_size
        if size % processes:
            raise ValueError(f"batch_size is {size}, which {processes} devices cannot share equally; take a multiple")


def _with_workers(count: int, plan: Plan, folder: Path, retry_failed: bool, progress: Progress) -> list[str]:
    from initopt.comparison.running.executors import prepare
    from initopt.comparison.running.workers import Workers

    precision, hardware, key = plan.recipe.precision, plan.hardware, uuid4().hex
    first = hardware.of_worker(0)
    kind = first.fabric(precision).device.type
    theirs = replace(plan, hardware=hardware.for_workers(kind, precision))
    with Workers(count, prepare, key, theirs, daemon=not hardware.loaders) as workers:
        # Each run is on one device, whichever that is.
        same = plan if hardware.is_single else replace(plan, hardware=replace(hardware, devices=1))
        return _elsewhere(workers, key, theirs, same.specification(plan.load_data(), kind), folder, retry_failed, progress)


def _with_executor(executor: Executor, plan: Plan, folder: Path, retry_failed: bool, progress: Progress) -> list[str]:
    from initopt.comparison.running.executors import first_call

    splits, key = plan.load_data(), uuid4().hex
    kind = first_call(executor, key, plan)
    gpus = getattr(executor, "num_gpus", 0)
    if gpus and kind == "cpu" and plan.hardware.accelerator == "auto":
        raise ValueError(
            f"{executor!r} has num_gpus={gpus:g} for each run, but torch sees no GPU where it does them: a machine may be "
            "said to have what it has not, or torch there be a build for processors. Pass accelerator='cpu' to train on "
            "processors all the same"
        )
    theirs = (
        replace(plan, hardware=replace(plan.hardware, accelerator=kind)) if plan.hardware.accelerator == "auto" else plan
    )
    return _elsewhere(executor, key, theirs, plan.specification(splits, kind), folder, retry_failed, progress)


def _elsewhere(
    executor: Executor,
    key: str,
    plan: Plan,
    specification: dict[str, Any],
    folder: Path,
    retry_failed: bool,
    progress: Progress,
) -> list[str]:
    from initopt.comparison.running.execute import execute
    from initopt.comparison.running.executors import by_executor

    runs = partial(by_executor, executor, key, plan)
    with counter(progress, "runs") as watch:
        return execute(
            runs, lambda decide: decide(), plan, lambda: specification, folder, retry_failed=retry_failed, watch=watch
        )


def _with_fabric(
    plan: Plan, splits: Splits, folder: Path, retry_failed: bool, progress: Progress, fabric: Fabric
) -> list[str]:
    """What each process does that Fabric has launched."""
    from initopt.comparison.running.execute import execute
    from initopt.comparison.running.executors import agreed, by_fabric

    with processor_threads(plan.hardware.threads), counter(progress if fabric.is_global_zero else False, "runs") as watch:
        splits = splits.to(fabric.device)
        return execute(
            partial(by_fabric, fabric, plan, splits),
            partial(agreed, fabric),
            plan,
            lambda: plan.specification(splits, fabric.device.type),
            folder,
            retry_failed=retry_failed,
            watch=watch,
        )
