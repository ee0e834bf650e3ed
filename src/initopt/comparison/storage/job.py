"""A run that is to be done."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from initopt.comparison.storage.record import Purpose, RunRecord

__all__ = ["Group", "Job", "grouped"]


@dataclass(frozen=True)
class Job:
    """One run: a network, trained from an initialization with a seed and a learning rate.

    Attributes:
        network: its name.
        initialization: its name.
        seed: of everything that is drawn.
        purpose: ``"selection"`` or ``"final"``.
        lr: peak learning rate.
    """

    network: str
    initialization: str
    seed: int
    purpose: Purpose
    lr: float

    @classmethod
    def of(cls, record: RunRecord) -> Job:
        """The job that a record is of."""
        return cls(record.network, record.initialization, record.seed, record.purpose, record.lr)

    def place(self, folder: Path) -> Path:
        """The folder where the result of the job goes.

        >>> Job("mlp", "nio", 3, "final", 0.05).place(Path("out")).as_posix()
        'out/runs/mlp/nio/lr=0.05/seed=3'
        """
        return folder.joinpath("runs", *self.steps)

    @property
    def steps(self) -> tuple[str, str, str, str]:
        """The names of the folders, one in another, that lead to the result of the job."""
        return self.network, self.initialization, f"lr={self.lr!r}", f"seed={self.seed}"

    def __str__(self) -> str:
        return f"{self.network} from {self.initialization}, seed {self.seed}, lr={self.lr!r}"


Group = tuple[Job, ...]
"""Jobs that differ in their learning rate only, and so share a start."""


def grouped(jobs: Iterable[Job]) -> list[Group]:
    """Jobs in groups of neighbours that share a start."""
    return [
        tuple(found) for _, found in groupby(jobs, lambda job: (job.network, job.initialization, job.seed, job.purpose))
    ]
