"""Who does the runs: this process, several that share each run, or several that take one run each."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from initopt.comparison.running.run import run_group
from initopt.comparison.spec.plan import Plan
from initopt.comparison.storage.folder import store_run
from initopt.comparison.storage.job import Group, Job
from initopt.comparison.storage.record import RunRecord
from initopt.data import Splits

if TYPE_CHECKING:
    from lightning_fabric import Fabric

__all__ = ["Done", "FabricTeam", "Report", "Team", "stored"]

_T = TypeVar("_T")

Done = tuple[Job, str, str | None]
"""A job that is done, the status of its run, and why the result could not be stored, if so."""

Report = Callable[[Done], None]
"""Is called when a job is done."""


class Team(ABC):
    """What does the runs."""

    @property
    @abstractmethod
    def leads(self) -> bool:
        """Whether this process is the one that reads and writes the folder."""

    @abstractmethod
    def agree(self, decide: Callable[[], _T]) -> _T:
        """Have the leading process decide something, and tell all others; an exception is raised in all of them."""

    @abstractmethod
    def run(self, groups: Sequence[Group], report: Report) -> None:
        """Do the runs of some groups, and store each as soon as it is done."""


class FabricTeam(Team):
    """This process, together with those that Fabric has launched, if it has.

    Args:
        fabric: launched.
        plan: of the comparison.
        splits: its data.
        folder: where runs are stored.
    """

    def __init__(self, fabric: Fabric, plan: Plan, splits: Splits, folder: Path) -> None:
        self._fabric, self._plan, self._splits, self._folder = fabric, plan, splits, folder

    @property
    def leads(self) -> bool:
        return self._fabric.is_global_zero

    def agree(self, decide: Callable[[], _T]) -> _T:
        if self._fabric.world_size == 1:
            return decide()
        decided: tuple[_T | None, Exception | None] = (None, None)
        if self.leads:
            try:
                decided = (decide(), None)
            except Exception as error:
                decided = (None, error)
        value, refusal = self._fabric.broadcast(decided)
        if refusal is not None:
            raise refusal
        return value  # type: ignore[return-value]

    def run(self, groups: Sequence[Group], report: Report) -> None:
        for group in groups:
            for record in run_group(self._fabric, self._plan, self._splits, group):
                if self.leads:
                    report(stored(self._folder, record))


def stored(folder: Path, record: RunRecord) -> Done:
    """Store a run, or say why that is not possible: the others are to go on."""
    try:
        store_run(folder, record)
    except OSError as error:
        return Job.of(record), record.status, f"its result could not be stored: {error}"
    return Job.of(record), record.status, None
