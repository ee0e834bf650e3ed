"""Do all runs of a plan that are not done yet."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from statistics import fmean
from typing import Any

from initopt.comparison.analysis.outcome import Outcome
from initopt.comparison.running.run import failed, versions
from initopt.comparison.spec.plan import Plan
from initopt.comparison.storage.folder import is_stored, opened, remove_failed, store_run
from initopt.comparison.storage.job import Group, Job, grouped
from initopt.comparison.storage.record import RunRecord
from initopt.comparison.storage.store import load_run

__all__ = ["Agree", "Runs", "Watch", "choose_lr", "execute"]

Runs = Callable[[Sequence[Group]], Generator[RunRecord, None, None]]
"""Does the runs of some groups, and gives the record of each as soon as it is done; only this process stores them."""

Agree = Callable[[Callable[[], Any]], Any]
"""Has something decided by one process for all that share the runs."""

Watch = Callable[[int, int], None]
"""Is told how many runs are done, and how many there are in all."""


def execute(
    runs: Runs,
    agree: Agree,
    plan: Plan,
    specification: Callable[[], dict[str, Any]],
    folder: Path,
    *,
    retry_failed: bool,
    watch: Watch,
) -> list[str]:
    """Do all runs of a plan that its folder does not have yet: those that choose learning rates, then the final ones.

    Args:
        runs: who does them.
        agree: has one process read and write the folder.
        plan: of the comparison.
        specification: all that results depend on.
        folder: where they are stored.
        retry_failed: whether to do runs that failed before once more.
        watch: is told of every run.

    Returns:
        What could not be done, a sentence each.

    Raises:
        FileExistsError, MismatchError, BlockingIOError, PermissionError: as
            :func:`initopt.comparison.storage.folder.opened` does.
    """
    by_fabric = plan.hardware.needs_fabric(plan.recipe.precision)
    with ExitStack() as resources:

        def open_folder() -> None:
            resources.enter_context(opened(folder, specification(), versions(by_fabric)))
            if retry_failed:
                remove_failed(folder)

        agree(open_folder)
        return _Execution(runs, agree, plan, folder, watch).run()


class _Execution:
    def __init__(self, runs: Runs, agree: Agree, plan: Plan, folder: Path, watch: Watch) -> None:
        self._runs, self._agree, self._plan, self._folder, self._watch = runs, agree, plan, folder, watch
        self._problems: list[str] = []
        self._done = 0
        self._pairs = [(network, start) for network in plan.networks for start in plan.initializations]
        self._selection = plan.selection_jobs()
        self._total = len(self._selection) + len(self._pairs) * len(plan.seeds)

    def run(self) -> list[str]:
        self._do(lambda: self._selection)
        self._do(self._final_jobs)
        return self._problems

    def _do(self, decide: Callable[[], Iterable[Job]]) -> None:
        pending = self._agree(lambda: list(self._pending(decide())))
        if pending:
            with closing(self._runs(grouped(pending))) as records:
                for record in records:
                    self._store(record)

    def _store(self, record: RunRecord) -> None:
        """Store a run, or say why that is not possible: the others are to go on."""
        try:
            store_run(self._folder, record)
        except OSError as error:
            self._problems.append(f"{Job.of(record)}: its result could not be stored: {error}")
        self._count()

    def _count(self) -> None:
        self._done += 1
        self._watch(self._done, self._total)

    def _pending(self, jobs: Iterable[Job]) -> Iterator[Job]:
        """Those that are not stored; one of which that cannot be told is a problem, and is left alone."""
        for job in jobs:
            try:
                if not is_stored(self._folder, job):
                    yield job
                    continue
            except (OSError, ValueError) as error:
                self._problems.append(f"{job}: {error}")
            self._count()

    def _final_jobs(self) -> Iterator[Job]:
        for network, start in self._pairs:
            lrs = self._plan.recipe_of(network, start).lrs
            lr = lrs[0] if len(lrs) == 1 else self._chosen(network, start)
            if lr is not None:
                yield from (Job(network, start, seed, "final", lr) for seed in self._plan.seeds)

    def _chosen(self, network: str, start: str) -> float | None:
        """The learning rate of the final runs; ``None`` where there are none to be done."""
        lrs = self._plan.recipe_of(network, start).lrs
        begun = [lr for lr in lrs for seed in self._plan.seeds if self._has_result(Job(network, start, seed, "final", lr))]
        if begun:  # the choice is made, also if a run that failed then has come to a result since
            return begun[0]
        jobs = [job for job in self._selection if (job.network, job.initialization) == (network, start)]
        try:
            runs = [load_run(job.place(self._folder)) for job in jobs]
        except ValueError as error:
            self._problems.append(
                f"{network} from {start}: no learning rate can be chosen, since not all runs are there: {error}"
            )
            return None
        lr = choose_lr(runs)
        if lr is None:
            self._store_as_failed(network, start, lrs[0], runs[0].error or "")
        return lr

    def _has_result(self, job: Job) -> bool:
        try:
            return is_stored(self._folder, job) and load_run(job.place(self._folder)).status != "failed"
        except (OSError, ValueError):
            return False

    def _store_as_failed(self, network: str, start: str, lr: float, error: str) -> None:
        why = f"no learning rate could be chosen, since all runs that were to choose it failed: {error}"
        for job in self._pending([Job(network, start, seed, "final", lr) for seed in self._plan.seeds]):
            self._store(failed(job, why))


def choose_lr(runs: Sequence[RunRecord]) -> float | None:
    """The learning rate with the best mean over seeds on the validation split.

    A run that diverged counts as an untrained network (:class:`initopt.comparison.analysis.outcome.Outcome`). A learning
    rate of which a run failed is out, unless there is no other. Of equals, the least wins.

    Args:
        runs: those of one network from one initialization that were made to choose.

    Returns:
        The learning rate, or ``None`` if no run came to a result.
    """
    outcome = Outcome.of(runs, "validation")
    best: tuple[int, float, float] | None = None
    for lr in sorted({run.lr for run in runs}):
        values = [outcome.final(run) for run in runs if run.lr == lr]
        known = [value for value in values if not math.isnan(value)]
        if known:
            mean = fmean(known)
            score = (len(known) - len(values), mean if outcome.higher_is_better else -mean)
            if best is None or score > best[:2]:
                best = (*score, lr)
    return None if best is None else best[2]
